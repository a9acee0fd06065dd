"""TCP (Yao et al., CVPR 2024): deep in the text tower, tokens made of each class's own feature
replace the context."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP, QuickGELU
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .base import check_depth
from .context import ContextLearner, ContextTrainer
from .prompt_text import hand_crafted_features, zero_shot_template

# What follows ctx, where it is not "{}.".
TEMPLATES = {
    "OxfordPets": "{}, a type of pet.",
    "OxfordFlowers": "{}, a type of flower.",
    "FGVCAircraft": "{}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "StanfordCars": "{}, a type of car",  # with no full stop, as published
    "Food101": "{}, a type of food.",
    "UCF101": "person doing {}.",
}
TEACHER = {
    "FGVCAircraft": "a photo of an aircraft {}.",
    "DescribableTextures": "a photo of a {}, a type of texture.",
    "Food101": "a photo of a {}, a type of food.",
}


def add_config(cfg: CfgNode) -> None:
    cfg.TRAINER.TCP = CfgNode()
    cfg.TRAINER.TCP.LAYER = (
        8  # the block, counted from 0, at whose input the class's tokens take ctx's place
    )
    cfg.TRAINER.TCP.KG_WEIGHT = 8.0  # of KgCoOp's regulariser


class ClassAwareLearner(ContextLearner):
    """`meta_net` makes of each class's feature (D) as many tokens (W) as ctx has.

    Args:
        layer: the block at whose input they replace ctx.
        class_features: (C, D), unit length.
    """

    def __init__(
        self,
        layer: int,
        class_features: Tensor,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int,
        *args,
        **kwargs,
    ):
        super().__init__(clip_model, classnames, n_ctx, *args, **kwargs)
        self.layer = layer
        self.register_buffer("class_features", class_features, persistent=False)
        dim = class_features.shape[1]
        self.meta_net = nn.Sequential()
        self.meta_net.add_module("linear1", nn.Linear(dim, dim // 4))
        self.meta_net.add_module("relu", QuickGELU())
        self.meta_net.add_module(
            "linear2", nn.Linear(dim // 4, n_ctx * clip_model.transformer.width)
        )

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        tokens = self.meta_net(self.class_features).unflatten(1, self.ctx.shape)
        return self.text.encode(
            clip_model, self.vectors(), {self.layer: (self.text.where["ctx"], tokens[None])}
        )[0]


@TRAINER_REGISTRY.register()
class TCP(ContextTrainer):
    frozen_image_tower = True
    takes_attributes = False

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.COOP.W != 1:
            raise UsageError(
                f"TRAINER.COOP.W {cfg.TRAINER.COOP.W}: TCP's class tokens replace the context, which is W 1"
            )

    def build_prompt_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        layer, name = self.cfg.TRAINER.TCP.LAYER, self.cfg.DATASET.NAME
        check_depth("TRAINER.TCP.LAYER", layer, clip_model.transformer, first=0)
        self.teacher = hand_crafted_features(
            clip_model, classnames, [zero_shot_template(self.cfg, TEACHER)]
        )
        template = TEMPLATES.get(name, "{}.")
        return ClassAwareLearner(
            layer, self.teacher, clip_model, classnames, *self.start(), template=template
        )

    def build_optimizer(self, learner: nn.Module) -> torch.optim.Optimizer:
        """Adam with ε = 1e-3, as published."""
        optim = super().build_optimizer(learner)
        for group in optim.param_groups:
            if "eps" in group:
                group["eps"] = 1e-3
        return optim

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy + KG_WEIGHT · (1 − mean over classes of cos(text, teacher)), as
        KgCoOp's."""
        return self.loss_near(self.teacher, self.cfg.TRAINER.TCP.KG_WEIGHT, image, label)
