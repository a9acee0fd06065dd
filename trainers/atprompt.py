"""ATPrompt (Li et al., 2024): learned vectors before attribute words, in front of the context.

An option, TRAINER.ATPROMPT.USE_ATPROMPT, of CoOp, KgCoOp, ProGrad, CoCoOp, MaPLe and P2C; the
names CoOp_ATP, CoCoOp_ATP and MaPLe_ATP have it always.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP
from dassl.utils.errors import UsageError

from .prompt_text import Gap, Piece

# DATASET.NAME -> the attribute words that the paper found for it.
ATTRIBUTES = {
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
GENERAL = ("color", "shape")  # ImageNet's; also for Shapes… and one's own images (ImageFolder)
IMAGENETS = ("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
ATTRIBUTES |= dict.fromkeys([*IMAGENETS, "ImageFolder"], GENERAL)


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.ATPROMPT = CfgNode()
    node.USE_ATPROMPT = False
    node.N_ATT1 = node.N_ATT2 = node.N_ATT3 = 4  # vectors before each attribute word
    node.ATT_NUM = 0  # 0: the dataset's own attributes
    node.ATT1_TEXT = node.ATT2_TEXT = node.ATT3_TEXT = "none"
    # With ATT_NUM 0: whose attributes. "": the run's own dataset's, so that a model tested on
    # another one takes that one's, as upstream. To keep them, name the dataset it was trained on.
    node.DATASET = ""
    node.UPSTREAM_SLICING = False  # the published code's prompts, see sliced_as_upstream


def attribute_words(cfg: CfgNode, always: bool = False) -> tuple[str, ...]:
    """The run's attribute words: none without ATPrompt, else 1 to 3, the user's or the dataset's.

    Raises: UsageError if there are none to take, or for a negative length.
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
        words = GENERAL if name.startswith("Shapes") else ATTRIBUTES.get(name)
        if not words:
            raise UsageError(f"TRAINER.ATPROMPT.ATT_NUM 0: {name} has no attributes here; {give}")
        return words
    words = (node.ATT1_TEXT, node.ATT2_TEXT, node.ATT3_TEXT)[: node.ATT_NUM]
    if not 1 <= node.ATT_NUM <= 3 or {"", "none"} & {(word or "").strip() for word in words}:
        raise UsageError(f"TRAINER.ATPROMPT.ATT_NUM {node.ATT_NUM}: {give}")
    return words


def add_attributes(
    learner: nn.Module, clip_model: CLIP, att: CfgNode, words: Sequence[str]
) -> list[Piece]:
    """Gives a prompt learner ctx_att1…3, (N_ATT, W) each; returns what of the prompt is before ctx.

    All three, however many words there are; none if there are no words.
    """
    learner.ctx_att1 = learner.ctx_att2 = learner.ctx_att3 = None
    if not words:
        return []
    width = clip_model.transformer.width
    learner.ctx_att1 = nn.Parameter(torch.empty(att.N_ATT1, width).normal_(std=0.01))
    learner.ctx_att2 = nn.Parameter(torch.empty(att.N_ATT2, width).normal_(std=0.01))
    learner.ctx_att3 = nn.Parameter(torch.empty(att.N_ATT3, width).normal_(std=0.01))
    return attribute_layout(att, words)


def attribute_layout(att: CfgNode, words: Iterable[str]) -> list[Piece]:
    """The prompt's pieces with 1 to 3 attribute words: before each a gap, ctx_att1…3."""
    gaps = Gap("ctx_att1", att.N_ATT1), Gap("ctx_att2", att.N_ATT2), Gap("ctx_att3", att.N_ATT3)
    layout: list[Piece] = []
    for gap, word in zip(gaps, words, strict=False):
        layout += [gap, _tokenizer.encode(word)]
    return layout


def sliced_as_upstream(layout: Sequence[Piece]) -> list[Piece]:
    """The pieces as ATPrompt's published code cuts them, which takes each word for one token.

    It tokenises the sentence with an "x" for each learned vector, and cuts the words out where they
    would be then. Behind a word of several tokens it is off by the rest: it takes an "x" for the
    next word, and what is left over at the end goes before the name.
    """
    [x] = _tokenizer.encode("x")
    sentence: list[int] = []
    for piece in layout:
        sentence += [x] * piece.length if isinstance(piece, Gap) else piece
    sliced: list[Piece] = []
    at = 0
    for piece in layout:
        sliced.append(piece if isinstance(piece, Gap) else sentence[at : at + 1])
        at += piece.length if isinstance(piece, Gap) else 1
    return [*sliced, sentence[at:]]
