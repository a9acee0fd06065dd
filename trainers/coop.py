"""CoOp (Zhou et al., IJCV 2022): the words before a class's name are learned vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .atprompt import add_attributes, sliced_as_upstream
from .base import CLIPTrainer
from .features import says
from .prompt_text import NAME, Gap, PromptText, check_length, ctx_words


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.setdefault("COOP", CfgNode())
    node.N_CTX = 16
    node.CTX_INIT = None  # words to start from, which then also set N_CTX; none: random
    node.PREC = "fp16"  # fp16, bf16, fp32, tf32, amp
    node.CSC = False  # class-specific context: each class has its own
    node.CLASS_TOKEN_POSITION = "end"  # of the name: end, middle, front


class PromptLearner(nn.Module):
    """Learns `ctx`, the N context vectors of the prompts `[SOS] ctx name . [EOT]`.

    ctx is (N, W), or with CSC (C, N, W): N vectors of width W for each of C classes. With ATPrompt
    ctx_att1…3 and the attribute words stand before it.

    Args:
        n_ctx: N.
        words: token ids to start from; those beyond the first N stay, frozen, behind ctx. None:
            a random start.
        csc, position: TRAINER.COOP's CSC and CLASS_TOKEN_POSITION.
        att, attributes: TRAINER.ATPROMPT and its words; no words: without ATPrompt.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int,
        words: Sequence[int] = (),
        *,
        csc: bool = False,
        position: str = "end",
        att: CfgNode | None = None,
        attributes: Sequence[str] = (),
    ):
        super().__init__()
        check_length(n_ctx, words)
        if words:
            ctx = clip_model.token_embedding.weight[words[:n_ctx]].detach().float().cpu()
        else:
            ctx = torch.empty(n_ctx, clip_model.transformer.width).normal_(std=0.02)
        self.ctx = nn.Parameter(ctx)  # (N, W)
        prefix = add_attributes(self, clip_model, att, attributes)  # ctx_att1…3 and their words
        if csc:  # drawn last: a seed gives the attributes' vectors that it gives without CSC
            ctx = torch.empty(len(classnames), *ctx.shape).normal_(std=0.02)
            self.ctx = nn.Parameter(ctx)  # (C, N, W)

        # CLASS_TOKEN_POSITION: n_before vectors of ctx go before the name, the others behind it.
        self.n_before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        before, behind = Gap("ctx", self.n_before), Gap("ctx_behind", n_ctx - self.n_before)
        if csc:
            suffix = [before, NAME, behind]
        else:
            prefix, suffix = [*prefix, before], [NAME, behind]
        if attributes and att.UPSTREAM_SLICING:
            prefix = sliced_as_upstream(prefix)
        self.text = PromptText(clip_model, classnames, [*prefix, words[n_ctx:]], suffix)

    def vectors(self) -> dict[str, Tensor]:
        """{gap: the learned vectors that go into it}, in the order of the prompt."""
        att = {"ctx_att1": self.ctx_att1, "ctx_att2": self.ctx_att2, "ctx_att3": self.ctx_att3}
        att = {name: vectors for name, vectors in att.items() if name in self.text.where}
        n = self.n_before
        if n == self.ctx.shape[-2]:
            return att | {"ctx": self.ctx}
        return att | {"ctx": self.ctx[..., :n, :], "ctx_behind": self.ctx[..., n:, :]}

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised."""
        return self.text.encode(clip_model, self.vectors(), shared=True)[0]

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """Images (B, 3, R, R), or kept features (B, D) of them -> (B, D), not normalised."""
        if image.dim() == 2:
            return image
        with torch.no_grad():
            return clip_model.encode_image(image)


@TRAINER_REGISTRY.register()
class CoOp(CLIPTrainer):
    """CoOp's trainer; the loss, cross-entropy, and the steps are CLIPTrainer's in base.py."""

    node_name = "COOP"
    model_name = "prompt_learner"
    frozen_image_tower = graphed = divisible = takes_attributes = True
    # CSC and CLASS_TOKEN_POSITION. Not inherited (see `says`): KgCoOp and others refuse both.
    takes_csc = True

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, position = cfg.TRAINER.COOP, cfg.TRAINER.COOP.CLASS_TOKEN_POSITION
        usual = not node.CSC and position == "end"
        if not usual and not says(self, "takes_csc"):
            whose = f"{type(self).__name__}'s context is shared by all classes and before the name"
            raise UsageError(f"TRAINER.COOP.CSC and CLASS_TOKEN_POSITION: {whose}")
        if position not in ("end", "middle", "front"):
            key = "TRAINER.COOP.CLASS_TOKEN_POSITION"
            raise UsageError(f"{key} {position!r}: choose from end, middle, front")
        if not usual and cfg.TRAINER.ATPROMPT.UPSTREAM_SLICING:
            key = "TRAINER.ATPROMPT.UPSTREAM_SLICING"
            raise UsageError(f"{key}: upstream has a shared context before the name only")
        if node.CSC and ctx_words(node.CTX_INIT):
            line = f"TRAINER.COOP.CSC True: CTX_INIT {node.CTX_INIT!r} is one start for all classes"
            raise UsageError(f"{line}; set CTX_INIT '' (random) to give each class its own")
        if node.CSC and cfg.DATASET.SUBSAMPLE_CLASSES == "new":
            line = "with TRAINER.COOP.CSC True every class has a context of its own, so there is"
            raise UsageError(f"DATASET.SUBSAMPLE_CLASSES new: {line} nothing for new classes")

    @property
    def class_rows(self) -> tuple[str, ...]:
        return ("ctx",) if self.cfg.TRAINER.COOP.CSC else ()

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        n_ctx, words = self.start()
        return PromptLearner(
            clip_model,
            classnames,
            n_ctx,
            words,
            csc=self.node.CSC,
            position=self.node.CLASS_TOKEN_POSITION,
            att=self.cfg.TRAINER.ATPROMPT,
            attributes=self.attributes(),
        )

    def start(self) -> tuple[int, list[int]]:
        """N, and the token ids ctx starts from: as upstream, CTX_INIT's words set N if given."""
        n_ctx, words = self.node.N_CTX, ctx_words(self.node.CTX_INIT)
        if words and len(words) != n_ctx:
            print(f"The context has CTX_INIT's {len(words)} tokens, not N_CTX {n_ctx}")
        return len(words) or n_ctx, words


@TRAINER_REGISTRY.register()
class CoOp_ATP(CoOp):
    """CoOp with ATPrompt's attributes (Li et al., 2024)."""

    frozen_image_tower = graphed = divisible = True
    takes_attributes = takes_csc = always_attributes = True
