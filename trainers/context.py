"""A learned context in front of the class names: what CoOp and the methods that build on it have in
common."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP
from dassl.utils.errors import UsageError

from .atprompt import add_attributes, attribute_layout, attribute_words, sliced_as_upstream
from .base import PromptTrainer
from .prompt_text import Gap, PromptText, ctx_words, initial_ctx


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.COOP = CfgNode()
    node.N_CTX = 16
    node.CTX_INIT = None  # words to start from, which then also set N_CTX; none: random
    node.PREC = "fp16"  # fp16, bf16, fp32, amp
    node.CSC = False  # CoOp: class-specific context
    node.CLASS_TOKEN_POSITION = "end"  # CoOp: end, middle, front
    node.W = 8.0  # KgCoOp: weight of its regulariser


class ContextLearner(nn.Module):
    """`ctx` (N_CTX, W), and ATPrompt's `ctx_att1…3`, in prompts `[SOS] attributes ctx template
    [EOT]`.

    Args:
        words: token ids to start from, the first n_ctx of them; the rest stays, frozen, behind ctx.
            None: random.
        att: TRAINER.ATPROMPT.
        attributes: attribute words, of ATPrompt.
        template: what follows, {} for the class.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int,
        words: Sequence[int] = (),
        att: CfgNode | None = None,
        attributes: Sequence[str] = (),
        template: str = "{}.",
    ):
        super().__init__()
        self.ctx = nn.Parameter(initial_ctx(n_ctx, words, clip_model))
        layout: list[Gap | list[int]] = [Gap("ctx", n_ctx)]
        if attributes:
            add_attributes(self, att, clip_model)
            layout = [*attribute_layout(att, attributes), *layout]
            layout = sliced_as_upstream(layout) if att.UPSTREAM_SLICING else layout
        frozen, ending = template.split("{}")
        layout += [words[n_ctx:], _tokenizer.encode(frozen)]
        self.text = PromptText(clip_model, classnames, layout, ending=ending)

    def vectors(self) -> dict[str, Tensor]:
        """What fills the gaps of the text prompt."""
        return {name: getattr(self, name) for name in self.text.where}

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        return self.text.encode(clip_model, self.vectors())[0]

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """Images (B, 3, R, R), or kept features (B, D) of them -> (B, D), not normalised."""
        if image.dim() == 2:
            return image
        with torch.no_grad():
            return clip_model.encode_image(image)


class ContextTrainer(PromptTrainer):
    """Trains a shared context, TRAINER.COOP's."""

    graphed = True
    always_attributes = False

    @property
    def node(self) -> CfgNode:
        return self.cfg.TRAINER.COOP

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.COOP.CSC or cfg.TRAINER.COOP.CLASS_TOKEN_POSITION != "end":
            about = f"{type(self).__name__}'s context is shared by all classes and before the name"
            raise UsageError(f"TRAINER.COOP.CSC and CLASS_TOKEN_POSITION: {about}")

    def build_prompt_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        return ContextLearner(clip_model, classnames, *self.start(), *self.attributes())

    def start(self) -> tuple[int, list[int]]:
        """The context's length and the tokens to start from; as upstream, words win over N_CTX."""
        n_ctx, words = self.node.N_CTX, ctx_words(self.node.CTX_INIT)
        if words and len(words) != n_ctx:
            print(f"The context has CTX_INIT's {len(words)} tokens, not N_CTX {n_ctx}")
        return len(words) or n_ctx, words

    def attributes(self) -> tuple[CfgNode, tuple[str, ...]]:
        return self.cfg.TRAINER.ATPROMPT, attribute_words(self.cfg, self.always_attributes)

    def loss_near(
        self, teacher: Tensor, weight: float, image: Tensor, label: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy + weight · (1 − mean over classes of cos(text, teacher)); teacher is (C,
        D), unit length."""
        text = self.model.text_features()
        logits = self.model.logits(self.model.image_features(image), text)
        away = 1 - (text * teacher).sum(dim=-1).mean()
        return F.cross_entropy(logits, label) + weight * away, {"away": away.detach()}
