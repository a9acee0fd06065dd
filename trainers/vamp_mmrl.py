"""VaMP on MMRL's places: MMRL with the text tower's tokens drawn for each image (see vamp.py).

As in MMRL are the image tokens, an image's two features, the loss, and which logits a test reads.
Shapes as in vamp.py; M and L are what TRAINER.MMRL's N_REP_TOKENS and REP_LAYERS say.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY

from . import draws
from .gaussian_prompts import VariationalPrompts
from .mmrl import MMRL, MMRLCLIP, MultiModalRepresentationLearner, SharedSpace, fuse, mmrl_loss
from .prompt_text import zero_shot_template
from .vamp import VaMP, VaMPCLIP


class ImageSpace(SharedSpace):
    """MMRL's vectors R and their maps to the image tower alone."""

    def __init__(self, node: CfgNode, clip_model: CLIP):
        super().__init__(node, clip_model)
        del self.compound_rep_tokens_r2tproj


class VaMPMMRLLearner(MultiModalRepresentationLearner):
    space_class = ImageSpace

    def __init__(
        self,
        node: CfgNode,
        vamp: CfgNode,
        clip_model: CLIP,
        classnames: list[str],
        template: str,
        seed: int,
    ):
        super().__init__(node, clip_model, classnames, template)
        shape = len(self.blocks), node.N_REP_TOKENS, clip_model.transformer.width
        self.text_prompts = VariationalPrompts(vamp, clip_model, shape, seed)

    def conditional_text_features(self, clip_model: CLIP, z: Tensor) -> Tensor:
        """(G, L, M, W) -> (G, C, D), not normalised."""
        return self.encode_text(clip_model, z[:, None].unbind(2))


class VaMPMMRLCLIP(VaMPCLIP, MMRLCLIP):
    @torch.no_grad()
    def frozen_pass(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What reaches the first block with tokens, and frozen CLIP's features (B, D)."""
        below = self.learner.image_below(self.clip, image)
        return below, self.learner.frozen_features(self.clip, below)

    def test_logits(self, below: Tensor, z: Tensor) -> Tensor:
        """z (B, S, L, M, W) -> logits (B, S, C): both features', fused, or the class token's."""
        features = self.both_features(below)[: 2 if self.fused else 1]

        def logits(z: Tensor, *features: Tensor) -> Tensor:
            text = self.unit(self.learner.conditional_text_features(self.clip, z))
            of_each = [self.logits(f, text) for f in features]
            return fuse(self.learner.node, *of_each) if self.fused else of_each[0]

        rows = z.flatten(0, 1), *(f.repeat_interleave(z.shape[1], dim=0) for f in features)
        return self.in_parts(logits, *rows).unflatten(0, z.shape[:2])

    def in_parts(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """function(*rows), with no more prompts at a time than draws.py allows."""
        classes = self.learner.text.suffixes.classes
        return draws.in_parts(function, draws.MOST_PROMPTS // classes, *rows)

    def text_of_draws(self, z: Tensor) -> Tensor:
        """(G, L, M, W) -> (G, C, D), unit length, float32."""
        return self.in_parts(
            lambda z: self.unit(self.learner.conditional_text_features(self.clip, z)), z
        )


@TRAINER_REGISTRY.register()
class VaMP_MMRL(VaMP, MMRL):
    node_name = "MMRL"
    more_config = ("VAMP",)
    model_name = "VariationalRepresentationLearner"
    model_class = VaMPMMRLCLIP
    graphed = divisible = True

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        vamp, template = self.cfg.TRAINER.VAMP, zero_shot_template(self.cfg)
        return VaMPMMRLLearner(self.node, vamp, clip_model, classnames, template, self.seed)

    def likelihood(
        self, below: Tensor, frozen: Tensor, label: Tensor, z: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """MMRL's loss, with the text features of each draw (B, S, L, M, W)."""
        model, n = self.model, z.shape[1]
        text = model.text_of_draws(z.flatten(0, 1))  # (B S, C, D)
        features = model.both_features(below)
        logits = tuple(model.logits(f.repeat_interleave(n, dim=0), text) for f in features)
        image = features[0], model.unit(frozen)
        labels = label.repeat_interleave(n)
        return mmrl_loss(self.node, labels, logits, image, (text, self.teacher))
