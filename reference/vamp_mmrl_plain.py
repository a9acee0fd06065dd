"""VaMP on MMRL's places, written plainly: what vamp_plain.py leaves to the host, for one draw.

Prompt parameters are vamp_plain's, without vision_prompts, and mmrl_plain's of the image tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from . import mmrl_plain
from .clip_plain import PlainCLIP


def text_features(
    clip: PlainCLIP, z: Tensor, classnames: Sequence[str], layers: Sequence[int], template: str
) -> Tensor:
    """(C, D), unit length, with the tokens z (L, M, W): of R, which is the identity, each layer's
    projection makes its z."""
    params = {mmrl_plain.R: torch.eye(z.shape[1], dtype=z.dtype)}
    for n, own in enumerate(z):
        name = mmrl_plain.PROJECTION.format("t", n)
        params |= {f"{name}.weight": own.T, f"{name}.bias": own.new_zeros(own.shape[1])}
    text = mmrl_plain.text_features(clip, params, classnames, layers, template)
    return text / text.norm(dim=-1, keepdim=True)


def both_logits(
    clip: PlainCLIP, prompts: Mapping[str, Tensor], image: Tensor, text: Tensor,
    layers: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(C,) of the class token and of the representation tokens; the class token's feature (D,)."""
    made = mmrl_plain.image_features(clip, prompts, image[None], layers)
    of_class, of_rep = (f[0] / f[0].norm() for f in made)
    scale = clip.logit_scale.exp()
    return scale * text @ of_class, scale * text @ of_rep, of_class


def host_loss(
    clip: PlainCLIP, prompts: Mapping[str, Tensor], classnames: Sequence[str],
    layers: Sequence[int], alpha: float = 0.7, reg_weight: float = 1.0,
    template: str = mmrl_plain.TEMPLATE,
) -> Callable[[Tensor, int, Tensor], Tensor]:  # fmt: skip
    """MMRL's loss as a function of an image (3, H, H), its label and a draw z (L, M, W)."""
    teacher = mmrl_plain.teacher_features(clip, classnames, template)

    def of(image: Tensor, label: int, z: Tensor) -> Tensor:
        text = text_features(clip, z, classnames, layers, template)
        *both, feature = both_logits(clip, prompts, image, text, layers)
        of_class, of_rep = (logits.logsumexp(0) - logits[label] for logits in both)
        frozen = clip.encode_image(image[None])[0]
        away = 1 - feature @ frozen / frozen.norm()
        text_away = sum(1 - w @ t for w, t in zip(text, teacher, strict=True)) / len(text)
        return alpha * of_class + (1 - alpha) * of_rep + reg_weight * (away + text_away)

    return of


def host_logits(
    clip: PlainCLIP, prompts: Mapping[str, Tensor], classnames: Sequence[str],
    layers: Sequence[int], alpha: float = 0.7, fused: bool = True,
    template: str = mmrl_plain.TEMPLATE,
) -> Callable[[Tensor, Tensor], Tensor]:  # fmt: skip
    """(C,), as a function of an image and a draw: fused, or the class token's."""

    def of(image: Tensor, z: Tensor) -> Tensor:
        text = text_features(clip, z, classnames, layers, template)
        of_class, of_rep, _ = both_logits(clip, prompts, image, text, layers)
        return alpha * of_class + (1 - alpha) * of_rep if fused else of_class

    return of
