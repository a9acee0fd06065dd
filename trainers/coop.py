"""CoOp (Zhou et al., IJCV 2022): the words around a class's name are learned vectors, shared or each class's own."""

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UsageError

from .base import PromptTrainer
from .prompt_text import NAME, Gap, PromptText, initial_ctx


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.COOP = CfgNode()
    node.N_CTX = 16
    node.CSC = False  # class-specific context
    node.CTX_INIT = ""  # words to start from, which then also set N_CTX and make the context shared; "": random
    node.PREC = "fp16"  # fp16, bf16, fp32, amp
    node.CLASS_TOKEN_POSITION = "end"  # end, middle, front


class PromptLearner(nn.Module):
    """`ctx` (N_CTX, W), or (C, N_CTX, W) with CSC, under upstream's name.

    The part of ctx before the name is the same for all classes unless it is class-specific: then it is in the suffix.
    """

    def __init__(self, node: CfgNode, clip_model: CLIP, classnames: list[str]):
        super().__init__()
        words = _tokenizer.encode(node.CTX_INIT.replace("_", " "))
        n_ctx, own = len(words) or node.N_CTX, node.CSC and not words
        ctx = initial_ctx(n_ctx, words, clip_model)
        if own:
            ctx = torch.empty(len(classnames), *ctx.shape).normal_(std=0.02)
        self.ctx = nn.Parameter(ctx)
        self.n_first = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[node.CLASS_TOKEN_POSITION]
        first, rest = Gap("first", self.n_first), Gap("rest", n_ctx - self.n_first)
        before, behind = ([], [first, NAME, rest]) if own else ([first], [NAME, rest])
        self.text = PromptText(clip_model, classnames, before, behind)

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        vectors = {"first": self.ctx[..., : self.n_first, :], "rest": self.ctx[..., self.n_first :, :]}
        return clip_model.encode_prompts(self.text.prefix(vectors), self.text.suffix(vectors), self.text.eot)[0]

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """(B, D), not normalised."""
        with torch.no_grad():
            return clip_model.encode_image(image)


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    model_name = "prompt_learner"

    @property
    def node(self) -> CfgNode:
        return self.cfg.TRAINER.COOP

    def check_cfg(self, cfg: CfgNode) -> None:
        position = cfg.TRAINER.COOP.CLASS_TOKEN_POSITION
        if position not in ("end", "middle", "front"):
            raise UsageError(f"TRAINER.COOP.CLASS_TOKEN_POSITION {position!r}: choose from end, middle, front")

    def build_prompt_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        return PromptLearner(self.node, clip_model, classnames)
