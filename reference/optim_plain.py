"""SGD with momentum and weight decay, and the learning rate of each epoch, as plain formulas."""

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
