"""A dataset's class prompts as a shared prefix with gaps for learned vectors, and a suffix for each class.

`[SOS] gap words gap … | name . [EOT]`: what is left of the bar is the same for all classes, and CLIP.encode_prompts
runs it once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


def attribute_words(cfg) -> tuple[str, ...]:
    """The attribute words of the run, 1 to 3: TRAINER.ATPROMPT's own, or the dataset's (ATT_NUM 0).

    Raises: UsageError if there are none.
    """
    node = cfg.TRAINER.ATPROMPT
    if node.ATT_NUM == 0:
        name = cfg.DATASET.NAME
        words = SHAPES_ATTRIBUTES if name.startswith("Shapes") else ATTRIBUTES.get(name, ())
    else:
        words = (node.ATT1_TEXT, node.ATT2_TEXT, node.ATT3_TEXT)[: node.ATT_NUM]
    if not words or "none" in words or not 0 <= node.ATT_NUM <= 3:
        raise UsageError(
            f"TRAINER.ATPROMPT.ATT_NUM {node.ATT_NUM}: {cfg.DATASET.NAME} has no attributes of its own here; "
            "give ATT_NUM 1 to 3 and that many of ATT1_TEXT, ATT2_TEXT, ATT3_TEXT"
        )
    return tuple(words)


class PromptText(nn.Module):
    """Tokenised prompts of C classes.

    Args:
        clip_model: whose token embedding is used.
        classnames: C names.
        layout: the prefix behind SOS, words and gaps in order.

    Attributes:
        eot: (C,) index of the end token in the suffix.
        where: name of a gap -> its slice of the prefix, SOS at 0.

    Raises: UsageError if a prompt has more tokens than the text tower takes.
    """

    def __init__(self, clip_model: CLIP, classnames: Sequence[str], layout: Sequence[str | Gap]):
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
            elif tokens := _tokenizer.encode(piece):
                length = self._add_words(f"words{i}", embedded(tokens), length)

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
