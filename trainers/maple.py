"""MaPLe (Khattak et al., CVPR 2023): deep text prompts, and image prompts projected from them.

P2C builds on this file.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY

from .base import CLIPTrainer
from .coop import PromptLearner
from .frozen_clip import check_depth
from .prompt_text import ctx_words


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.MAPLE = CfgNode()
    node.N_CTX = 2
    node.CTX_INIT = "a photo of a"  # tokens beyond N_CTX stay, frozen, behind ctx; "": random
    node.PREC = "fp16"  # fp16, bf16, fp32, tf32, amp
    node.PROMPT_DEPTH = 9  # blocks that get prompts; the first gets ctx, at its input


class MultiModalPromptLearner(PromptLearner):
    """CoOp's `ctx` at the text tower's input, and new learned prompts before each next block.

    The image tower's prompts are projections of these: of ctx by the mapper F (`proj`), of each
    deep prompt by a Linear of its own.

    Args:
        node: has N_CTX, CTX_INIT and PROMPT_DEPTH.
        att, attributes: TRAINER.ATPROMPT and its words; no words: without ATPrompt.
    """

    def __init__(
        self,
        node: CfgNode,
        clip_model: CLIP,
        classnames: Sequence[str],
        *,
        att: CfgNode | None = None,
        attributes: Sequence[str] = (),
    ):
        text, vision, n_ctx = clip_model.transformer, clip_model.visual.transformer, node.N_CTX
        check_depth("PROMPT_DEPTH", node.PROMPT_DEPTH, text, vision)
        words = ctx_words(node.CTX_INIT)
        super().__init__(clip_model, classnames, n_ctx, words, att=att, attributes=attributes)
        self.node = node
        self.proj = self.build_mapper(text.width, vision.width)
        deep = node.PROMPT_DEPTH - 1  # blocks behind the first
        self.compound_prompts_text = nn.ParameterList(
            torch.empty(n_ctx, text.width).normal_(std=0.02) for _ in range(deep)
        )
        layer = nn.Linear(text.width, vision.width)
        self.compound_prompt_projections = nn.ModuleList(deepcopy(layer) for _ in range(deep))

    def build_mapper(self, width: int, vision_width: int) -> nn.Module:
        """The mapper F (`proj`): text prompts (…, width) -> image prompts (…, vision_width)."""
        return nn.Linear(width, vision_width)

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        where = self.text.where["ctx"]  # positions of ctx, where the deep prompts go as well
        prompts = enumerate(self.compound_prompts_text, start=1)
        deep = {block: (where, p[None, None]) for block, p in prompts}  # (1, 1, N, W)
        return self.text.encode(clip_model, self.vectors(), deep, shared=True)[0]

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D), not normalised."""
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        deep = {block: project(p)[None] for block, (project, p) in enumerate(pairs, start=1)}
        return clip_model.encode_image(image, self.proj(self.ctx)[None], deep)  # (1, N, Wv)


@TRAINER_REGISTRY.register()
class MaPLe(CLIPTrainer):
    """The loss is the cross-entropy of base.py."""

    node_name = "MAPLE"
    class_rows = ()
    model_name = "MultiModalPromptLearner"
    key_prefix = "prompt_learner"  # upstream's file is of the whole model
    graphed = divisible = takes_attributes = True
    learner_class = MultiModalPromptLearner

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        return self.learner_class(
            self.node,
            clip_model,
            classnames,
            att=self.cfg.TRAINER.ATPROMPT,
            attributes=self.attributes(),
        )

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The learner's part: upstream's files hold the whole CLIP too."""
        learned = {k: v for k, v in state_dict.items() if k.startswith("prompt_learner.")}
        return learned or dict(state_dict)


@TRAINER_REGISTRY.register()
class MaPLe_ATP(MaPLe):
    """MaPLe with ATPrompt's attributes (Li et al., 2024)."""

    graphed = divisible = takes_attributes = always_attributes = True
