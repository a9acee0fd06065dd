"""CoOp (Zhou et al., IJCV 2022): the words around a class's name are learned vectors, shared or
each class's own."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .atprompt import attribute_layout
from .base import PromptTrainer
from .context import ContextLearner, ContextTrainer
from .prompt_text import NAME, Gap, PromptText, ctx_words


class AroundTheName(ContextLearner):
    """ctx (N_CTX, W), or (C, N_CTX, W) with CSC, of which the first n_first are before the name.

    What is before the name is the same for all classes unless it is class-specific: then it is in
    the suffix.
    """

    def __init__(
        self,
        own: bool,
        n_first: int,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int,
        words: Sequence[int],
        att: CfgNode,
        attributes: Sequence[str],
    ):
        super().__init__(clip_model, classnames, n_ctx, words, att, attributes)
        if own:
            self.ctx = nn.Parameter(torch.empty(len(classnames), *self.ctx.shape).normal_(std=0.02))
        self.n_first = n_first
        first, rest = Gap("first", n_first), Gap("rest", n_ctx - n_first)
        before, behind = ([], [first, NAME, rest]) if own else ([first], [NAME, rest])
        self.text = PromptText(
            clip_model, classnames, [*attribute_layout(att, attributes), *before], behind
        )

    def vectors(self) -> dict[str, Tensor]:
        parts = {
            "first": self.ctx[..., : self.n_first, :],
            "rest": self.ctx[..., self.n_first :, :],
        }
        return parts | {name: getattr(self, name) for name in self.text.where if name not in parts}


@TRAINER_REGISTRY.register()
class CoOp(ContextTrainer):
    frozen_image_tower = True

    def check_cfg(self, cfg: CfgNode) -> None:
        PromptTrainer.check_cfg(self, cfg)  # not ContextTrainer's, which refuses what CoOp has
        node = cfg.TRAINER.COOP
        if node.CLASS_TOKEN_POSITION not in ("end", "middle", "front"):
            raise UsageError(
                f"TRAINER.COOP.CLASS_TOKEN_POSITION {node.CLASS_TOKEN_POSITION!r}: choose from end, middle, front"
            )
        if cfg.TRAINER.ATPROMPT.UPSTREAM_SLICING and (
            node.CSC or node.CLASS_TOKEN_POSITION != "end"
        ):
            raise UsageError(
                "TRAINER.ATPROMPT.UPSTREAM_SLICING: upstream has a shared context before the name only"
            )
        if node.CSC and ctx_words(node.CTX_INIT):
            raise UsageError(
                f"TRAINER.COOP.CSC True: CTX_INIT {node.CTX_INIT!r} is one start for all classes; "
                "set CTX_INIT '' (random) to give each class its own"
            )
        if node.CSC and cfg.DATASET.SUBSAMPLE_CLASSES == "new":
            raise UsageError(
                "DATASET.SUBSAMPLE_CLASSES new: with TRAINER.COOP.CSC True every class has a context of its own, so "
                "there is nothing for new classes"
            )

    def build_prompt_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        own, position = self.node.CSC, self.node.CLASS_TOKEN_POSITION
        if position == "end" and not own:
            return super().build_prompt_learner(clip_model, classnames)
        n_ctx, words = self.start()
        n_first = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        return AroundTheName(own, n_first, clip_model, classnames, n_ctx, words, *self.attributes())


@TRAINER_REGISTRY.register()
class CoOp_ATP(CoOp):
    """CoOp with ATPrompt's attributes (Li et al., 2024)."""

    frozen_image_tower = True
    always_attributes = True
