"""MaPLe (Khattak et al., CVPR 2023): deep prompts in both towers, the image tower's made from the text tower's.

With TRAINER.ATPROMPT.USE_ATPROMPT, the text prompt also has ATPrompt's attributes (Li et al., 2024).
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .base import PromptTrainer
from .prompt_text import Gap, PromptText, attribute_layout, attribute_words, initial_ctx, sliced_as_upstream


def add_config(cfg: CfgNode) -> None:
    cfg.TRAINER.MAPLE = CfgNode()
    cfg.TRAINER.MAPLE.N_CTX = 2
    cfg.TRAINER.MAPLE.CTX_INIT = "a photo of a"  # "": random
    cfg.TRAINER.MAPLE.PREC = "fp16"  # fp16, bf16, fp32, amp
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = 9  # blocks that get prompts, the input counted as the first


class MultiModalPromptLearner(nn.Module):
    """The learned parameters, under the family's names, and the prompts made of them.

    Args:
        node: has N_CTX, CTX_INIT and PROMPT_DEPTH.
        att: TRAINER.ATPROMPT.
        attributes: attribute words, none for plain MaPLe.
    """

    def __init__(
        self,
        node: CfgNode,
        att: CfgNode,
        clip_model: CLIP,
        classnames: list[str],
        attributes: tuple[str, ...] = (),
    ):
        super().__init__()
        layers = min(clip_model.transformer.layers, clip_model.visual.transformer.layers)
        if not 1 <= node.PROMPT_DEPTH <= layers:
            raise UsageError(f"PROMPT_DEPTH {node.PROMPT_DEPTH}: this CLIP's towers allow 1 to {layers}")
        width, vision_width = clip_model.transformer.width, clip_model.visual.transformer.width
        init = _tokenizer.encode(node.CTX_INIT.replace("_", " "))
        self.ctx = nn.Parameter(initial_ctx(node.N_CTX, init, clip_model))
        if attributes:
            for i, length in enumerate((att.N_ATT1, att.N_ATT2, att.N_ATT3), start=1):
                setattr(self, f"ctx_att{i}", nn.Parameter(torch.empty(length, width).normal_(std=0.01)))
        layout = [*attribute_layout(att, attributes), Gap("ctx", node.N_CTX)]
        if att.UPSTREAM_SLICING:
            layout = sliced_as_upstream(layout)
        # What CTX_INIT says beyond N_CTX tokens stays, frozen, before the name.
        self.text = PromptText(clip_model, classnames, [*layout, init[node.N_CTX :]])

        self.proj = self.build_mapper(width, vision_width)
        deep = node.PROMPT_DEPTH - 1
        self.compound_prompts_text = nn.ParameterList(
            torch.empty(node.N_CTX, width).normal_(std=0.02) for _ in range(deep)
        )
        layer = nn.Linear(width, vision_width)
        self.compound_prompt_projections = nn.ModuleList(deepcopy(layer) for _ in range(deep))

    def build_mapper(self, width: int, vision_width: int) -> nn.Module:
        """F: a text prompt (…, width) to a visual prompt (…, vision width)."""
        return nn.Linear(width, vision_width)

    def vectors(self) -> dict[str, Tensor]:
        """What fills the gaps of the text prompt."""
        return {name: getattr(self, name) for name in self.text.where}

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        where = self.text.where["ctx"]
        deep = {i: (where, p[None, None]) for i, p in enumerate(self.compound_prompts_text, start=1)}
        vectors = self.vectors()
        return clip_model.encode_prompts(self.text.prefix(vectors), self.text.suffix(vectors), self.text.eot, deep)[0]

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """(B, D), not normalised."""
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        deep = {i: project(p)[None] for i, (project, p) in enumerate(pairs, start=1)}
        return clip_model.encode_image(image, self.proj(self.ctx)[None], deep)


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    model_name = "MultiModalPromptLearner"
    learner = MultiModalPromptLearner

    @property
    def node(self) -> CfgNode:
        return self.cfg.TRAINER.MAPLE

    def build_prompt_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        att = self.cfg.TRAINER.ATPROMPT
        return self.learner(self.node, att, clip_model, classnames, attribute_words(self.cfg))
