"""Deep prompts in both towers, the image tower's made from the text tower's: what MaPLe and P2C
have in common."""

from collections.abc import Sequence
from copy import deepcopy

from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP

from .atprompt import attribute_words
from .base import PromptTrainer, check_depth
from .context import ContextLearner
from .prompt_text import ctx_words, random_vectors


class MultiModalPromptLearner(ContextLearner):
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
        classnames: Sequence[str],
        attributes: Sequence[str] = (),
    ):
        check_depth(
            "PROMPT_DEPTH", node.PROMPT_DEPTH, clip_model.transformer, clip_model.visual.transformer
        )
        super().__init__(
            clip_model, classnames, node.N_CTX, ctx_words(node.CTX_INIT), att, attributes
        )
        width, vision_width = clip_model.transformer.width, clip_model.visual.transformer.width
        self.proj = self.build_mapper(width, vision_width)
        deep = node.PROMPT_DEPTH - 1
        self.compound_prompts_text = nn.ParameterList(
            random_vectors(node.N_CTX, clip_model, 0.02) for _ in range(deep)
        )
        layer = nn.Linear(width, vision_width)
        self.compound_prompt_projections = nn.ModuleList(deepcopy(layer) for _ in range(deep))

    def build_mapper(self, width: int, vision_width: int) -> nn.Module:
        """F: a text prompt (…, width) to a visual prompt (…, vision width)."""
        return nn.Linear(width, vision_width)

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        where = self.text.where["ctx"]
        deep = {
            i: (where, p[None, None]) for i, p in enumerate(self.compound_prompts_text, start=1)
        }
        return self.text.encode(clip_model, self.vectors(), deep)[0]

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """(B, D), not normalised."""
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        deep = {i: project(p)[None] for i, (project, p) in enumerate(pairs, start=1)}
        return clip_model.encode_image(image, self.proj(self.ctx)[None], deep)


class MultiModalTrainer(PromptTrainer):
    model_name = "MultiModalPromptLearner"
    saves_prefixed = True
    graphed = True
    learner = MultiModalPromptLearner
    always_attributes = False

    def build_prompt_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        attributes = attribute_words(self.cfg, self.always_attributes)
        return self.learner(
            self.node, self.cfg.TRAINER.ATPROMPT, clip_model, classnames, attributes
        )
