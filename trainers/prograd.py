"""ProGrad (Zhu et al., ICCV 2023): CoOp that takes no step against what zero-shot CLIP knows."""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import ranks
from dassl.utils.errors import UsageError

from .coop import CoOp
from .prompt_text import hand_crafted_features, zero_shot_template


def add_config(cfg: CfgNode) -> None:
    """N_CTX, CTX_INIT and PREC are CoOp's."""
    node = cfg.LOSS = CfgNode()
    node.NAME = "prograd"
    node.T = 1.0  # temperature of the KL divergence
    node.LAMBDA = 1.0  # how much of the conflicting part is removed


def without_conflict(task: Tensor, general: Tensor, amount: float) -> Tensor:
    """The gradient of the task, without its part against the general direction (eq. 5)."""
    along = (task * general).sum()
    length = (general * general).sum().clamp_min(torch.finfo(general.dtype).tiny)
    against = along.clamp(max=0) / length
    return task - amount * against * general


@TRAINER_REGISTRY.register()
class ProGrad(CoOp):
    """Has two backward passes, so its steps are not captured (`graphed`)."""

    frozen_image_tower = divisible = takes_attributes = True
    more_config = ("LOSS",)

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if cfg.LOSS.NAME != "prograd":
            raise UsageError(f"LOSS.NAME {cfg.LOSS.NAME!r}: ProGrad has prograd only")
        if cfg.LOSS.T <= 0:
            raise UsageError(f"LOSS.T {cfg.LOSS.T}: must be above 0")

    @cached_property
    def teacher(self) -> Tensor:
        """(C, D), unit length, computed when training begins."""
        template = zero_shot_template(self.cfg)
        return hand_crafted_features(self.model.clip, self.classnames, [template])

    def losses(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and T² · the cross-entropy to zero-shot CLIP at temperature T.

        The log calls them xe_loss and, as upstream, kl_loss. KL(zero-shot ‖ prompt) is smaller by
        zero-shot CLIP's entropy, which has no gradient.
        """
        features, t = self.model.image_features(image), self.cfg.LOSS.T
        logits = self.model.logits(features, self.model.text_features())
        zero_shot = F.softmax(self.model.logits(features, self.teacher) / t, dim=-1)
        return F.cross_entropy(logits, label), t * t * F.cross_entropy(logits / t, zero_shot)

    def gradients(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        with self.autocast():
            xe_loss, kl_loss = self.losses(image, label)
        params = [p for p in self.model.parameters() if p.requires_grad]
        general = torch.autograd.grad(
            self.scaled(kl_loss), params, retain_graph=True, allow_unused=True
        )
        task = torch.autograd.grad(self.scaled(xe_loss), params, allow_unused=True)
        # Of the whole batch first: what is against what in a part is not what is so in the whole.
        task, general = ranks.mean(task), ranks.mean(general)
        for p, of_task, of_general in zip(params, task, general, strict=True):
            unused = of_task is None
            p.grad = None if unused else without_conflict(of_task, of_general, self.cfg.LOSS.LAMBDA)
        return {"xe_loss": xe_loss.detach(), "kl_loss": kl_loss.detach()}
