"""A dataset's class prompts as a shared prefix with gaps for learned vectors, and a suffix for each
class.

`[SOS] gap words gap … | name . [EOT]`: what is left of the bar is the same for all classes, and
clip/shared_prefix.py runs it once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP, Adapt
from clip.shared_prefix import Suffixes, encode_prompts
from dassl.utils.errors import UsageError

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


def zero_shot_template(cfg: CfgNode, instead: Mapping[str, str] = NOTHING) -> str:
    """The run's hand-crafted prompt with {} for the class: DATASET.TEMPLATE, or if it is empty the
    dataset's own.

    `instead` has the templates of a method that differ from zero-shot CLIP's.

    Raises: UsageError for a template without its one {}.
    """
    template = cfg.DATASET.get("TEMPLATE", "") or {**TEMPLATES, **instead}.get(
        cfg.DATASET.NAME, DEFAULT_TEMPLATE
    )
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise UsageError(
            f'DATASET.TEMPLATE "{template}" must have one {{}} for the class, as in "{DEFAULT_TEMPLATE}"'
        )
    return template


def spoken(classname: str) -> str:
    """A class name as prompts say it."""
    return classname.replace("_", " ")


def ctx_words(ctx_init: str | None) -> list[int]:
    """Token ids of CTX_INIT; none for a random start."""
    return _tokenizer.encode((ctx_init or "").replace("_", " "))


def initial_ctx(n_ctx: int, words: Sequence[int], clip_model: CLIP) -> Tensor:
    """(n_ctx, W) float32: the embeddings of the first of CTX_INIT's tokens, random where there are
    none.

    Raises: UsageError if there are fewer, or n_ctx is below 1.
    """
    if n_ctx < 1:
        raise UsageError(f"N_CTX {n_ctx}: must be 1 or more")
    if not words:
        return random_vectors(n_ctx, clip_model, 0.02)
    if len(words) < n_ctx:
        raise UsageError(
            f"CTX_INIT {_tokenizer.decode(words).strip()!r} has {len(words)} tokens, fewer than N_CTX {n_ctx}"
        )
    return clip_model.token_embedding.weight[words[:n_ctx]].detach().float().cpu()


def random_vectors(length: int, clip_model: CLIP, std: float) -> Tensor:
    """(length, W) float32 from N(0, std²), W the text tower's width."""
    return torch.empty(length, clip_model.transformer.width).normal_(std=std)


class PromptText(nn.Module):
    """Tokenised prompts of C classes: SOS and `before` for all of them, then `behind`, `ending` and
    EOT for each.

    Args:
        clip_model: whose token embedding is used.
        classnames: C names.
        before: gaps, and words as token ids, in order.
        behind: gaps and NAME, in order.
        ending: what a template says after the name.

    Attributes:
        suffixes: which of the T suffix tokens are whose.
        where: name of a gap in the prefix -> its slice, SOS at 0.

    Raises: UsageError if a prompt has more tokens than the text tower takes.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        before: Sequence[Gap | list[int]],
        behind: Sequence[Gap | str] = (NAME,),
        ending: str = ".",
    ):
        super().__init__()
        self.where: dict[str, slice] = {}
        prefix = [_tokenizer.sot_token_id]
        for piece in before:
            if isinstance(piece, Gap):
                self.where[piece.name] = slice(len(prefix), len(prefix) + piece.length)
            prefix += [0] * piece.length if isinstance(piece, Gap) else piece

        tokens, starts = zip(
            *(suffix_tokens(name, behind, ending) for name in classnames), strict=True
        )
        lengths = [len(t) for t in tokens]
        if len(prefix) + max(lengths) > clip_model.context_length:
            name = classnames[lengths.index(max(lengths))]
            raise UsageError(
                f"the prompt of class {name!r} has {len(prefix) + max(lengths)} tokens and CLIP reads "
                f"{clip_model.context_length}: shorten the name, or the context (N_CTX, N_ATT, CTX_INIT)"
            )
        device, embed = clip_model.token_embedding.weight.device, clip_model.token_embedding
        self.suffixes = Suffixes(lengths, device)
        suffix = [token for of_class in tokens for token in of_class]
        self.register_buffer(
            "prefix_words", embed(torch.tensor(prefix, device=device)).detach(), persistent=False
        )
        self.register_buffer(
            "suffix_words", embed(torch.tensor(suffix, device=device)).detach(), persistent=False
        )
        first = (self.suffixes.last + 1 - torch.tensor(lengths, device=device)).tolist()
        self.in_suffix = [piece.name for piece in behind if isinstance(piece, Gap) and piece.length]
        for piece in behind:
            if isinstance(piece, Gap) and piece.length:
                at = [
                    [f + start[piece.name] + i for i in range(piece.length)]
                    for f, start in zip(first, starts, strict=True)
                ]
                self.register_buffer(
                    f"places_{piece.name}", torch.tensor(at, device=device), persistent=False
                )

    def prefix(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(G, P, W): the words, and in the gaps the given vectors, each (length, W), or (G, length,
        W)."""
        groups = max(
            (len(vectors[name]) for name in self.where if vectors[name].dim() == 3), default=1
        )
        prefix = self.prefix_words.repeat(groups, 1, 1)
        for name, where in self.where.items():
            prefix[:, where] = vectors[name]
        return prefix

    def suffix(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(T, W): the words, and in the gaps the given vectors, each (length, W), or (C, length,
        W)."""
        if not self.in_suffix:
            return self.suffix_words
        suffix = self.suffix_words.clone()
        for name in self.in_suffix:
            suffix[getattr(self, f"places_{name}")] = vectors[name]
        return suffix

    def encode(
        self,
        clip_model: CLIP,
        vectors: Mapping[str, Tensor] = NOTHING,
        deep: Mapping[int, tuple[slice, Tensor]] = NOTHING,
        adapt: Adapt = NOTHING,
    ) -> Tensor:
        """(G, C, D), not normalised: encode_prompts of the prompts with these vectors in the gaps."""
        prefix, suffix = self.prefix(vectors), self.suffix(vectors)
        return encode_prompts(clip_model, prefix, suffix, self.suffixes, deep, adapt)


def suffix_tokens(
    classname: str, behind: Sequence[Gap | str], ending: str
) -> tuple[list[int], dict[str, int]]:
    """Token ids of a class's suffix, 0 in its gaps, and where the gaps begin.

    Name and ending are tokenised together, as the family does: a name that ends in ")" gives the
        one token ").",
    which then stands before a gap behind the name.
    """
    tokens = _tokenizer.encode(spoken(classname) + ending)
    length = len(_tokenizer.encode(spoken(classname)))
    result: list[int] = []
    starts: dict[str, int] = {}
    for piece in behind:
        if isinstance(piece, Gap):
            starts[piece.name] = len(result)
        result += [0] * piece.length if isinstance(piece, Gap) else tokens[:length]
    return [*result, *tokens[length:], _tokenizer.eot_token_id], starts


@torch.no_grad()
def hand_crafted_features(
    clip_model: CLIP,
    classnames: Sequence[str],
    templates: Sequence[str],
    each_normalized: bool = True,
) -> Tensor:
    """(C, D) float32, unit length: frozen CLIP's text features of the classes, averaged over
    templates. In the types of its weights, also under amp: what is computed once need not be fast.

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
