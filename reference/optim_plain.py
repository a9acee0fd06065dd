"""SGD with momentum, AdamW, and the learning rate of each epoch, as plain formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from .maple_plain import Prompts, as_leaves, gradients


def lr_at_epoch(
    epoch: int, base_lr: float, max_epoch: int, warmup_epochs: int = 1, warmup_lr: float = 1e-5
) -> float:
    """Constant warm-up, then a cosine from its own epoch 0 with length max_epoch; epoch from 0."""
    if epoch < warmup_epochs:
        return warmup_lr
    return 0.5 * base_lr * (1.0 + math.cos(math.pi * (epoch - warmup_epochs) / max_epoch))


def sgd_step(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor | None],
    momenta: Mapping[str, Tensor],
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> tuple[Prompts, dict[str, Tensor]]:
    """One update: g = grad + wd * p; v = momentum * v + g (v = g at first); p = p - lr * v.

    momenta: {} at the first step.
    returns: new parameters (leaves that require gradients) and new momenta; none changes in place.
    A parameter without a gradient (None) stays as it is: no weight decay either.
    """
    new_params: Prompts = {}
    new_momenta = dict(momenta)
    for name, p in params.items():
        grad = grads[name]
        if grad is None:
            new_params[name] = p.detach().clone()
            continue
        with torch.no_grad():
            g = grad + weight_decay * p
            v = momentum * momenta[name] + g if name in momenta else g
            new_params[name] = p - lr * v
            new_momenta[name] = v
    return as_leaves(new_params), new_momenta


def adamw_step(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor | None],
    moments: Mapping[str, tuple[Tensor, Tensor, int]],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 5e-4,
    epsilon: float = 1e-8,
) -> tuple[Prompts, dict[str, tuple[Tensor, Tensor, int]]]:
    """One update of AdamW: p is shrunk by lr * wd, then goes down m / (sqrt(v) + epsilon).

    moments: (m, v, steps behind them) of each parameter, m and v before their correction; {} at
        first.
    returns: as `sgd_step`; a parameter without a gradient stays as it is.
    """
    new_params: Prompts = {}
    new_moments = dict(moments)
    first, second = betas
    for name, p in params.items():
        g = grads[name]
        if g is None:
            new_params[name] = p.detach().clone()
            continue
        with torch.no_grad():
            m, v, steps = moments.get(name, (torch.zeros_like(p), torch.zeros_like(p), 0))
            m, v, steps = first * m + (1 - first) * g, second * v + (1 - second) * g**2, steps + 1
            direction = (m / (1 - first**steps)) / ((v / (1 - second**steps)).sqrt() + epsilon)
            new_params[name] = p - lr * weight_decay * p - lr * direction
            new_moments[name] = m, v, steps
    return as_leaves(new_params), new_moments


def train(
    params: Mapping[str, Tensor],
    steps: Iterable[tuple[float, Callable[[Prompts], Tensor]]],
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> tuple[Prompts, list[float]]:
    """The parameters after all steps, and the loss before each.

    steps: (learning rate, function from the parameters to the loss)
    """
    params = as_leaves(params)
    momenta: dict[str, Tensor] = {}
    losses = []
    for lr, loss_of in steps:
        loss = loss_of(params)
        losses.append(loss.item())
        grads = gradients(loss, params)
        params, momenta = sgd_step(params, grads, momenta, lr, momentum, weight_decay)
    return params, losses
