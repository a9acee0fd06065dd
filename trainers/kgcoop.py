"""KgCoOp (Yao et al., CVPR 2023): CoOp whose text features stay near hand-crafted ones."""

from collections.abc import Mapping
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .base import CustomCLIP
from .coop import CoOp
from .prompt_text import hand_crafted_features, zero_shot_template

# Dataset -> the teacher's template, where it is not zero-shot CLIP's (prompt_text.py).
TEACHER = {"DescribableTextures": "a photo of a {}, a type of texture."}


def add_config(cfg: CfgNode) -> None:
    """N_CTX, CTX_INIT and PREC are CoOp's."""
    cfg.TRAINER.setdefault("COOP", CfgNode()).W = 8.0  # weight of the regulariser


def loss_near_teacher(
    model: CustomCLIP, image: Tensor, label: Tensor, *, teacher: Tensor, weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy + weight · (1 − mean over classes of cos(text, teacher)).

    Eq. 4's ‖w − w′‖² is 2 (1 − cos) for unit vectors. As in the published code, `weight` multiplies
    1 − cos, half of that.

    Args:
        teacher: (C, D), unit length.
    """
    text = model.text_features()
    logits = model.logits(model.image_features(image), text)
    away = 1 - (text * teacher).sum(dim=-1).mean()
    return F.cross_entropy(logits, label) + weight * away, {"away": away.detach()}


@TRAINER_REGISTRY.register()
class KgCoOp(CoOp):
    frozen_image_tower = graphed = divisible = takes_attributes = True

    @cached_property
    def teacher(self) -> Tensor:
        """(C, D), unit length, computed when training begins."""
        template = zero_shot_template(self.cfg, TEACHER)
        return hand_crafted_features(self.model.clip, self.classnames, [template])

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return loss_near_teacher(self.model, image, label, teacher=self.teacher, weight=self.node.W)

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without what upstream's files hold and nothing uses."""
        unused = "bias_vectors", "meta_net."
        return {k: v for k, v in state_dict.items() if not k.startswith(unused)}
