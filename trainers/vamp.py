"""VaMP (Cheng and Han, NeurIPS 2025, arXiv 2511.22664): an image's text prompts are drawn for it.

For each layer, a net takes the image's frozen feature and gives a Gaussian of text prompts z: the
posterior (eq. 13, 14). In training a KL term holds it near the class-aware prior: the Gaussian that
a second net gives for the prototype of the image's class (eq. 18, 19). The image tower's prompts
are ordinary ones. Here all prompts go where MaPLe's go, in vamp_mmrl.py where MMRL's go. There is
no public code; docs/METHODS.md says what was chosen where the paper is silent.

Shapes: B images, S draws for each, L layers with M prompts of width W (Wv in the image tower).
"""

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP
from dassl.config import allow
from dassl.data.data_manager import build_data_loader
from dassl.engine import TRAINER_REGISTRY

from .base import CLIPTrainer
from .draws import ConditionalCLIP, log_mean_probability
from .frozen_clip import check_depth
from .gaussian_prompts import VariationalPrompts
from .prompt_text import Gap, PromptText, check_length, zero_shot_template


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.VAMP = CfgNode()
    node.N_CTX = 2  # M; VaMP_MMRL has N_REP_TOKENS, REP_LAYERS and PREC of TRAINER.MMRL
    node.PROMPT_DEPTH = 9  # L, blocks that get prompts in both towers
    node.PREC = "amp"  # fp16, bf16, fp32, tf32, amp
    node.SAMPLE_SPECIFIC = True  # False: one posterior for all images
    node.VARIATIONAL = True  # False: z is the mean; nothing is drawn, and there is no KL
    node.PRIOR = "class"  # class: from the class's prototype; normal: N(0, I)
    node.HIDDEN = 32  # width between the two linear layers of a net
    node.INIT_STD = 0.02  # σ of z at the start
    node.TRAIN_SAMPLES = 1
    node.TEST_SAMPLES = 10  # 0: the posterior's mean in place of draws
    node.KL_WEIGHT = 1.0
    node.KL_REDUCTION = "mean"  # over the M·W elements of a layer: mean, sum (the ELBO's)
    node.FEATURE_NORM = True  # features have unit length before a net sees them
    node.PROTOTYPE_NORM = True  # and so have the prototypes


allow("from 1 to 10000", lambda v: 1 <= v <= 10**4, "VAMP.HIDDEN")
allow("above 0", lambda v: v > 0, "VAMP.INIT_STD")
allow("class or normal", lambda v: v in ("class", "normal"), "VAMP.PRIOR")
allow("from 1 to 1000", lambda v: 1 <= v <= 1000, "VAMP.TRAIN_SAMPLES")
allow("from 0 to 1000", lambda v: 0 <= v <= 1000, "VAMP.TEST_SAMPLES")
allow("0 or more", lambda v: v >= 0, "VAMP.KL_WEIGHT")
allow("mean or sum", lambda v: v in ("mean", "sum"), "VAMP.KL_REDUCTION")


class VaMPLearner(nn.Module):
    """z before the template's words and in the next blocks; learned vectors behind the patches."""

    def __init__(
        self, node: CfgNode, clip_model: CLIP, classnames: list[str], template: str, seed: int
    ):
        super().__init__()
        text, vision = clip_model.transformer, clip_model.visual.transformer
        check_length(node.N_CTX, ())
        check_depth("TRAINER.VAMP.PROMPT_DEPTH", node.PROMPT_DEPTH, text, vision)
        shape = node.PROMPT_DEPTH, node.N_CTX
        self.text_prompts = VariationalPrompts(node, clip_model, (*shape, text.width), seed)
        vision_prompts = torch.empty(*shape, vision.width).normal_(std=0.02)
        self.vision_prompts = nn.Parameter(vision_prompts)  # (L, M, Wv)
        before, ending = template.split("{}")
        words = [Gap("z", node.N_CTX), _tokenizer.encode(before)]
        self.text = PromptText(clip_model, classnames, words, ending=ending)

    def conditional_text_features(self, clip_model: CLIP, z: Tensor) -> Tensor:
        """(G, L, M, W) -> (G, C, D), not normalised."""
        first, *others = z.unbind(1)  # each (G, M, W)
        where = self.text.where["z"]
        deep = {block: (where, z[:, None]) for block, z in enumerate(others, start=1)}
        return self.text.encode(clip_model, {"z": first}, deep)

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D), not normalised."""
        first, *others = self.vision_prompts[:, None]  # each (1, M, Wv)
        return clip_model.encode_image(image, first, dict(enumerate(others, start=1)))


class VaMPCLIP(ConditionalCLIP):
    @torch.no_grad()
    def frozen_pass(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What the pass with prompts begins from, and frozen CLIP's features (B, D)."""
        return image, self.clip.encode_image(image)

    def seen(self, frozen: Tensor) -> Tensor:
        """Frozen CLIP's features (B, D) as the nets see them, float32."""
        if self.learner.text_prompts.node.FEATURE_NORM:
            return self.unit(frozen)
        return frozen.to(self.clip.logit_scale.dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> the log of the draws' mean probabilities (eq. 21), (B, C)."""
        below, frozen = self.frozen_pass(image)
        z = self.learner.text_prompts.of_test(self.seen(frozen))
        return log_mean_probability(self.test_logits(below, z))

    def test_logits(self, below: Tensor, z: Tensor) -> Tensor:
        """z (B, S, L, M, W) -> logits (B, S, C); below: `frozen_pass`'s first result."""
        return self.draws_logits(self.image_features(below), z)


@TRAINER_REGISTRY.register()
class VaMP(CLIPTrainer):
    node_name = "VAMP"
    class_rows = ()
    model_name = "VariationalPromptLearner"
    model_class = VaMPCLIP
    graphed = divisible = True

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        template = zero_shot_template(self.cfg)
        return VaMPLearner(self.node, clip_model, classnames, template, self.seed)

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """E_q[−log p(y | x, z)] + weight · Σ KL(q(z | x) ‖ p(z | o_y)) (eq. 20)."""
        model = self.model
        below, frozen = model.frozen_pass(image)
        of_class = self.prototypes[label] if self.class_aware else None
        z, kl = model.learner.text_prompts.of_training(model.seen(frozen), of_class)
        likelihood, log = self.likelihood(below, frozen, label, z)
        return likelihood + self.cfg.TRAINER.VAMP.KL_WEIGHT * kl, log | {"kl": kl.detach()}

    def likelihood(
        self, below: Tensor, frozen: Tensor, label: Tensor, z: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The host's loss, here cross-entropy, its mean over the draws; and what to log."""
        logits = self.model.draws_logits(self.model.image_features(below), z)  # (B, S, C)
        labels = label.repeat_interleave(z.shape[1])
        return F.cross_entropy(logits.flatten(0, 1), labels), {}

    # -- prototypes: only the prior sees them, so a test needs none

    @property
    def class_aware(self) -> bool:
        node = self.cfg.TRAINER.VAMP
        return node.VARIATIONAL and node.PRIOR == "class"

    @cached_property
    def prototypes(self) -> Tensor:
        """(C, D): each class's mean feature of its training images, as tests see them (eq. 18)."""
        cfg, items = self.cfg, self.dm.dataset.train_x
        tfm, size = self.test_loader.dataset.transform, cfg.DATALOADER.TEST.BATCH_SIZE
        loader = build_data_loader(cfg, data_source=items, batch_size=size, tfm=tfm, is_train=False)
        features = []
        with self.autocast():
            for batch in loader:
                image, _ = self.parse_batch_test(batch)
                features.append(self.model.seen(self.model.frozen_pass(image)[1]))
        features, labels = torch.cat(features), torch.tensor([item.label for item in items])
        means = [features[labels == c].mean(dim=0) for c in range(self.num_classes)]
        print(f"Prototypes: of {len(means)} classes, from {len(items)} training images")
        means = torch.stack(means)
        return F.normalize(means, dim=-1) if cfg.TRAINER.VAMP.PROTOTYPE_NORM else means

    def before_train(self) -> None:
        super().before_train()  # which restores the prototypes of a resumed run
        if self.class_aware:
            _ = self.prototypes

    def state_to_resume(self) -> dict:
        made = {"prototypes": self.prototypes} if self.class_aware else {}
        return super().state_to_resume() | made

    def resume_state(self, state: Mapping) -> None:
        super().resume_state(state)
        if self.class_aware:
            self.prototypes = state["prototypes"].to(self.device)
