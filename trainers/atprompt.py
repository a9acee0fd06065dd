"""ATPrompt (Li et al., 2024): learned vectors before attribute words, in front of the context of
another method.

An option of the prompt text, TRAINER.ATPROMPT.USE_ATPROMPT, for CoOp, KgCoOp, ProGrad, CoCoOp,
MaPLe and P2C; the names CoOp_ATP, CoCoOp_ATP and MaPLe_ATP have it always.
"""

from collections.abc import Iterable, Sequence

from torch import nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP
from dassl.utils.errors import UsageError

from .prompt_text import Gap, random_vectors

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
    "ImageFolder": (
        "color",
        "shape",
    ),  # one's own images: ImageNet's, the most general, until others are given
}
SHAPES_ATTRIBUTES = ("color", "shape")


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.ATPROMPT = CfgNode()
    node.USE_ATPROMPT = False
    node.N_ATT1 = node.N_ATT2 = node.N_ATT3 = 4  # vectors before each attribute word
    node.ATT_NUM = 0  # 0: the dataset's own attributes
    node.ATT1_TEXT = node.ATT2_TEXT = node.ATT3_TEXT = "none"
    # With ATT_NUM 0: whose attributes. "" is the run's own dataset, so a model tested elsewhere
    # takes the target's words, as upstream; the name of the dataset it was trained on keeps the
    # source's.
    node.DATASET = ""
    node.UPSTREAM_SLICING = (
        False  # the prompts of ATPrompt's published code, see sliced_as_upstream
    )


def attribute_words(cfg: CfgNode, always: bool = False) -> tuple[str, ...]:
    """The attribute words of the run: none without ATPrompt, else 1 to 3, given (ATT_NUM) or a
    dataset's.

    Raises: UsageError if there are none to take, or a length that is none.
    """
    node = cfg.TRAINER.ATPROMPT
    if not (node.USE_ATPROMPT or always):
        return ()
    for key in ("N_ATT1", "N_ATT2", "N_ATT3"):
        if node[key] < 0:
            raise UsageError(f"TRAINER.ATPROMPT.{key} {node[key]}: must be 0 or more")
    name = node.DATASET or cfg.DATASET.NAME
    give = "give ATT_NUM 1 to 3 and that many of ATT1_TEXT, ATT2_TEXT, ATT3_TEXT"
    if node.ATT_NUM == 0:
        words = SHAPES_ATTRIBUTES if name.startswith("Shapes") else ATTRIBUTES.get(name)
        if not words:
            raise UsageError(f"TRAINER.ATPROMPT.ATT_NUM 0: {name} has no attributes here; {give}")
        return words
    words = (node.ATT1_TEXT, node.ATT2_TEXT, node.ATT3_TEXT)[: node.ATT_NUM]
    if not 1 <= node.ATT_NUM <= 3 or {"", "none"} & {(word or "").strip() for word in words}:
        raise UsageError(f"TRAINER.ATPROMPT.ATT_NUM {node.ATT_NUM}: {give}")
    return words


def attribute_layout(node: CfgNode, words: Iterable[str]) -> list[Gap | list[int]]:
    """A gap, named ctx_att1…3, before each attribute word."""
    layout: list[Gap | list[int]] = []
    for i, word in enumerate(words, start=1):
        layout += [Gap(f"ctx_att{i}", node[f"N_ATT{i}"]), _tokenizer.encode(word)]
    return layout


def sliced_as_upstream(layout: Sequence[Gap | list[int]]) -> list[Gap | list[int]]:
    """The layout that ATPrompt's published code really makes, which takes every attribute word for
    one token.

    It cuts the words out of the sentence with an "x" for each learned vector, at the places they
    would have then. Behind a word of several tokens it is off by the rest: it takes an "x" for the
    next word, and what is left over at the end goes before the name.
    """
    [x] = _tokenizer.encode("x")
    sentence = [
        t for piece in layout for t in ([x] * piece.length if isinstance(piece, Gap) else piece)
    ]
    result: list[Gap | list[int]] = []
    at = 0
    for piece in layout:
        result.append(piece if isinstance(piece, Gap) else sentence[at : at + 1])
        at += piece.length if isinstance(piece, Gap) else 1
    return [*result, sentence[at:]]


def add_attributes(learner: nn.Module, att: CfgNode, clip_model: CLIP) -> None:
    """Gives a prompt learner its vectors: ctx_att1…3, all three whatever their number in use."""
    for i in (1, 2, 3):
        setattr(
            learner, f"ctx_att{i}", nn.Parameter(random_vectors(att[f"N_ATT{i}"], clip_model, 0.01))
        )
