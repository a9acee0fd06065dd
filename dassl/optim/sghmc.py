"""Stochastic-gradient Hamiltonian Monte Carlo: SGD with momentum whose velocity gets noise."""

from collections.abc import Callable

import torch
from torch.optim import SGD


class SGHMC(SGD):
    """v <- momentum · v + gradient + noise · ε, then θ <- θ - lr · v, with ε drawn from N(0, I).

    `noise` is a setting of each parameter group, 0 until whoever samples sets it: the steps are
    then SGD's to the last bit. Noise stays in v, so later steps move along it too.
    """

    def __init__(self, params, **options):
        """options: SGD's."""
        super().__init__(params, **options)
        for group in self.param_groups:
            group.setdefault("noise", 0.0)

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """A step of SGD with noise on its gradients, which are changed."""
        for group in self.param_groups:
            for p in group["params"] if group["noise"] else ():
                if p.grad is not None:
                    p.grad.add_(torch.randn_like(p.grad), alpha=group["noise"])
        super().step(closure)
