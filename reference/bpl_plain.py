"""Bayesian Prompt Learning written plainly: for each image and each draw, every class's sentence.

Prompt parameters are CoOp's ctx (N, W), and those of the posterior of r, a vector (W,):

    mean_posterior, std_posterior               (1, W): mean and log-variance, for all images; or
    meta_net.weight_mean.module.K.weight/bias   K = 0, 2, 4: Linear D -> H -> H -> W, ELU between
    meta_net.weight_log_variance.module.K.…     the same, of an image's feature

Noise is (L, W), for all images, or (B, L, W): standard normal, given from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from . import coop_plain
from .clip_plain import PlainCLIP


def posterior(prompts: Mapping[str, Tensor], image_feature: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of r (W,) for an image, whose feature (D,) has unit length."""
    if "mean_posterior" in prompts:
        return prompts["mean_posterior"][0], prompts["std_posterior"][0].exp()
    mean = three_layers(prompts, "meta_net.weight_mean.module", image_feature)
    return mean, three_layers(prompts, "meta_net.weight_log_variance.module", image_feature).exp()


def three_layers(prompts: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """(D,) -> (W,)"""
    for k in (0, 2, 4):
        x = prompts[f"{name}.{k}.weight"] @ x + prompts[f"{name}.{k}.bias"]
        if k < 4:
            x = torch.where(x > 0, x, x.exp() - 1)  # ELU
    return x


def text_features(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    image_feature: Tensor,
    noise: Tensor,
) -> list[Tensor]:
    """(C, D), not normalised, of each draw for an image. noise (L, W)"""
    mean, variance = posterior(prompts, image_feature)
    of_draws = []
    for epsilon in noise:
        r = mean + variance.sqrt() * epsilon
        shifted = {"ctx": torch.stack([vector + r for vector in prompts["ctx"]])}
        of_draws.append(coop_plain.text_features(clip, shifted, classnames))
    return of_draws


def probabilities(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    noise: Tensor,
) -> list[tuple[Tensor, Tensor]]:
    """Of each of the images (B, 3, H, H): its feature (D,), of unit length, and each draw's
    probabilities of the classes (L, C)."""
    of_images, texts = [], None
    for i, image in enumerate(images):
        feature = clip.encode_image(image[None])[0]
        feature = feature / feature.norm()
        if texts is None or "mean_posterior" not in prompts:  # else they are all images'
            own = noise[i] if noise.dim() == 3 else noise
            texts = text_features(clip, prompts, classnames, feature, own)
        of_draws = [clip.logits(feature[None], text)[0].softmax(dim=0) for text in texts]
        of_images.append((feature, torch.stack(of_draws)))
    return of_images


def logits(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    noise: Tensor,
) -> Tensor:
    """What a test gives, (B, C): the log of the mean of the draws' probabilities."""
    of_images = probabilities(clip, prompts, classnames, images, noise)
    return torch.stack([of_draws.mean(dim=0).log() for _, of_draws in of_images])


def divergence(prompts: Mapping[str, Tensor], image_feature: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) of each dimension (W,)."""
    mean, variance = posterior(prompts, image_feature)
    return (variance + mean**2 - 1 - variance.log()) / 2


def loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    kl_weight: float = 0.001,
    likelihood: str = "log_mean",
    kl_reduction: str = "mean",
) -> Tensor:
    """Mean over the images. labels (B,)

    likelihood: log_mean, the log of the mean probability, or mean_log, the mean of the logs
    kl_reduction: over the dimensions of r: mean, or sum, which is the posterior's divergence
    """
    total = 0
    of_images = probabilities(clip, prompts, classnames, images, noise)
    for label, (feature, of_draws) in zip(labels, of_images, strict=True):
        right = of_draws[:, label]  # (L,)
        log_p = right.log().mean() if likelihood == "mean_log" else right.mean().log()
        kl = divergence(prompts, feature)
        kl = kl.sum() if kl_reduction == "sum" else kl.sum() / len(kl)
        total = total - log_p + kl_weight * kl
    return total / len(images)
