"""VaMP written plainly, on MaPLe's places: every image, draw and whole sentence by itself.

Prompt parameters are a dict, for the layers l = 0 ... L-1 (the towers' first blocks):

    posterior.l.fc1.weight/bias   (H, D), (H,)             of the image's frozen feature
    posterior.l.fc2.weight/bias   (2 M W, H), (2 M W,)     M W means, then M W log-variances
    prior.l....                   the same, of the prototype of the image's class
    vision_prompts                (L, M, Wv)
    prompts                       (L, M, W), where the text prompts are the same for all images

Where z is not drawn, fc2 has M W outputs: z itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .clip_plain import PlainCLIP
from .maple_plain import CONTEXT_LENGTH, EOT, PAD, SOS, tokenise

TEMPLATE = "a photo of a {}."


def net(prompts: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Linear, GELU, linear: (D,) -> (2 M W,) or (M W,)."""
    hidden = prompts[f"{name}.fc1.weight"] @ x + prompts[f"{name}.fc1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return prompts[f"{name}.fc2.weight"] @ hidden + prompts[f"{name}.fc2.bias"]


def gaussian(
    prompts: Mapping[str, Tensor], name: str, x: Tensor, n_ctx: int, width: int
) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of one layer's z, each (M, W)."""
    made, half = net(prompts, name, x), n_ctx * width
    return made[:half].reshape(n_ctx, width), made[half:].reshape(n_ctx, width)


def seen(clip: PlainCLIP, image: Tensor, unit: bool = True) -> Tensor:
    """What the posterior sees of an image (3, H, H): the frozen feature (D,)."""
    feature = clip.encode_image(image[None])[0]
    return feature / feature.norm() if unit else feature


def prototypes(
    clip: PlainCLIP, images: Sequence[Tensor], labels: Sequence[int], unit: bool = True,
    unit_mean: bool = True,
) -> Tensor:  # fmt: skip
    """(C, D): the mean of what the posterior sees of the images of each class."""
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


def image_feature(clip: PlainCLIP, prompts: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """(3, H, H) -> (D,), not normalised, with the image tower's prompts."""
    first, *others = prompts["vision_prompts"]
    return clip.vision_tower(image[None], first, dict(enumerate(others, start=1)))[0]


def draw_logits(
    clip: PlainCLIP, prompts: Mapping[str, Tensor], classnames: Sequence[str], image: Tensor,
    z: Tensor, template: str = TEMPLATE,
) -> Tensor:  # fmt: skip
    """(C,) of one image with one draw (L, M, W)."""
    text = text_features(clip, z, classnames, template)
    return clip.logits(image_feature(clip, prompts, image)[None], text)[0]


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
) -> Tensor:
    """Mean over the images of: mean over draws of -log p(label), and the layers' KL.

    noise (B, S, L, M, W): what the draws are made of. of_class (C, D): prototypes; None: the prior
    is N(0, I).
    """
    total = 0
    for image, label, own in zip(images, labels, noise, strict=True):
        x, (_, layers, n_ctx, width) = seen(clip, image, unit), own.shape
        made = [gaussian(prompts, f"posterior.{i}", x, n_ctx, width) for i in range(layers)]
        for draw in own:
            z = torch.stack([m + (v / 2).exp() * e for (m, v), e in zip(made, draw, strict=True)])
            logits = draw_logits(clip, prompts, classnames, image, z)
            total = total - (logits[label] - logits.logsumexp(0)) / len(own)
        for i, (mean, log_var) in enumerate(made):
            if of_class is None:
                prior = torch.zeros_like(mean), torch.zeros_like(mean)
            else:
                prior = gaussian(prompts, f"prior.{i}", of_class[label], n_ctx, width)
            elements = kl(mean, log_var, *prior)
            kl_of_layer = elements.mean() if reduction == "mean" else elements.sum()
            total = total + kl_weight * kl_of_layer
    return total / len(images)


def log_probabilities(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    noise: Tensor,
    template: str = TEMPLATE,
    unit: bool = True,
) -> Tensor:
    """(B, C): the log of the draws' mean probabilities. noise (S, L, M, W), for all images."""
    rows, (_, layers, n_ctx, width) = [], noise.shape
    for image in images:
        x, total = seen(clip, image, unit), 0
        made = [gaussian(prompts, f"posterior.{i}", x, n_ctx, width) for i in range(layers)]
        for draw in noise:
            z = torch.stack([m + (v / 2).exp() * e for (m, v), e in zip(made, draw, strict=True)])
            total = total + draw_logits(clip, prompts, classnames, image, z, template).softmax(0)
        rows.append((total / len(noise)).log())
    return torch.stack(rows)


def deterministic_logits(
    clip: PlainCLIP, prompts: Mapping[str, Tensor], classnames: Sequence[str], images: Tensor
) -> Tensor:
    """(B, C), where z is what the nets make of an image, or the same for all images."""
    rows, (layers, n_ctx, _) = [], prompts["vision_prompts"].shape
    for image in images:
        if "prompts" in prompts:
            z = prompts["prompts"]
        else:
            x = seen(clip, image)
            made = [net(prompts, f"posterior.{i}", x) for i in range(layers)]
            z = torch.stack([m.reshape(n_ctx, -1) for m in made])
        rows.append(draw_logits(clip, prompts, classnames, image, z))
    return torch.stack(rows)
