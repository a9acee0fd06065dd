"""ProGrad written plainly: CoOp whose gradient may not go against zero-shot CLIP's knowledge."""

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
    """Cross-entropy with the labels, and with zero-shot CLIP's probabilities.

    The second is L_kl = -T^2 mean over images of sum over classes of p_zs log p, where p_zs and p
    are the softmax of the zero-shot and the prompted logits / T. It is T^2 KL(p_zs || p) but for
    p_zs's entropy, which does not depend on the prompts.

    prompts: CoOp's. images (B, 3, H, H), labels (B,)
    """
    logits = coop_plain.logits(clip, prompts, classnames, images, attributes=attributes)
    zero_shot = clip.logits(clip.encode_image(images), teacher_features(clip, classnames, template))
    p_zs = (zero_shot / temperature).softmax(dim=-1)
    log_p = (logits / temperature).log_softmax(dim=-1)
    kl = -(p_zs * log_p).sum(dim=-1).mean() * temperature**2
    return functional.cross_entropy(logits, labels), kl


def project(xe: Tensor, kl: Tensor, lam: float = 1.0) -> Tensor:
    """One tensor's step direction: xe, less lam times its component along kl where xe . kl < 0."""
    dot = (xe * kl).sum()
    if dot >= 0:
        return xe
    along = dot / (kl * kl).sum() * kl
    return xe - lam * along


def final_gradients(
    xe: Tensor, kl: Tensor, prompts: Mapping[str, Tensor], lam: float = 1.0
) -> dict[str, Tensor | None]:
    """By name: each tensor's two gradients, projected on their own; None where it took no part."""
    of_xe, of_kl = gradients(xe, prompts), gradients(kl, prompts)
    projected = {}
    for name, grad in of_xe.items():
        projected[name] = None if grad is None else project(grad, of_kl[name], lam)
    return projected
