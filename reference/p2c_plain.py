"""P2C on plain MaPLe + ATPrompt: schedules, mixture noise, the training loss with given noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .clip_plain import PlainCLIP
from .maple_plain import image_features, mapper, text_features

# Schedules


def schedule_value(name: str, p: float, k: float = 10.0) -> float:
    """S(p), p from 0 (start) to 1 (end of training)."""
    if name == "constant":
        return 1.0
    if name == "linear":
        return 1.0 - p
    if name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * p))
    if name == "sigmoid":

        def falling(q: float) -> float:
            return 1.0 / (1.0 + math.exp(k * (q - 0.5)))

        return (falling(p) - falling(1.0)) / (falling(0.0) - falling(1.0))
    if name == "sigmoid_rising":
        return 1.0 - schedule_value("sigmoid", p, k)
    raise ValueError(name)


def sigma_at_epoch(
    name: str, epoch: int, max_epoch: int, sigma_max: float, warmup_epochs: int = 0, k: float = 10.0
) -> float:
    """sigma_t; epoch from 0. During warm-up it is sigma_max, whatever the schedule."""
    if warmup_epochs >= max_epoch:
        raise ValueError("warm-up must end before training does")
    if epoch < warmup_epochs:
        return sigma_max
    p = (epoch - warmup_epochs) / (max_epoch - warmup_epochs)
    return sigma_max * schedule_value(name, p, k)


# Mixture noise


def mixture_moments(
    means: Sequence[float], stds: Sequence[float], weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """Mean and variance of a mixture of Gaussians.

    weights: need not sum to 1; None: equal.
    """
    weights = [1.0] * len(means) if weights is None else list(weights)
    total = sum(weights)
    mean = sum(w * m for w, m in zip(weights, means, strict=True)) / total
    second = sum(w * (s**2 + m**2) for w, m, s in zip(weights, means, stds, strict=True)) / total
    return mean, second - mean**2


def mixture_noise(
    component: Tensor,
    normal: Tensor,
    means: Sequence[float],
    stds: Sequence[float],
    weights: Sequence[float] | None = None,
    standardise: bool = True,
) -> Tensor:
    """Samples of a mixture of Gaussians, of the shape of `component` and `normal`.

    component: which Gaussian each element is from. normal: a standard normal number for each.
    """
    mean_of_each = torch.tensor(means, dtype=normal.dtype)[component]
    std_of_each = torch.tensor(stds, dtype=normal.dtype)[component]
    x = mean_of_each + std_of_each * normal
    if standardise:
        mean, variance = mixture_moments(means, stds, weights)
        x = (x - mean) / math.sqrt(variance)
    return x


# Loss


class P2CLoss(NamedTuple):
    """What `p2c_loss` gives."""

    loss: Tensor  # cls + lam * aux
    cls: Tensor  # cross-entropy with noisy text prompts
    aux: Tensor  # auxiliary_loss; 0 without eta
    text_features: Tensor  # (C, D), not normalised
    image_features: Tensor  # (B, D), not normalised
    logits: Tensor  # (B, C)


def p2c_loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    attributes: Sequence[str] = (),
    noise: Mapping[str, Tensor] | None = None,
    eta: Tensor | None = None,
    lam: float = 0.1,
    frozen_words: str = "",
    upstream_slicing: bool = False,
    aux_names: Sequence[str] = ("ctx",),
    stop_gradient: bool = True,
) -> P2CLoss:
    """P2C's training loss with explicit noise.

    noise: {"ctx": (N_CTX, W), "ctx_att1": (N_ATT, W), ...}, scaled by sigma_t already. Prompts
        whose name is missing have none.
    eta: (N_CTX, W), scaled by sigma_aux already; with other aux_names than ctx as many rows as
        these prompts have, in this order. None switches the auxiliary loss off.
    """
    noise = noise or {}
    assert set(noise) <= {"ctx", "ctx_att1", "ctx_att2", "ctx_att3"}, "only these are perturbed"
    noisy = dict(prompts)
    for name, epsilon in noise.items():
        assert epsilon.shape == prompts[name].shape
        noisy[name] = prompts[name] + epsilon

    text = text_features(clip, noisy, classnames, attributes, frozen_words, upstream_slicing)
    image = image_features(clip, prompts, images)  # visual prompts come from the clean ctx
    logits = clip.logits(image, text)
    cls = functional.cross_entropy(logits, labels)

    aux = torch.zeros((), dtype=cls.dtype)
    if eta is not None:
        aux = auxiliary_loss(prompts, eta, aux_names, stop_gradient)
    return P2CLoss(cls + lam * aux, cls, aux, text, image, logits)


def auxiliary_loss(
    prompts: Mapping[str, Tensor],
    eta: Tensor,
    names: Sequence[str] = ("ctx",),
    stop_gradient: bool = True,
) -> Tensor:
    """The mean over all elements of (F(p + eta) - F(p))^2.

    p are the vectors of the named prompts, eta has a row for each. With stop_gradient F(p) is a
    constant.
    """
    p = torch.cat([prompts[name] for name in names])
    assert eta.shape == p.shape
    target = mapper(prompts, p)
    reconstruction = mapper(prompts, p + eta)
    return ((reconstruction - (target.detach() if stop_gradient else target)) ** 2).mean()
