"""VaMP written plainly, on MaPLe's places: every image and draw by itself, every sentence whole.

Prompt parameters are a dict, for the layers l = 0 ... L-1 (the towers' first blocks):

    text_prompts.posterior.l.fc1.weight/bias   (H, D), (H,)          of the image's frozen feature
    text_prompts.posterior.l.fc2.weight/bias   (2 M W, H), (2 M W,)  means, then log-variances
    text_prompts.prior.l....                   the same, of the prototype of the image's class
    vision_prompts                             (L, M, Wv)

With one posterior for all images, text_prompts.posterior.z (2, L, M, W) is means and log-variances.
Where nothing is drawn there are no log-variances: fc2 has M W outputs, posterior.z is (1, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .clip_plain import PlainCLIP
from .maple_plain import CONTEXT_LENGTH, EOT, PAD, SOS, tokenise

TEMPLATE = "a photo of a {}."
OfDraw = Callable[[Tensor], Tensor]  # of z (L, M, W)
Layers = list[tuple[Tensor, ...]]  # mean and, if there is one, log-variance of each, (M, W)


def gaussians(prompts: Mapping[str, Tensor], name: str, x: Tensor, shape: torch.Size) -> Layers:
    """What the nets `name` make of x (D,): linear, GELU, linear. shape: L, M, W"""
    if f"{name}.z" in prompts:
        return list(zip(*prompts[f"{name}.z"], strict=True))
    layers, n_ctx, width = shape
    found = []
    for i in range(layers):
        weights = [prompts[f"{name}.{i}.{key}"] for key in ("fc1.weight", "fc2.weight")]
        biases = [prompts[f"{name}.{i}.{key}"] for key in ("fc1.bias", "fc2.bias")]
        hidden = weights[0] @ x + biases[0]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        made = weights[1] @ hidden + biases[1]
        halves = made.split(n_ctx * width)
        found.append(tuple(half.reshape(n_ctx, width) for half in halves))
    return found


def draw(layers: Layers, noise: Tensor) -> Tensor:
    """z (L, M, W), made of noise (L, M, W)."""
    rows = []
    for (mean, *log_var), e in zip(layers, noise, strict=True):
        rows.append(mean + (log_var[0] / 2).exp() * e if log_var else mean)
    return torch.stack(rows)


def seen(clip: PlainCLIP, image: Tensor, unit: bool = True) -> Tensor:
    """What the nets see of an image (3, H, H): the frozen feature (D,)."""
    feature = clip.encode_image(image[None])[0]
    return feature / feature.norm() if unit else feature


def prototypes(
    clip: PlainCLIP,
    images: Sequence[Tensor],
    labels: Sequence[int],
    unit: bool = True,
    unit_mean: bool = True,
) -> Tensor:
    """(C, D): the mean of what the nets see of the images of each class."""
    rows = []
    for c in range(max(labels) + 1):
        total, count = 0, 0
        for image, label in zip(images, labels, strict=True):
            if label == c:
                total, count = total + seen(clip, image, unit), count + 1
        mean = total / count
        rows.append(mean / mean.norm() if unit_mean else mean)
    return torch.stack(rows)


# One image with one draw


def text_features(
    clip: PlainCLIP, z: Tensor, classnames: Sequence[str], template: str = TEMPLATE
) -> Tensor:
    """The features (C, D), not normalised, of the sentences SOS z_0 template EOT. z (L, M, W)"""
    n_ctx, sentences, ends = z.shape[1], [], []
    for name in classnames:
        ids = [*tokenise(template.format(name.replace("_", " "))), EOT]
        ends.append(n_ctx + len(ids))
        ids += [PAD] * (CONTEXT_LENGTH - 1 - n_ctx - len(ids))
        before, behind = clip.embed(torch.tensor([SOS])), clip.embed(torch.tensor(ids))
        sentences.append(torch.cat([before, z[0], behind]))
    deep = {layer: (1, z[layer]) for layer in range(1, len(z))}
    return clip.text_tower(torch.stack(sentences), torch.tensor(ends), deep)


def draw_logits(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    image: Tensor,
    template: str = TEMPLATE,
) -> OfDraw:
    """(C,) of an image, as a function of a draw."""
    first, *others = prompts["vision_prompts"]
    feature = clip.vision_tower(image[None], first, dict(enumerate(others, start=1)))
    return lambda z: clip.logits(feature, text_features(clip, z, classnames, template))[0]


def kl(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """KL of two Gaussians, element by element, with their variances written out."""
    var, prior_var = log_var.exp(), prior_log_var.exp()
    inner = var / prior_var + (mean - prior_mean) ** 2 / prior_var - 1 - torch.log(var / prior_var)
    return inner / 2


# A batch


def loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    of_class: Tensor | None = None,
    kl_weight: float = 1.0,
    reduction: str = "mean",
    unit: bool = True,
    template: str = TEMPLATE,
    host_loss: Callable[[Tensor, int, Tensor], OfDraw] | None = None,
) -> Tensor:
    """Mean over the images of: the mean of the host's loss over the draws, and the layers' KL.

    noise (B, S, L, M, W): what the draws are made of. of_class (C, D): prototypes; None: the prior
    is N(0, I). host_loss: of an image, its label and its frozen feature; None: cross-entropy in
    MaPLe's places.
    """

    def cross_entropy(image: Tensor, label: int, frozen: Tensor) -> OfDraw:
        logits_of = draw_logits(clip, prompts, classnames, image, template)

        def of_draw(z: Tensor) -> Tensor:
            logits = logits_of(z)
            return logits.logsumexp(0) - logits[label]

        return of_draw

    total = 0
    for image, label, own in zip(images, labels, noise, strict=True):
        shape = own.shape[1:]
        frozen = seen(clip, image, unit=False)
        x = frozen / frozen.norm() if unit else frozen
        made = gaussians(prompts, "text_prompts.posterior", x, shape)
        loss_of = (host_loss or cross_entropy)(image, label, frozen)
        for one in own:
            total = total + loss_of(draw(made, one)) / len(own)
        if len(made[0]) == 1:
            continue
        prior = [(torch.zeros(shape[1:]), torch.zeros(shape[1:]))] * shape[0]
        if of_class is not None:
            prior = gaussians(prompts, "text_prompts.prior", of_class[label], shape)
        for q, p in zip(made, prior, strict=True):
            elements = kl(*q, *p)
            of_layer = elements.mean() if reduction == "mean" else elements.sum()
            total = total + kl_weight * of_layer
    return total / len(images)


def log_probabilities(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    noise: Tensor,
    unit: bool = True,
    template: str = TEMPLATE,
    host_logits: Callable[[Tensor], OfDraw] | None = None,
) -> Tensor:
    """(B, C): the log of the draws' mean probabilities. noise (S, L, M, W), for all images.

    host_logits: of an image; None: in MaPLe's places.
    """
    rows = []
    for image in images:
        total, x = 0, seen(clip, image, unit)
        made = gaussians(prompts, "text_prompts.posterior", x, noise.shape[1:])
        if host_logits:
            logits_of = host_logits(image)
        else:
            logits_of = draw_logits(clip, prompts, classnames, image, template)
        for one in noise:
            total = total + logits_of(draw(made, one)).softmax(0)
        rows.append((total / len(noise)).log())
    return torch.stack(rows)
