"""ReBaPL written plainly: distances as loops, the potential by autograd, steps as formulas.

What a host's prompts do is a function from its parameters: loss(params, batch), features(params).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from .maple_plain import Prompts, as_leaves, gradients
from .optim_plain import adamw_step, sgd_step

# Cycles; epochs are counted from 0.


def rate(epoch: int, base: float, length: int, warmup_rate: float = 1e-5) -> float:
    """The rate of an epoch as published: a warm-up epoch, behind it cosines of `length` epochs."""
    if epoch == 0:
        return warmup_rate
    since_restart = (epoch - 1) % length
    return 0.5 * base * (1.0 + math.cos(math.pi * since_restart / length))


def is_noisy(epoch: int, length: int, last: int) -> bool:
    """Whether an epoch is one of the last `last` of its cycle."""
    return epoch % length in range(length - last, length)


def published_noise(rate: float, momentum: float, temperature: float, n_images: int) -> float:
    """The standard deviation of what is added to the velocity, in the authors' code."""
    return temperature * (2 * rate * momentum) ** 0.5 / n_images


def papers_noise(rate: float, friction: float, n_images: int) -> float:
    """The same after eq. 17, with alpha = rate / n_images, r = -rate * velocity and no estimate."""
    return (2 * friction * rate / n_images) ** 0.5 / rate


# Squared distances between the rows of x and those of y, each (n, D)


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Row by row."""
    return sum(((a - b) ** 2).sum() for a, b in zip(x, y, strict=True)) / len(x)


def wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """The best of all n! ways to pair the rows."""
    ways = [mse(x, y[list(order)]) for order in permutations(range(len(y)))]
    return min(ways, key=lambda value: value.item())


def mmd(x: Tensor, y: Tensor, bandwidth: float = 1.0) -> Tensor:
    """mean k(x, x) + mean k(y, y) - 2 mean k(x, y), a row's pair with itself included."""

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        total = 0
        for u in a:
            squared = ((u - b) ** 2).sum(dim=1)
            total = total + torch.exp(-squared / (2 * bandwidth**2)).sum()
        return total / (len(a) * len(b))

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def potential(
    features: Tensor,
    others: Sequence[Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    strength: float,
    epsilon: float = 1e-6,
) -> Tensor:
    """The sum of strength / (d^2 + epsilon) over the sets in `others`."""
    return sum(strength / (distance(features, other) + epsilon) for other in others)


# Training


class Step(NamedTuple):
    """One step of `train`, with what is drawn in it."""

    batch: object  # for `loss`
    rows: Tensor | None  # of the features that are compared; None: all
    epsilon: Mapping[str, Tensor]  # a standard normal number for each element of each parameter


class Sampled(NamedTuple):
    """What `train` gives."""

    params: Prompts
    samples: list[list[dict[str, Tensor]]]  # of each cycle


def train(
    params: Mapping[str, Tensor],
    epochs: Sequence[Sequence[Step]],
    loss: Callable[[Prompts, object], Tensor],
    features: Callable[[Mapping[str, Tensor]], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    length: int,
    last: int,
    base_rate: float,
    noise: Callable[[float], float],
    momentum: float = 0.9,
    strength: float = 0.001,
    epsilon: float = 1e-6,
    sampled_steps: Sequence[int] = (),
    against_all: bool = False,
    directly: bool = False,
    adamw_first: bool = False,
) -> Sampled:
    """One chain through all cycles.

    features: (n, D), of unit length.
    noise: what a rate's noise is, as a standard deviation in the velocity.
    sampled_steps: of each cycle, counted from 0 in its steps, those after which the state is a
        sample.
    directly: the force is added to the parameters, not to the gradient.
    adamw_first: epochs without noise are AdamW's. What is gathered, momenta or moments, is lost
        where the kind of step changes.
    """
    params, gathered, step_before = as_leaves(params), {}, sgd_step
    samples: list[list[dict[str, Tensor]]] = []
    in_cycle = 0
    for epoch, steps in enumerate(epochs):
        if epoch % length == 0:
            samples.append([])
            in_cycle = 0
        before = samples[-2] if len(samples) > 1 else []
        before = before if against_all else before[-1:]
        lr = rate(epoch, base_rate, length)
        for step in steps:
            grads = gradients(loss(params, step.batch), params)
            repelled = dict.fromkeys(params)
            if before:
                rows = slice(None) if step.rows is None else step.rows
                others = [features(sample)[rows].detach() for sample in before]
                value = potential(features(params)[rows], others, distance, strength, epsilon)
                repelled = gradients(value, params)
            for name, g in repelled.items():
                if g is not None and not directly:
                    grads[name] = g if grads[name] is None else grads[name] + g
            if is_noisy(epoch, length, last):
                for name, e in step.epsilon.items():  # none for what has no gradient
                    grads[name] = grads[name] + noise(lr) * e
            if adamw_first and not is_noisy(epoch, length, last):
                kind, settings = adamw_step, {}
            else:
                kind, settings = sgd_step, {"momentum": momentum}
            gathered = gathered if kind is step_before else {}
            params, gathered = kind(params, grads, gathered, lr, **settings)
            step_before = kind
            if directly:
                for name, g in repelled.items():
                    params[name] = params[name].detach() - (0 if g is None else g)
                params = as_leaves(params)
            if in_cycle in sampled_steps:
                samples[-1].append({k: p.detach().clone() for k, p in params.items()})
            in_cycle += 1
    return Sampled(params, samples)


def mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """Of samples' logits (B, C): (B, C), each row a distribution."""
    total = 0
    for one in logits:
        exponentials = torch.exp(one - one.max(dim=1, keepdim=True).values)
        total = total + exponentials / exponentials.sum(dim=1, keepdim=True)
    return total / len(logits)
