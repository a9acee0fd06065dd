"""KgCoOp written plainly: CoOp whose text features are kept near the hand-crafted prompts'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import coop_plain
from .clip_plain import PlainCLIP
from .maple_plain import CONTEXT_LENGTH, EOT, PAD, SOS, tokenise

TEMPLATE = "a photo of a {}."


def teacher_features(
    clip: PlainCLIP, classnames: Sequence[str], template: str = TEMPLATE
) -> Tensor:
    """(C, D), not normalised: the frozen CLIP on the template's sentences."""
    rows = []
    for name in classnames:
        ids = [SOS, *tokenise(template.format(name.replace("_", " "))), EOT]
        rows.append(ids + [PAD] * (CONTEXT_LENGTH - len(ids)))
    return clip.encode_text(torch.tensor(rows))


def distance(text: Tensor, teacher: Tensor) -> Tensor:
    """1 - the classes' mean cosine of text and teacher, each (C, D)."""
    cosines = [t @ h / (t.norm() * h.norm()) for t, h in zip(text, teacher, strict=True)]
    return 1 - sum(cosines) / len(cosines)


def loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    weight: float = 8.0,
    template: str = TEMPLATE,
    attributes: Sequence[str] = (),
) -> Tensor:
    """Cross-entropy + weight * distance. prompts: CoOp's. images (B, 3, H, H), labels (B,)"""
    text = coop_plain.text_features(clip, prompts, classnames, attributes=attributes)
    logits = clip.logits(clip.encode_image(images), text)
    teacher = teacher_features(clip, classnames, template)
    return functional.cross_entropy(logits, labels) + weight * distance(text, teacher)
