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


@dataclass(frozen=True)
class Gap:
    """A place in the prompt for `length` learned vectors."""

    name: str
    length: int


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


class PromptText(nn.Module):
    """Tokenised prompts of C classes.

    Args:
        clip_model: whose token embedding is used.
        classnames: C names.
        layout: the prefix behind SOS: gaps, and words as token ids, in order.

    Attributes:
        eot: (C,) index of the end token in the suffix.
        where: name of a gap -> its slice of the prefix, SOS at 0.

    Raises: UsageError if a prompt has more tokens than the text tower takes.
    """

    def __init__(self, clip_model: CLIP, classnames: Sequence[str], layout: Sequence[Gap | list[int]]):
        super().__init__()
        self.layout = list(layout)
        self.where: dict[str, slice] = {}
        self.words: list[str] = []
        embed = clip_model.token_embedding
        device = embed.weight.device

        def embedded(tokens: list[int]) -> Tensor:
            return embed(torch.tensor(tokens, device=device)).detach()

        length = self._add_words("sos", embedded([_tokenizer.sot_token_id]), 0)
        for i, piece in enumerate(layout):
            if isinstance(piece, Gap):
                self.where[piece.name] = slice(length, length + piece.length)
                length += piece.length
            elif piece:
                length = self._add_words(f"words{i}", embedded(piece), length)

        suffixes = [[*_tokenizer.encode(spoken(name) + "."), _tokenizer.eot_token_id] for name in classnames]
        longest = max(map(len, suffixes))
        if length + longest > clip_model.context_length:
            name = classnames[[len(s) for s in suffixes].index(longest)]
            raise UsageError(
                f"the prompt of class {name!r} has {length + longest} tokens ({length} of them before the name) and "
                f"CLIP reads {clip_model.context_length}: shorten the name, or the context (N_CTX, N_ATT, CTX_INIT)"
            )
        padded = [s + [0] * (longest - len(s)) for s in suffixes]
        self.register_buffer("suffix", embedded(padded), persistent=False)
        self.register_buffer("eot", torch.tensor([len(s) - 1 for s in suffixes], device=device), persistent=False)

    def _add_words(self, name: str, vectors: Tensor, start: int) -> int:
        self.register_buffer(name, vectors, persistent=False)
        self.words.append(name)
        self.where[name] = slice(start, start + len(vectors))
        return start + len(vectors)

    def prefix(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(1, P, W): the words, and in the gaps the given vectors, each (length, W)."""
        pieces = sorted(self.where.items(), key=lambda item: item[1].start)
        return torch.cat([getattr(self, n) if n in self.words else vectors[n] for n, _ in pieces]).unsqueeze(0)
