"""A dataset's class prompts as a shared prefix with gaps for learned vectors, and a suffix for each class.

`[SOS] gap words gap … | name . [EOT]`: what is left of the bar is the same for all classes, and CLIP.encode_prompts
runs it once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP
from dassl.utils.errors import UsageError

# What ATPrompt (Li et al., 2024) found for each dataset; DATASET.NAME -> attribute words.
ATTRIBUTES = {
    "ImageNet": ("color", "shape"),
    "ImageNetV2": ("color", "shape"),
    "ImageNetSketch": ("color", "shape"),
    "ImageNetA": ("color", "shape"),
    "ImageNetR": ("color", "shape"),
    "Caltech101": ("shape", "size"),
    "OxfordPets": ("playfulness", "energy"),
    "StanfordCars": ("luxury",),
    "OxfordFlowers": ("color", "habitat", "growth"),
    "Food101": ("flavor", "preparation"),
    "FGVCAircraft": ("design", "range"),
    "SUN397": ("function",),
    "DescribableTextures": ("pattern", "color", "design"),
    "EuroSAT": ("habitat",),
    "UCF101": ("precision",),
    "ImageFolder": ("color", "shape"),  # one's own images: ImageNet's, the most general, until others are given
}
SHAPES_ATTRIBUTES = ("color", "shape")

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


NAME = "name"  # where a class's name goes


@dataclass(frozen=True)
class Gap:
    """A place in the prompt for `length` learned vectors."""

    name: str
    length: int


def zero_shot_template(cfg: CfgNode) -> str:
    """The run's hand-crafted prompt with {} for the class: DATASET.TEMPLATE, or if it is empty the dataset's own.

    Raises: UsageError for a template without its one {}.
    """
    template = cfg.DATASET.get("TEMPLATE", "") or TEMPLATES.get(cfg.DATASET.NAME, DEFAULT_TEMPLATE)
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise UsageError(f'DATASET.TEMPLATE "{template}" must have one {{}} for the class, as in "{DEFAULT_TEMPLATE}"')
    return template


def spoken(classname: str) -> str:
    """A class name as prompts say it."""
    return classname.replace("_", " ")


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.ATPROMPT = CfgNode()
    node.USE_ATPROMPT = False
    node.N_ATT1 = node.N_ATT2 = node.N_ATT3 = 4  # vectors before each attribute word
    node.ATT_NUM = 0  # 0: the dataset's own attributes
    node.ATT1_TEXT = node.ATT2_TEXT = node.ATT3_TEXT = "none"
    # With ATT_NUM 0: whose attributes. "" is the run's own dataset, so a model tested elsewhere takes the target's
    # words, as upstream; the name of the dataset it was trained on keeps the source's.
    node.DATASET = ""
    node.UPSTREAM_SLICING = False  # the prompts of ATPrompt's published code, see sliced_as_upstream


def attribute_words(cfg: CfgNode) -> tuple[str, ...]:
    """The attribute words of the run: none without ATPrompt, else 1 to 3, given (ATT_NUM) or a dataset's.

    Raises: UsageError if there are none to take.
    """
    node = cfg.TRAINER.ATPROMPT
    if not node.USE_ATPROMPT:
        return ()
    name = node.DATASET or cfg.DATASET.NAME
    if node.ATT_NUM == 0:
        words = SHAPES_ATTRIBUTES if name.startswith("Shapes") else ATTRIBUTES.get(name, ())
    else:
        words = (node.ATT1_TEXT, node.ATT2_TEXT, node.ATT3_TEXT)[: node.ATT_NUM]
    if not words or "none" in words or not 0 <= node.ATT_NUM <= 3:
        raise UsageError(
            f"TRAINER.ATPROMPT.ATT_NUM {node.ATT_NUM}: {name} has no attributes here; "
            "give ATT_NUM 1 to 3 and that many of ATT1_TEXT, ATT2_TEXT, ATT3_TEXT"
        )
    return tuple(words)


def attribute_layout(node: CfgNode, words: Iterable[str]) -> list["Gap | list[int]"]:
    """A gap, named ctx_att1…3, before each attribute word."""
    layout: list[Gap | list[int]] = []
    for i, word in enumerate(words, start=1):
        layout += [Gap(f"ctx_att{i}", node[f"N_ATT{i}"]), _tokenizer.encode(word)]
    return layout


def sliced_as_upstream(layout: Sequence["Gap | list[int]"]) -> list["Gap | list[int]"]:
    """The layout that ATPrompt's published code really makes, which takes every attribute word for one token.

    It cuts the words out of the sentence with an "x" for each learned vector, at the places they would have then.
    Behind a word of several tokens it is off by the rest: it takes an "x" for the next word, and what is left over at
    the end goes before the name.
    """
    [x] = _tokenizer.encode("x")
    sentence = [t for piece in layout for t in ([x] * piece.length if isinstance(piece, Gap) else piece)]
    result: list[Gap | list[int]] = []
    at = 0
    for piece in layout:
        result.append(piece if isinstance(piece, Gap) else sentence[at : at + 1])
        at += piece.length if isinstance(piece, Gap) else 1
    return [*result, sentence[at:]]


def initial_ctx(n_ctx: int, words: Sequence[int], clip_model: CLIP) -> Tensor:
    """(n_ctx, W) float32: the embeddings of the first tokens of CTX_INIT, random where it is empty.

    Raises: UsageError if it has fewer tokens, or n_ctx is below 1.
    """
    if n_ctx < 1:
        raise UsageError(f"N_CTX {n_ctx}: must be 1 or more")
    if not words:
        return torch.empty(n_ctx, clip_model.transformer.width).normal_(std=0.02)
    if len(words) < n_ctx:
        raise UsageError(
            f"CTX_INIT {_tokenizer.decode(words).strip()!r} has {len(words)} tokens, fewer than N_CTX {n_ctx}"
        )
    return clip_model.token_embedding.weight[words[:n_ctx]].detach().float().cpu()


class PromptText(nn.Module):
    """Tokenised prompts of C classes: SOS and `before` for all of them, then `behind`, a full stop and EOT for each.

    Args:
        clip_model: whose token embedding is used.
        classnames: C names.
        before: gaps, and words as token ids, in order.
        behind: gaps and NAME, in order.

    Attributes:
        eot: (C,) index of the end token in the suffix.
        where: name of a gap in the prefix -> its slice, SOS at 0.
        places: name of a gap in the suffix -> its (C, length) positions there, which differ where it follows the name.

    Raises: UsageError if a prompt has more tokens than the text tower takes.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        before: Sequence[Gap | list[int]],
        behind: Sequence[Gap | str] = (NAME,),
    ):
        super().__init__()
        self.where: dict[str, slice] = {}
        prefix = [_tokenizer.sot_token_id]
        for piece in before:
            if isinstance(piece, Gap):
                self.where[piece.name] = slice(len(prefix), len(prefix) + piece.length)
            prefix += [0] * piece.length if isinstance(piece, Gap) else piece

        suffixes, starts = zip(*(suffix_tokens(name, behind) for name in classnames), strict=True)
        longest = max(map(len, suffixes))
        if len(prefix) + longest > clip_model.context_length:
            name = classnames[[len(s) for s in suffixes].index(longest)]
            raise UsageError(
                f"the prompt of class {name!r} has {len(prefix) + longest} tokens and CLIP reads "
                f"{clip_model.context_length}: shorten the name, or the context (N_CTX, N_ATT, CTX_INIT)"
            )
        device = clip_model.token_embedding.weight.device

        def constant(rows: list) -> Tensor:
            return torch.tensor(rows, device=device)

        embed = clip_model.token_embedding
        self.register_buffer("prefix_words", embed(constant(prefix)).detach(), persistent=False)
        padded = [[*s, *[0] * (longest - len(s))] for s in suffixes]
        self.register_buffer("suffix_words", embed(constant(padded)).detach(), persistent=False)
        self.register_buffer("eot", constant([len(s) - 1 for s in suffixes]), persistent=False)
        lengths = {piece.name: piece.length for piece in behind if isinstance(piece, Gap) and piece.length}
        for name, length in lengths.items():
            positions = [[start[name] + i for i in range(length)] for start in starts]
            self.register_buffer(f"places_{name}", constant(positions), persistent=False)
        self.places = {name: f"places_{name}" for name in lengths}

    def prefix(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(1, P, W): the words, and in the gaps the given vectors, each (length, W)."""
        prefix = self.prefix_words.clone()
        for name, where in self.where.items():
            prefix[where] = vectors[name]
        return prefix[None]

    def suffix(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(C, S, W): the words, and in the gaps the given vectors, each (length, W) or one for each class."""
        if not self.places:
            return self.suffix_words
        suffix, rows = self.suffix_words.clone(), torch.arange(len(self.eot), device=self.eot.device)[:, None]
        for name, places in self.places.items():
            suffix[rows, getattr(self, places)] = vectors[name]
        return suffix


def suffix_tokens(classname: str, behind: Sequence[Gap | str]) -> tuple[list[int], dict[str, int]]:
    """Token ids of a class's suffix, 0 in its gaps, and where the gaps begin.

    Name and full stop are tokenised together, as the family does: a name that ends in ")" gives the one token ").",
    which then stands before a gap behind the name.
    """
    tokens = _tokenizer.encode(spoken(classname) + ".")
    length = len(_tokenizer.encode(spoken(classname)))
    result: list[int] = []
    starts: dict[str, int] = {}
    for piece in behind:
        if isinstance(piece, Gap):
            starts[piece.name] = len(result)
        result += [0] * piece.length if isinstance(piece, Gap) else tokens[:length]
    return [*result, *tokens[length:], _tokenizer.eot_token_id], starts
