"""What all prompt-learning methods share: the frozen CLIP, its precision, and a trainer around a
prompted CLIP."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import find_weights, read_state_dict, source_of
from clip.download import sha256_of
from clip.model import CLIP, Transformer, build_model, convert_weights
from dassl.config import allow, read_values_by
from dassl.engine import TrainerX
from dassl.engine.capture import CapturedStep
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_pretrained_weights
from dassl.utils.errors import UsageError

from .features import KeptFeatures

# The type of the frozen CLIP's large weights. tf32: float32, whose products a GPU may round to
# TF32's 10 bits.
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "amp": torch.float32,
}

# What the methods' keys may be, by their ends.
allow("at most 1000", lambda v: v <= 1000,  # learned vectors, and widths by which layers grow
      "N_CTX N_CTX_TEXT N_CTX_VISION N_ATT1 N_ATT2 N_ATT3 HIDDEN_SCALE ADAPTER_DIM")  # fmt: skip
allow("0 or more", lambda v: v >= 0, "LOSS_WEIGHT KG_WEIGHT COOP.W LOSS.LAMBDA")
allow("words, True or False", lambda v: isinstance(v, str | None), "CTX_INIT")


def ctx_init(value: object) -> object:
    """CTX_INIT as words: it is words in CoOp, but a bool in its forks."""
    return {"true": "a photo of a", "false": ""}.get(str(value).lower(), value)


read_values_by("CTX_INIT", ctx_init)


def add_config(cfg: CfgNode) -> None:
    cfg.MODEL.BACKBONE.WEIGHTS = (
        ""  # a file or address to take instead of OpenAI's (or the environment's CLIP_WEIGHTS)
    )
    cfg.MODEL.BACKBONE.MIRROR = (
        ""  # an address with copies of OpenAI's files (or the environment's CLIP_MIRROR)
    )


def check_clip(cfg: CfgNode) -> None:
    """What can be said of MODEL before data and weights are read.

    Raises: UsageError for a head, which CLIP has none of, and a name or path of weights that is
        none.
    """
    backbone, head = cfg.MODEL.BACKBONE, cfg.MODEL.HEAD.NAME
    if head:
        raise UsageError(
            f"MODEL.HEAD.NAME {head} (--head): has no effect, as there is no head on a CLIP"
        )
    source_of(backbone.NAME, backbone.WEIGHTS)


def multiplies_in_bf16() -> bool:
    """Whether the CPU has instructions for products in bfloat16, as far as this PyTorch can
    tell."""
    tests = (
        getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile")
    )
    return any(test() for test in tests)


def choose_precision(prec: str, device: torch.device, fixed: bool = False) -> str:
    """PREC, one of PRECISIONS, as it can be had on the device: a CPU computes fp16, amp and tf32 in
    fp32.

    The log says so, and what bf16 is worth there.

    Args:
        fixed: the method has no PREC that could be changed.
    """
    if device.type != "cpu":
        return prec
    if prec == "bf16":
        slow = (
            ""
            if multiplies_in_bf16()
            else "; this CPU has no products in it that PyTorch knows of, fp32 is faster"
        )
        print(f"Precision: bf16{slow}")
        return prec
    why = f", since a CPU does not gain from {prec}" if prec != "fp32" else ""
    hint = "; this CPU multiplies in bf16 too: PREC bf16 is faster for a large CLIP, and less exact"
    print(f"Precision: fp32{why}{hint if multiplies_in_bf16() and not fixed else ''}")
    return "fp32"


def load_clip(cfg: CfgNode, dtype: torch.dtype, device: torch.device) -> CLIP:
    """The CLIP that MODEL.BACKBONE names, frozen, its large weights in dtype, on the device.

    Its `source` has file and SHA-256, for results.json: names of models do not tell files apart.
    """
    backbone = cfg.MODEL.BACKBONE
    file = find_weights(backbone.NAME, backbone.WEIGHTS, backbone.MIRROR)
    if cfg.VERBOSE:
        print(f"CLIP weights: {file}")
    model = build_model(read_state_dict(file))
    model.source = {"file": str(file), "sha256": sha256_of(file)}
    convert_weights(model, dtype)
    size = model.visual.input_resolution
    if tuple(cfg.INPUT.SIZE) != (size, size):
        raise UsageError(
            f"INPUT.SIZE {tuple(cfg.INPUT.SIZE)}: {backbone.NAME} takes images of ({size}, {size})"
        )
    return model.requires_grad_(False).to(device)


def allow_tf32(allowed: bool) -> None:
    """Whether a GPU may round float32 products to TF32. Left alone, PyTorch does so in
    convolutions."""
    # Not torch.backends.fp32_precision, new in 2.9: where both kinds of names are used, reading one
    # is an error.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def check_depth(key: str, depth: int, *towers: Transformer, first: int = 1) -> None:
    """Raises UsageError if a number of blocks, counted from `first`, is not one that all towers
    have."""
    last = min(tower.layers for tower in towers) - 1 + first
    if not first <= depth <= last:
        raise UsageError(f"{key} {depth}: this CLIP's towers allow {first} to {last}")


class PromptedCLIP(nn.Module):
    """A frozen CLIP seen through a prompt learner; its state dict is the prompt learner's alone.

    The prompt learner is a module whose `text_features(clip)` gives (C, D) and
    `image_features(clip, image)` (B, D).
    """

    def __init__(self, clip_model: CLIP, prompt_learner: nn.Module):
        super().__init__()
        self.prompt_learner = prompt_learner
        # In a tuple it is no submodule: nothing of CLIP is trained, saved or counted.
        self._clip = (clip_model,)
        self._kept: tuple[list, Tensor] | None = (
            None  # the weights' versions and their text features
        )

    @property
    def clip(self) -> CLIP:
        return self._clip[0]

    def train(self, mode: bool = True) -> "PromptedCLIP":
        self.drop_text_features()
        return super().train(mode)

    def drop_text_features(self) -> None:
        """To be called when what is learned has changed."""
        self._kept = None

    def text_features(self) -> Tensor:
        """(C, D), unit length, float32. In eval mode and without gradients computed once, until a
        mode change or a change of the prompt learner's tensors; what is written through `.data` is
        not seen."""
        keep = not self.training and not torch.is_grad_enabled()
        tensors = chain(self.prompt_learner.parameters(), self.prompt_learner.buffers())
        versions = [(t._version, t.data_ptr(), t.dtype) for t in tensors] if keep else []
        if keep and self._kept and self._kept[0] == versions:
            return self._kept[1]
        features = self.unit(self.prompt_learner.text_features(self.clip))
        if keep:
            self._kept = versions, features
        return features

    def image_features(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D), unit length, float32."""
        return self.unit(self.prompt_learner.image_features(self.clip, image))

    def frozen_image_features(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D), unit length, float32, of CLIP without prompts."""
        with torch.no_grad():
            return self.unit(self.clip.encode_image(image))

    def unit(self, features: Tensor) -> Tensor:
        return F.normalize(features.to(self.clip.logit_scale.dtype), dim=-1)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, D) and (C, D), unit length -> (B, C), float32: the cosines times CLIP's temperature.

        Or (B, C, D), where each image has text features of its own.
        """
        formula = "bd,cd->bc" if text_features.dim() == 2 else "bd,bcd->bc"
        with torch.autocast(
            image_features.device.type, enabled=False
        ):  # amp would round them to half precision
            return self.clip.logit_scale.exp() * torch.einsum(
                formula, image_features, text_features
            )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> logits (B, C)."""
        return self.logits(self.image_features(image), self.text_features())


class PromptTrainer(KeptFeatures, TrainerX):
    """Trains a prompt learner. A method gives `node`, `build_prompt_learner` and, where they are
    its own, the rest."""

    model_name = "prompt_learner"  # the checkpoint's folder
    saves_prefixed = False  # the family's older methods save the prompt learner by itself
    derived_buffers = ("token_prefix", "token_suffix", "token_middle")  # of the class names
    takes_attributes = True
    graphed = False  # whether `loss` may run as a CUDA graph: what changes from step to step is in tensors alone
    prompted = PromptedCLIP

    @property
    def classnames(self) -> list[str]:
        return self.dm.dataset.classnames

    @property
    def node(self) -> CfgNode:
        """The method's own node of cfg.TRAINER, which has PREC."""
        raise NotImplementedError

    def build_prompt_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        raise NotImplementedError

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if (copies := cfg.DATALOADER.K_TRANSFORMS) != 1:
            raise UsageError(
                f"DATALOADER.K_TRANSFORMS {copies}: {type(self).__name__} takes one copy of each image"
            )

    def build_data_loader(self) -> None:
        """Refuses first what would be refused when the model is built: reading the data may take
        long."""
        if self.node.PREC not in PRECISIONS:
            raise UsageError(f"PREC {self.node.PREC!r}: choose from {', '.join(PRECISIONS)}")
        if self.cfg.TRAINER.ATPROMPT.USE_ATPROMPT and not self.takes_attributes:
            name = type(self).__name__
            raise UsageError(
                f"TRAINER.ATPROMPT.USE_ATPROMPT True: {name} has no place for attributes"
            )
        check_clip(self.cfg)
        super().build_data_loader()

    def build_optimizer(self, learner: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(learner, self.cfg.OPTIM, fused=self.device.type == "cuda")

    def build_model(self) -> None:
        cfg = self.cfg
        self.prec = choose_precision(self.node.PREC, self.device)
        allow_tf32(self.prec == "tf32")
        clip_model = load_clip(cfg, PRECISIONS[self.prec], self.device)
        learner = self.build_prompt_learner(clip_model, self.classnames)
        self.model = self.prompted(clip_model, learner).to(self.device)
        saved = self.model if self.saves_prefixed else learner
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(saved, cfg.MODEL.INIT_WEIGHTS)
        self.optim = self.build_optimizer(learner)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.scaler = torch.amp.GradScaler(self.device.type) if self.prec == "amp" else None
        self.register_model(self.model_name, saved, self.optim, self.sched)
        rounding = (
            10 * torch.finfo(torch.float16 if self.prec == "amp" else PRECISIONS[self.prec]).eps
        )
        params = dict(learner.named_parameters())
        self.compute = CapturedStep(self.gradients, params, self.graphed, max(1e-5, rounding))

    def frozen_clip(self) -> CLIP:
        return self.model.clip

    def about(self) -> dict[str, Any]:
        return {"clip": self.model.clip.source}

    def state_to_resume(self) -> dict:
        return {"scaler": self.scaler.state_dict()} if self.scaler else {}

    def resume_state(self, state: dict) -> None:
        if self.scaler and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])

    def before_epoch(self) -> None:
        super().before_epoch()
        self.compute.begin_epoch()

    def test(self, split: str | None = None) -> float:
        self.compute.free()  # the memory is the test's
        return super().test(split)

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prompt learner's part of a file; MaPLe's and ATPrompt's own files hold the whole CLIP
        too."""
        whole = any(k.startswith("prompt_learner.") for k in state_dict)
        return {k: v for k, v in state_dict.items() if k.startswith("prompt_learner.") or not whole}

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what to log beside it."""
        return F.cross_entropy(self.model(image), label), {}

    def forward_backward(self, batch: dict) -> dict[str, Tensor]:
        log = self.compute(*self.parse_batch_train(batch)[:2])
        self.step()
        return log

    def gradients(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Leaves the gradients of a batch in the parameters; returns what to log. May run as a CUDA
        graph."""
        self.model_zero_grad()
        with self.autocast():
            loss, log = self.loss(image, label)
        self.scaled(loss).backward()
        return {"loss": loss.detach(), **log}

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to take gradients of; amp's is larger, for small gradients to survive in half
        precision."""
        return self.scaler.scale(loss) if self.scaler else loss

    def step(self) -> None:
        """One step of the optimizer with the gradients there are, and after an epoch's last one of
        the scheduler."""
        if self.scaler:
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            self.model_update()
        self.model.drop_text_features()
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()

    def model_inference(self, input: Tensor) -> Tensor:
        with self.autocast():
            return self.model(input)
