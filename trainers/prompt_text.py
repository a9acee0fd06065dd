"""A dataset's class prompts: a prefix with gaps for learned vectors, and a suffix for each class.

`[SOS] gap words gap … | name . [EOT]`: the part before the bar, the prefix, is the same for all
classes, and clip/shared_prefix.py runs it once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP, Adapt
from clip.shared_prefix import (
    DeepPrompts,
    Suffixes,
    encode_prompt_tokens,
    encode_prompts,
    prompt_tokens,
)
from dassl.utils import ranks
from dassl.utils.errors import UsageError

from .shared_classes import Share

# The hand-crafted prompts of zero-shot CLIP; every other dataset has DEFAULT_TEMPLATE.
TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}
DEFAULT_TEMPLATE = "a photo of a {}."
NOTHING: Mapping = {}
NAME = "name"  # where a class's name goes


@dataclass(frozen=True)
class Gap:
    """A place in the prompt for `length` learned vectors."""

    name: str
    length: int


Piece = Gap | Sequence[int]  # a gap, or words as token ids


def zero_shot_template(cfg: CfgNode, instead: Mapping[str, str] = NOTHING) -> str:
    """The hand-crafted prompt with {} for the class: DATASET.TEMPLATE, or else the dataset's own.

    Args:
        instead: dataset -> the template of a method, where it differs from zero-shot CLIP's.

    Raises: UsageError for a template without its one {}.
    """
    of_dataset = (TEMPLATES | dict(instead)).get(cfg.DATASET.NAME, DEFAULT_TEMPLATE)
    template = cfg.DATASET.get("TEMPLATE", "") or of_dataset
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        must = f'must have one {{}} for the class, as in "{DEFAULT_TEMPLATE}"'
        raise UsageError(f'DATASET.TEMPLATE "{template}" {must}')
    return template


def spoken(classname: str) -> str:
    """A class name as prompts say it."""
    return classname.replace("_", " ")


def ctx_words(ctx_init: str | None) -> list[int]:
    """Token ids of CTX_INIT; none for a random start."""
    return _tokenizer.encode(spoken(ctx_init or ""))


def check_length(n_ctx: int, words: Sequence[int]) -> None:
    """Raises UsageError for a context of no vectors, or of more than the words to start from."""
    if n_ctx < 1:
        raise UsageError(f"N_CTX {n_ctx}: must be 1 or more")
    if 0 < len(words) < n_ctx:
        init = f"CTX_INIT {_tokenizer.decode(words).strip()!r}"
        raise UsageError(f"{init} has {len(words)} tokens, fewer than N_CTX {n_ctx}")


class PromptText(nn.Module):
    """Tokenised prompts of C classes: `[SOS] before`, then for each class `behind ending [EOT]`.

    Shapes as in clip/shared_prefix.py: a prefix of P tokens, T tokens in all suffixes, width W, and
    G prefixes where a method has several (CoCoOp: one for each image), else G is 1.

    Args:
        clip_model: whose token embedding is used.
        classnames: C names.
        before: gaps, and words as token ids, in order; the same for all classes.
        behind: NAME and gaps, in order.
        ending: what a template says after the name.

    Attributes:
        suffixes: which of the T suffix tokens are whose.
        where: name of a gap in the prefix -> its slice, SOS at 0.
        places: name of a gap in the suffixes -> (C, length), which of the T tokens it takes.

    Raises: UsageError if a prompt has more tokens than the text tower takes.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        before: Sequence[Piece],
        behind: Sequence[Gap | str] = (NAME,),
        ending: str = ".",
    ):
        super().__init__()
        device = clip_model.token_embedding.weight.device
        self.where: dict[str, slice] = {}
        prefix = [_tokenizer.sot_token_id]
        for piece in before:
            if isinstance(piece, Gap):
                self.where[piece.name] = slice(len(prefix), len(prefix) + piece.length)
                prefix += [0] * piece.length
            else:
                prefix += piece

        suffix: list[int] = []  # of all classes, one behind the other
        lengths, starts = [], []  # of each class: its suffix's length, where its gaps begin
        for name in classnames:
            tokens, gaps = suffix_tokens(name, behind, ending)
            starts.append({gap: len(suffix) + at for gap, at in gaps.items()})
            lengths.append(len(tokens))
            suffix += tokens
        longest, most = len(prefix) + max(lengths), clip_model.context_length
        if longest > most:
            prompt = f"the prompt of class {classnames[lengths.index(max(lengths))]!r}"
            hint = "shorten the name, or the context (N_CTX, N_ATT, CTX_INIT)"
            raise UsageError(f"{prompt} has {longest} tokens and CLIP reads {most}: {hint}")

        self.suffixes, self.lengths = Suffixes(lengths, device), lengths
        self.share: Share | None = None  # of the classes, this process's
        self.places = {
            gap.name: torch.tensor(
                [[start[gap.name] + i for i in range(gap.length)] for start in starts],
                device=device,
            )
            for gap in behind
            if isinstance(gap, Gap) and gap.length
        }
        for name, tokens in ("prefix_words", prefix), ("suffix_words", suffix):
            words = clip_model.token_embedding(torch.tensor(tokens, device=device)).detach()
            self.register_buffer(name, words, persistent=False)  # (P, W) and (T, W)

    def prefix(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(G, P, W): the words, and the vectors, (length, W) or (G, length, W), in their gaps."""
        given = [vectors[name] for name in self.where]
        groups = max((v.shape[0] for v in given if v.dim() == 3), default=1)
        prefix = self.prefix_words.repeat(groups, 1, 1)
        for name, where in self.where.items():
            prefix[:, where] = vectors[name]
        return prefix

    def suffix(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(T, W): the words, and the vectors, (length, W) or (C, length, W), in their gaps."""
        if not self.places:
            return self.suffix_words
        suffix = self.suffix_words.clone()
        for name, places in self.places.items():
            suffix[places] = vectors[name]
        return suffix

    def encode(
        self,
        clip_model: CLIP,
        vectors: Mapping[str, Tensor] = NOTHING,
        deep: DeepPrompts = NOTHING,
        adapt: Adapt = NOTHING,
        shared: bool = False,
    ) -> Tensor:
        """(G, C, D), not normalised: encode_prompts with the vectors in their gaps.

        shared: these features are the same for all images, so processes may share the classes.
        """
        prefix, suffix = self.prefix(vectors), self.suffix(vectors)
        share = self.own_share() if shared and ranks.sharing_classes else None
        if share:
            suffix, deep = suffix[share.tokens], share.of_deep(deep)
            own = encode_prompts(clip_model, prefix, suffix, share.suffixes, deep, adapt)
            return share.gather(own)
        return encode_prompts(clip_model, prefix, suffix, self.suffixes, deep, adapt)

    def own_share(self) -> Share | None:
        """The classes that this process is to encode, None: all."""
        own = ranks.own_classes(self.suffixes.classes)
        if own and (not self.share or self.share.own != own):
            self.share = Share(self.lengths, own, self.suffixes.last.device)
        return self.share if own else None

    @torch.no_grad()
    def tokens(self, clip_model: CLIP, block: int) -> Tensor:
        """What reaches a block, (1, P + T, W), of prompts of words: nothing learned is in it."""
        words = self.prefix_words[None], self.suffix_words
        return prompt_tokens(clip_model, *words, self.suffixes, block)

    def encode_tokens(
        self,
        clip_model: CLIP,
        tokens: Tensor,
        block: int,
        deep: DeepPrompts,
        shared: bool = False,
    ) -> Tensor:
        """(G, C, D), not normalised: the rest of the text tower for what `tokens` gives."""
        p = len(self.prefix_words)
        share = self.own_share() if shared and ranks.sharing_classes else None
        if share:
            tokens = torch.cat([tokens[:, :p], tokens[:, p:][:, share.tokens]], dim=1)
            deep = share.of_deep(deep)
            own = encode_prompt_tokens(clip_model, tokens, p, share.suffixes, block, deep)
            return share.gather(own)
        return encode_prompt_tokens(clip_model, tokens, p, self.suffixes, block, deep)


def suffix_tokens(
    classname: str, behind: Sequence[Gap | str], ending: str
) -> tuple[list[int], dict[str, int]]:
    """Token ids of a class's suffix, 0 in its gaps, and where each gap begins.

    Name and ending are tokenised together, as in the family's code. So of a name that ends in ")"
    the last token is ").", and a gap behind the name then comes after the full stop.
    """
    tokens = _tokenizer.encode(spoken(classname) + ending)
    of_name = len(_tokenizer.encode(spoken(classname)))
    suffix: list[int] = []
    starts: dict[str, int] = {}
    for piece in behind:
        if isinstance(piece, Gap):
            starts[piece.name] = len(suffix)
            suffix += [0] * piece.length
        else:
            suffix += tokens[:of_name]
    return [*suffix, *tokens[of_name:], _tokenizer.eot_token_id], starts


@torch.no_grad()
def hand_crafted_features(
    clip_model: CLIP,
    classnames: Sequence[str],
    templates: Sequence[str],
    each_normalized: bool = True,
) -> Tensor:
    """(C, D) float32, unit length: frozen CLIP's features of the classes, averaged over templates.

    Without autocast, also under amp: it is computed once, so it need not be fast.

    Args:
        templates: each with one {} for the class.
        each_normalized: False averages the features as they are.
    """
    total = 0
    with torch.autocast(clip_model.logit_scale.device.type, enabled=False):
        for template in templates:
            before, ending = template.split("{}")
            text = PromptText(clip_model, classnames, [_tokenizer.encode(before)], ending=ending)
            features = text.encode(clip_model)[0].to(clip_model.logit_scale.dtype)
            total = total + (F.normalize(features, dim=-1) if each_normalized else features)
    return F.normalize(total, dim=-1)
