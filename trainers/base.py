"""What the methods share: CustomCLIP, a frozen CLIP with what a method learns, and its trainer."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.engine import TrainerX
from dassl.engine.capture import CapturedStep, SharedStep
from dassl.engine.checkpoints import about_of
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_pretrained_weights, ranks
from dassl.utils.errors import Failure, UsageError

from .atprompt import attribute_words
from .features import KeptFeatures, says
from .frozen_clip import (
    PRECISIONS,
    allow_tf32,
    autocast_of,
    check_clip,
    choose_precision,
    load_clip,
    other_clip,
)
from .prompt_text import zero_shot_template


class CustomCLIP(nn.Module):
    """A frozen CLIP and a method's learner, which is CoOp's `prompt_learner`.

    The learner is a module whose `text_features(clip)` gives the features of the classes, (C, D),
    and whose `image_features(clip, image)` gives those of the images, (B, D).
    """

    def __init__(self, clip_model: CLIP, learner: nn.Module):
        super().__init__()
        self.learner = learner
        # In a tuple it is no submodule: nothing of CLIP is trained, saved or counted.
        self._clip = (clip_model,)
        self._kept: tuple[list, Tensor] | None = None  # versions of the weights, text features

    @property
    def clip(self) -> CLIP:
        return self._clip[0]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> logits (B, C)."""
        return self.logits(self.image_features(image), self.text_features())

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, D) and (C, D), unit length -> (B, C), float32: cosines times exp(logit_scale).

        Or (B, C, D), where each image has text features of its own.
        """
        formula = "bd,cd->bc" if text_features.dim() == 2 else "bd,bcd->bc"
        # amp would round the cosines to half precision
        with torch.autocast(image_features.device.type, enabled=False):
            cosines = torch.einsum(formula, image_features, text_features)
            return self.clip.logit_scale.exp() * cosines

    def image_features(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D), unit length, float32."""
        return self.unit(self.learner.image_features(self.clip, image))

    def frozen_image_features(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D), unit length, float32, of CLIP as it is."""
        with torch.no_grad():
            return self.unit(self.clip.encode_image(image))

    def text_features(self) -> Tensor:
        """(C, D), unit length, float32.

        In eval mode and without gradients they are computed once, until the mode or a tensor of
        the learner changes (a change through `.data` is not seen).
        """
        if self.training or torch.is_grad_enabled():
            return self.unit(self.learner.text_features(self.clip))
        if torch.compiler.is_compiling():  # a graph has them as a constant
            return self._kept[1]
        tensors = chain(self.learner.parameters(), self.learner.buffers())
        versions = [(t._version, t.data_ptr(), t.dtype) for t in tensors]
        if not self._kept or self._kept[0] != versions:
            self._kept = versions, self.unit(self.learner.text_features(self.clip))
        return self._kept[1]

    def drop_text_features(self) -> None:
        """To be called when what is learned has changed."""
        self._kept = None

    def train(self, mode: bool = True) -> "CustomCLIP":
        self.drop_text_features()
        return super().train(mode)

    def unit(self, features: Tensor) -> Tensor:
        """(…, D) -> the same with unit length, float32."""
        return F.normalize(features.to(self.clip.logit_scale.dtype), dim=-1)


class CLIPTrainer(KeptFeatures, TrainerX):
    """Trains a learner around a frozen CLIP.

    A method defines `node_name` and `build_learner`, and overrides what else it does differently.
    In its class's own body (a subclass does not inherit these, see `says`) it may set

        graphed = True             its steps may run as a CUDA graph: all that changes from step to
                                   step is in tensors
        divisible = True           processes may share its batches (ranks.py): its loss is a mean
                                   over the images, for which draws.normal draws what is drawn
        frozen_image_tower = True  tests may take kept image features (features.py)
        takes_attributes = True    it has a place for ATPrompt's attributes (atprompt.py)
        always_attributes = True   it has them whatever USE_ATPROMPT says

    `class_rows` names the saved tensors that have a row for each class, as a linear probe's: other
    classes are then refused, and the same ones in another order found. () says there are none.
    A method whose test cannot be an ONNX graph (inference/graph.py) says why in `no_graph`.
    """

    no_graph = ""

    # In upstream's files, made of the class names; here neither saved nor loaded.
    derived_buffers = ("token_prefix", "token_suffix", "token_middle")
    node_name: str  # its settings are cfg.TRAINER.<node_name>, PREC among them
    more_config: tuple[str, ...] = ()  # what else its class, or one above, reads (config_names)
    model_name = "learner"  # the checkpoint's folder
    key_prefix = ""  # of the checkpoint's keys, before the learner's own
    model_class = CustomCLIP

    @classmethod
    def config_names(cls) -> list[str]:
        more = [name for c in cls.__mro__ for name in vars(c).get("more_config", ())]
        attributes = ["ATPROMPT"] * vars(cls).get("takes_attributes", False)
        return [cls.node_name, *more, *attributes]

    @property
    def node(self) -> CfgNode:
        """The method's own settings."""
        return self.cfg.TRAINER[self.node_name]

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        """The module that is trained, for CustomCLIP."""
        raise NotImplementedError

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch (B, 3, R, R), (B,), and what to log beside it."""
        return F.cross_entropy(self.model(image), label), {}

    # -- before training

    @property
    def classnames(self) -> list[str]:
        return self.dm.dataset.classnames

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        zero_shot_template(cfg)
        if (copies := cfg.DATALOADER.K_TRANSFORMS) != 1:
            why = f"{type(self).__name__} takes one copy of each image"
            raise UsageError(f"DATALOADER.K_TRANSFORMS {copies}: {why}")

    def build_data_loader(self) -> None:
        """Checks first what build_model needs: an error should not wait until the data is read."""
        if self.node.PREC not in PRECISIONS:
            raise UsageError(f"PREC {self.node.PREC!r}: choose from {', '.join(PRECISIONS)}")
        if self.cfg.TRAINER.ATPROMPT.USE_ATPROMPT and not says(self, "takes_attributes"):
            why = f"{type(self).__name__} has no place for attributes"
            raise UsageError(f"TRAINER.ATPROMPT.USE_ATPROMPT True: {why}")
        check_clip(self.cfg)
        super().build_data_loader()

    def build_model(self) -> None:
        cfg = self.cfg
        self.prec = choose_precision(self.node.PREC, self.device)
        self.autocast = autocast_of(self.prec, self.device)
        allow_tf32(self.prec == "tf32")
        clip_model = load_clip(cfg, PRECISIONS[self.prec], self.device)
        words = self.attributes()  # the config names none if they are the dataset's own
        if words and cfg.VERBOSE:
            print(f"Attributes: {', '.join(words)}")
        learner = self.build_learner(clip_model, self.classnames)
        self.model = self.model_class(clip_model, learner).to(self.device)
        saved = nn.ModuleDict({self.key_prefix: learner}) if self.key_prefix else learner
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(saved, cfg.MODEL.INIT_WEIGHTS, self.arrange)
        self.optim = self.build_optimizer(learner)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.prec == "amp" else None
        self.register_model(self.model_name, saved, self.optim, self.sched)

        dtype = torch.float16 if self.prec == "amp" else PRECISIONS[self.prec]
        kind, options = CapturedStep, {}
        if ranks.count() > 1:
            kind = SharedStep
            least = max(cfg.TRAIN.SHARE_CLASSES, ranks.count())
            options["share_classes"] = len(self.classnames) >= least
        self.compute = kind(
            self.gradients,
            params=dict(learner.named_parameters()),
            captured=says(self, "graphed"),
            tolerance=max(1e-5, 10 * torch.finfo(dtype).eps),
            **options,
        )

    def build_optimizer(self, learner: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(learner, self.cfg.OPTIM, fused=self.device.type == "cuda")

    # -- a training step

    def forward_backward(self, batch: dict) -> dict[str, Tensor]:
        image, label = self.parse_batch_train(batch)[:2]
        log = self.compute(image, label)  # `gradients`, on a GPU as a CUDA graph
        self.step()
        return log

    def gradients(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Leaves a batch's gradients in the parameters; returns what to log."""
        self.model_zero_grad()
        with self.autocast():
            loss, log = self.loss(image, label)
        self.scaled(loss).backward()
        return {"loss": loss.detach(), **log}

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss; with amp multiplied by the GradScaler's factor, lest small gradients be 0."""
        return self.scaler.scale(loss) if self.scaler else loss

    def step(self) -> None:
        """A step of the optimizer, and after an epoch's last one of the scheduler."""
        if self.scaler:
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            self.model_update()
        self.model.drop_text_features()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()

    def before_epoch(self) -> None:
        super().before_epoch()
        self.compute.begin_epoch()

    # -- tests and checkpoints

    def model_inference(self, input: Tensor) -> Tensor:
        with self.autocast():
            return self.model(input)

    def test(self, split: str | None = None) -> float:
        self.compute.free()  # the test needs the memory of the CUDA graphs
        return super().test(split)

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")

    def frozen_clip(self) -> CLIP:
        return self.model.clip

    def about(self) -> dict[str, Any]:
        return {
            "template": zero_shot_template(self.cfg),
            "attributes": list(self.attributes()),
            "precision": self.prec,
            "clip": self.model.clip.source,
        }

    def attributes(self) -> tuple[str, ...]:
        """The attribute words of the prompts, none without ATPrompt."""
        return attribute_words(self.cfg, always=says(self, "always_attributes"))

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        super().load_model(directory, epoch)
        theirs = self.trained.get("clip")
        if theirs and (line := other_clip(theirs, self.model.clip.source)):
            print(f"Note: {line}")

    def arrange(self, weights: Mapping[str, Tensor], checkpoint: dict) -> Mapping[str, Tensor]:
        """INIT_WEIGHTS' tensors as the present classes have them."""
        trained, source = about_of(checkpoint), self.cfg.MODEL.INIT_WEIGHTS
        try:
            return self.rows_of_own_classes(weights, trained, source)
        except Failure as error:
            print(f"{error}: {', '.join(self.class_rows)} left out")
            return {key: value for key, value in weights.items() if key not in self.class_rows}

    def check_goes_on(self, checkpoint: Mapping[str, Any], source: str) -> None:
        super().check_goes_on(checkpoint, source)
        theirs = about_of(checkpoint).get("clip") or {}
        if line := other_clip(theirs, self.model.clip.source):
            line = f"Training cannot go on from {source}: it was {line}"
            raise Failure(f"{line}. Give it that CLIP, or another --output-dir (OUTPUT)")

    def state_to_resume(self) -> dict:
        return {"scaler": self.scaler.state_dict()} if self.scaler else {}

    def resume_state(self, state: Mapping) -> None:
        if self.scaler and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
