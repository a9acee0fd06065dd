"""VaMP on MMRL's places, written plainly: what vamp_plain.py leaves to the host, for one draw.

Prompt parameters are vamp_plain's, without vision_prompts, and mmrl_plain's of the image tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from . import mmrl_plain
from .clip_plain import PlainCLIP
from .vamp_plain import OfDraw


def text_features(
    clip: PlainCLIP, z: Tensor, classnames: Sequence[str], layers: Sequence[int]
) -> Tensor:
    """(C, D), unit length, with z (L, M, W) as the text tower's tokens."""
    text = mmrl_plain.text_features(clip, list(z), classnames, layers)
    return text / text.norm(dim=-1, keepdim=True)


def image_features(
    clip: PlainCLIP, prompts: Mapping[str, Tensor], image: Tensor, layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Of one image, the class token's and the representation tokens', (D,), unit length."""
    tokens = mmrl_plain.all_tokens(prompts, "v", layers)
    projection = prompts["image_encoder.proj_rep"]
    made = mmrl_plain.image_features(clip, tokens, projection, image[None], layers)
    of_class, of_rep = (feature[0] / feature[0].norm() for feature in made)
    return of_class, of_rep


def host_loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    layers: Sequence[int],
    alpha: float = 0.7,
    reg_weight: float = 1.0,
) -> Callable[[Tensor, int, Tensor], OfDraw]:
    """MMRL's loss as a function of an image (3, H, H), its label and its frozen feature (D,), then
    of a draw (L, M, W)."""
    teacher = mmrl_plain.teacher_features(clip, classnames)

    def of(image: Tensor, label: int, frozen: Tensor) -> OfDraw:
        of_class, of_rep = image_features(clip, prompts, image, layers)
        away = 1 - of_class @ frozen / frozen.norm()

        def of_draw(z: Tensor) -> Tensor:
            text = text_features(clip, z, classnames, layers)
            total = 0
            for feature, weight in ((of_class, alpha), (of_rep, 1 - alpha)):
                logits = clip.logit_scale.exp() * text @ feature
                total = total + weight * (logits.logsumexp(0) - logits[label])
            text_away = 1 - (text * teacher).sum() / len(text)
            return total + reg_weight * (away + text_away)

        return of_draw

    return of


def host_logits(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    layers: Sequence[int],
    alpha: float = 0.7,
    fused: bool = True,
) -> Callable[[Tensor], OfDraw]:
    """(C,), as a function of an image, then of a draw: fused, or the class token's."""

    def of(image: Tensor) -> OfDraw:
        of_class, of_rep = image_features(clip, prompts, image, layers)
        feature = alpha * of_class + (1 - alpha) * of_rep if fused else of_class

        def of_draw(z: Tensor) -> Tensor:
            text = text_features(clip, z, classnames, layers)
            return clip.logit_scale.exp() * text @ feature

        return of_draw

    return of
