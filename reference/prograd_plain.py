"""ProGrad written plainly on top of PlainCLIP: CoOp whose gradient may not go against zero-shot
CLIP's knowledge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional

from . import coop_plain
from .clip_plain import PlainCLIP
from .kgcoop_plain import TEMPLATE, teacher_features
from .maple_plain import gradients


def losses(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    template: str = TEMPLATE,
    attributes: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the labels, and L_kl = -mean over images of sum over classes p_zs log p
    T^2.

    p_zs and p are the softmax of zero-shot and prompted logits / T. L_kl is KL(p_zs || p) T^2 but for p_zs's entropy,
    which does not depend on the prompts. prompts: CoOp's. images (B, 3, H, H), labels (B,)
    """
    logits = coop_plain.logits(clip, prompts, classnames, images, attributes=attributes)
    zero_shot = clip.logits(clip.encode_image(images), teacher_features(clip, classnames, template))
    p_zs = (zero_shot / temperature).softmax(dim=-1)
    log_p = (logits / temperature).log_softmax(dim=-1)
    kl = -(p_zs * log_p).sum(dim=-1).mean() * temperature**2
    return functional.cross_entropy(logits, labels), kl


def project(xe: Tensor, kl: Tensor, lam: float = 1.0) -> Tensor:
    """One tensor's step direction: where xe . kl < 0, xe without lam times its component along kl;
    else xe."""
    dot = (xe * kl).sum()
    if dot >= 0:
        return xe
    along = dot / (kl * kl).sum() * kl
    return xe - lam * along


def final_gradients(
    xe: Tensor, kl: Tensor, prompts: Mapping[str, Tensor], lam: float = 1.0
) -> dict[str, Tensor | None]:
    """By name: each tensor's gradients of the two losses, projected on its own; None where it took
    no part."""
    g_xe, g_kl = gradients(xe, prompts), gradients(kl, prompts)
    return {
        name: None if g_xe[name] is None else project(g_xe[name], g_kl[name], lam)
        for name in prompts
    }
