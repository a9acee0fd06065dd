"""TCP (Yao et al., CVPR 2024): KgCoOp, with tokens made of each class's feature in ctx's place.

They replace ctx deep in the text tower, at the input of block LAYER.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP, QuickGELU
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .coop import CoOp, PromptLearner
from .frozen_clip import check_depth
from .kgcoop import loss_near_teacher
from .prompt_text import Gap, PromptText, hand_crafted_features, zero_shot_template

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
    """N_CTX, CTX_INIT and PREC are CoOp's; of KgCoOp's W, 1 is the only value."""
    node = cfg.TRAINER.TCP = CfgNode()
    node.LAYER = 8  # the block, counted from 0, at whose input the class's tokens replace ctx
    node.KG_WEIGHT = 8.0  # of KgCoOp's regulariser


class ClassAwarePromptLearner(PromptLearner):
    """`meta_net` makes of each class's feature (D) as many tokens (W) as ctx has.

    Args:
        template: what follows ctx, {} for the class's name.
        layer: the block at whose input they replace ctx.
        class_features: (C, D), unit length.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int,
        words: Sequence[int],
        *,
        template: str,
        layer: int,
        class_features: Tensor,
    ):
        super().__init__(clip_model, classnames, n_ctx, words)
        before, ending = template.split("{}")
        prefix = [Gap("ctx", n_ctx), _tokenizer.encode(before)]
        self.text = PromptText(clip_model, classnames, prefix, ending=ending)
        self.layer = layer
        self.register_buffer("class_features", class_features, persistent=False)
        dim, width = class_features.shape[1], clip_model.transformer.width
        first, second = nn.Linear(dim, dim // 4), nn.Linear(dim // 4, n_ctx * width)
        layers = OrderedDict(linear1=first, relu=QuickGELU(), linear2=second)
        self.meta_net = nn.Sequential(layers)

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        tokens = self.meta_net(self.class_features).unflatten(1, self.ctx.shape)  # (C, N, W)
        deep = {self.layer: (self.text.where["ctx"], tokens[None])}
        return self.text.encode(clip_model, self.vectors(), deep, shared=True)[0]


@TRAINER_REGISTRY.register()
class TCP(CoOp):
    frozen_image_tower = graphed = divisible = True
    more_config = ("TCP",)

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.COOP.W != 1:
            why = "TCP's class tokens replace the context, which is W 1"
            raise UsageError(f"TRAINER.COOP.W {cfg.TRAINER.COOP.W}: {why}")

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        layer = self.cfg.TRAINER.TCP.LAYER
        check_depth("TRAINER.TCP.LAYER", layer, clip_model.transformer, first=0)
        template = zero_shot_template(self.cfg, TEACHER)
        self.teacher = hand_crafted_features(clip_model, classnames, [template])
        n_ctx, words = self.start()
        return ClassAwarePromptLearner(
            clip_model,
            classnames,
            n_ctx,
            words,
            template=TEMPLATES.get(self.cfg.DATASET.NAME, "{}."),
            layer=layer,
            class_features=self.teacher,
        )

    def build_optimizer(self, learner: nn.Module) -> torch.optim.Optimizer:
        """Adam with ε = 1e-3, as published."""
        optim = super().build_optimizer(learner)
        for group in optim.param_groups:
            if "eps" in group:
                group["eps"] = 1e-3
        return optim

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weight = self.cfg.TRAINER.TCP.KG_WEIGHT
        return loss_near_teacher(self.model, image, label, teacher=self.teacher, weight=weight)
