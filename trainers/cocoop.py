"""CoCoOp (Zhou et al., CVPR 2022): a context that each image shifts, so every image has its own
text features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY

from .base import PromptedCLIP
from .context import ContextLearner, ContextTrainer

# Prompts (images × classes) encoded at once where no gradient is kept.
MOST_PROMPTS = 4096


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.COCOOP = CfgNode()
    node.N_CTX = 16
    node.CTX_INIT = None  # words to start from, which then also set N_CTX; none: random
    node.PREC = "fp16"  # fp16, bf16, fp32, amp


class MetaNetLearner(ContextLearner):
    """`meta_net` makes of an image's feature (D) a vector (W) that is added to each vector of the
    context (§3.2)."""

    def __init__(self, clip_model: CLIP, classnames: Sequence[str], *args):
        super().__init__(clip_model, classnames, *args)
        dim = clip_model.visual.output_dim
        self.meta_net = nn.Sequential()
        self.meta_net.add_module("linear1", nn.Linear(dim, dim // 16))
        self.meta_net.add_module("relu", nn.ReLU())
        self.meta_net.add_module("linear2", nn.Linear(dim // 16, clip_model.transformer.width))

    def conditional_text_features(self, clip_model: CLIP, image_features: Tensor) -> Tensor:
        """(B, D) unit length -> (B, C, D), not normalised. Only the prefix differs from image to
        image."""
        shift = self.meta_net(image_features)[:, None]
        return self.text.encode(clip_model, self.vectors() | {"ctx": self.ctx + shift})


class ConditionalCLIP(PromptedCLIP):
    """The logits of an image are its cosines with text features of its own."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> logits (B, C), float32."""
        features = self.image_features(image)
        if torch.is_grad_enabled():
            return self.own_logits(features)
        at_once = max(1, MOST_PROMPTS // self.prompt_learner.text.suffixes.classes)
        return torch.cat([self.own_logits(some) for some in features.split(at_once)])

    def own_logits(self, image_features: Tensor) -> Tensor:
        text = self.unit(self.prompt_learner.conditional_text_features(self.clip, image_features))
        return self.logits(image_features, text)


@TRAINER_REGISTRY.register()
class CoCoOp(ContextTrainer):
    frozen_image_tower = True
    prompted = ConditionalCLIP

    @property
    def node(self) -> CfgNode:
        return self.cfg.TRAINER.COCOOP

    def build_prompt_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        return MetaNetLearner(clip_model, classnames, *self.start(), *self.attributes())


@TRAINER_REGISTRY.register()
class CoCoOp_ATP(CoCoOp):
    """CoCoOp with ATPrompt's attributes (Li et al., 2024); the image shifts the context, not the
    attributes."""

    frozen_image_tower = True
    always_attributes = True
