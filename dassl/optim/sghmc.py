"""Stochastic-gradient Hamiltonian Monte Carlo: SGD with momentum whose velocity gets noise."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD


class SGHMC(SGD):
    """v <- momentum · v + gradient + noise · ε, then θ <- θ - lr · v, with ε drawn from N(0, I).

    Who samples sets two settings of all parameter groups. `noise` is 0 before: the steps are then
    SGD's to the last bit. Noise stays in v, so later steps move along it too. `adam`, False before,
    makes steps AdamW's instead, without noise, to explore before the chain begins; the state of
    the one kind of step is no other's.

    Args:
        options: SGD's.
        betas: AdamW's.
    """

    def __init__(self, params, betas: tuple[float, float] = (0.9, 0.999), **options):
        super().__init__(params, **options)
        for group in self.param_groups:
            group |= {"noise": 0.0, "adam": False, "betas": betas}

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """A step of SGD, with noise on its gradients, which are changed; or one of AdamW."""
        if self.param_groups[0]["adam"]:
            for group in self.param_groups:
                self.adam_step(group)
            return
        for group in self.param_groups:
            for p in group["params"] if group["noise"] else ():
                if p.grad is not None:
                    p.grad.add_(torch.randn_like(p.grad), alpha=group["noise"])
        super().step(closure)

    def adam_step(self, group: dict[str, Any], eps: float = 1e-8) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if "exp_avg" not in state:
                zero = torch.zeros_like(p)
                state |= {"step": 0, "exp_avg": zero, "exp_avg_sq": zero.clone()}
            state["step"] += 1
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.lerp_(p.grad, 1 - beta1)
            square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            p.mul_(1 - lr * group["weight_decay"])
            root = (square / (1 - beta2 ** state["step"])).sqrt() + eps
            p.addcdiv_(mean, root, value=-lr / (1 - beta1 ** state["step"]))
