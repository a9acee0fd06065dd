"""Energy-based multi-prompt learning, written plainly on PlainCLIP: image by image and chain by
chain, every class's whole sentence, and autograd through the energy.

Prompt parameters are CoOp's: ctx (N, W). All that is drawn is given, standard normal: `noise`
(B, M, 1 + K, N, W), for B images, M chains of K steps; with per_batch (1, M, 1 + K, N, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import coop_plain
from .clip_plain import PlainCLIP


@dataclass
class Settings:
    """Named as the method's config keys."""

    energy: str = "lse"
    temperature: float = 1.0
    prior_std: float = 0.02
    step: float = 0.01
    normalize: bool = True
    noise: float = 0.01
    init_noise: float = 0.01
    coupled: bool = False
    unrolled: bool = False
    average: str = "probability"
    per_batch: bool = False


def energy_of_image(scores: Tensor, s: Settings) -> Tensor:
    """An image's scores (C,) -> a scalar."""
    tempered = scores / s.temperature
    if s.energy == "lse":
        return -s.temperature * torch.logsumexp(tempered, dim=0)
    if s.energy == "entropy":
        return s.temperature * torch.distributions.Categorical(logits=tempered).entropy()
    return -scores.max()


def energy(
    clip: PlainCLIP, h: Tensor, home: Tensor, names: Sequence[str], features: Tensor, s: Settings
) -> Tensor:
    """Of a prompt h (N, W) for images of features (b, D): their mean, and how far h is."""
    text = coop_plain.text_features(clip, {"ctx": h}, names)
    scores = clip.logits(features, text)
    total = sum(energy_of_image(row, s) for row in scores) / len(scores)
    if s.prior_std > 0:
        total = total + ((h - home) ** 2).sum() / (2 * s.prior_std**2)
    return total


def chain(
    clip: PlainCLIP,
    ctx: Tensor,
    names: Sequence[str],
    features: Tensor,
    noise: Tensor,
    s: Settings,
) -> Tensor:
    """Where one chain ends, (N, W). noise (1 + K, N, W)"""
    home = ctx if s.unrolled else ctx.detach().clone()
    h = home + s.init_noise * noise[0]
    if not s.unrolled:
        h = h.clone().requires_grad_()
    for kick in noise[1:]:
        with torch.enable_grad():
            e = energy(clip, h, home, names, features, s)
            g = torch.autograd.grad(e, h, create_graph=s.unrolled)[0]
        if s.normalize:
            g = g / (g**2).mean().sqrt()
        if s.coupled:
            h = h - s.step / 2 * g + s.step**0.5 * kick
        else:
            h = h - s.step * g + s.noise * kick
        if not s.unrolled:
            h = h.detach().requires_grad_()
    return h if s.unrolled else ctx + (h.detach() - home)


def logits(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    names: Sequence[str],
    images: Tensor,
    noise: Tensor,
    s: Settings,
) -> Tensor:
    """images (B, 3, H, H) -> (B, C); of averaged probabilities, their logarithms."""
    features = clip.encode_image(images)
    rows = []
    for i in range(len(images)):
        mine = features[i : i + 1]
        drawn, seen = (noise[0], features) if s.per_batch else (noise[i], mine)
        texts = []
        for of_chain in drawn:
            h = chain(clip, prompts["ctx"], names, seen, of_chain, s)
            texts.append(coop_plain.text_features(clip, {"ctx": h}, names))
        if s.average == "feature":
            unit = [t / t.norm(dim=-1, keepdim=True) for t in texts]
            rows.append(clip.logits(mine, sum(unit) / len(unit))[0])
            continue
        scores = [clip.logits(mine, t)[0] for t in texts]
        if s.average == "logit":
            rows.append(sum(scores) / len(scores))
        else:
            rows.append((sum(x.softmax(dim=0) for x in scores) / len(scores)).log())
    return torch.stack(rows)


def loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    names: Sequence[str],
    images: Tensor,
    labels: Tensor,
    noise: Tensor,
    s: Settings,
) -> Tensor:
    """Cross-entropy of the averaged prediction, mean over the images. labels (B,)"""
    predicted = logits(clip, prompts, names, images, noise, s)
    if s.average == "probability":
        return -sum(row[y] for row, y in zip(predicted, labels, strict=True)) / len(labels)
    return functional.cross_entropy(predicted, labels)
