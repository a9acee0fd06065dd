"""Stochastic-gradient Hamiltonian Monte Carlo: SGD with momentum whose velocity gets noise."""

from collections.abc import Callable

import torch
from torch.optim import SGD, AdamW


class SGHMC(SGD):
    """v <- momentum · v + gradient + noise · ε, then θ <- θ - lr · v, with ε drawn from N(0, I).

    `noise` is a setting of each parameter group, 0 until whoever samples sets it: the steps are
    then SGD's to the last bit. Noise stays in v, so later steps move along it too.

    Attributes:
        adamw: whoever samples sets it to explore: steps are AdamW's while it is True. A change
            drops what the steps before have gathered, v or AdamW's moments.
    """

    adamw = False

    def __init__(self, params, betas: tuple[float, float] = (0.9, 0.999), **options):
        """betas: AdamW's. options: SGD's."""
        super().__init__(params, **options)
        self.betas = betas
        for group in self.param_groups:
            group.setdefault("noise", 0.0)

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """AdamW's step, or SGD's with noise on its gradients, which are changed."""
        for gathered in self.state.values():
            if ("exp_avg" in gathered) != self.adamw:
                gathered.clear()
        if self.adamw:
            self._adamws(closure)
            return
        for group in self.param_groups:
            for p in group["params"] if group["noise"] else ():
                if p.grad is not None:
                    p.grad.add_(torch.randn_like(p.grad), alpha=group["noise"])
        super().step(closure)

    def _adamws(self, closure: Callable | None) -> None:
        """The step of an AdamW that gathers in this one's state."""
        taken = "params", "lr", "weight_decay"
        adamw = AdamW(
            [{key: group[key] for key in taken} for group in self.param_groups], betas=self.betas
        )
        adamw.state = self.state
        adamw.step(closure)
