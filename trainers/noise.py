"""P2C's noise: how large it is in each epoch (eq. 2), and what it is drawn from (§3.3.1)."""

import math

import torch
from torch import Tensor, nn
from yacs.config import CfgNode


def falling_sigmoid(p: float, k: float) -> float:
    """1 / (1 + e^(k (p - ½))), rescaled to be 1 at p = 0 and 0 at p = 1."""
    at_p, first, last = (1 / (1 + math.exp(k * (x - 0.5))) for x in (p, 0, 1))
    return (at_p - last) / (first - last)


# S(p) of eq. 2; p runs from 0 at the schedule's first epoch towards 1 after its last.
SCHEDULES = {
    "constant": lambda p, k: 1.0,
    "linear": lambda p, k: 1 - p,
    "cosine": lambda p, k: (1 + math.cos(math.pi * p)) / 2,
    "sigmoid": falling_sigmoid,
    "sigmoid_rising": lambda p, k: 1 - falling_sigmoid(p, k),
}


def sigma_at(dpd: CfgNode, epoch: int, max_epoch: int) -> float:
    """σ_t of eq. 2 for an epoch, counted from 0; dpd is TRAINER.P2C.DPD."""
    if epoch < dpd.WARMUP_EPOCHS:
        return dpd.SIGMA_MAX
    p = (epoch - dpd.WARMUP_EPOCHS) / (max_epoch - dpd.WARMUP_EPOCHS)
    return dpd.SIGMA_MAX * SCHEDULES[dpd.SCHEDULE](p, dpd.SIGMOID_K)


class MixtureNoise(nn.Module):
    """Element-wise draws from a mixture of Gaussians."""

    def __init__(self, means: tuple, stds: tuple, weights: tuple, standardize: bool):
        super().__init__()
        means, stds, weights = (
            torch.tensor(t, dtype=torch.float32) for t in (means, stds, weights)
        )
        weights = weights / weights.sum()
        if standardize:
            mean = (weights * means).sum()
            std = ((weights * (stds**2 + means**2)).sum() - mean**2).sqrt()
            means, stds = (means - mean) / std, stds / std
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("stds", stds, persistent=False)
        self.register_buffer("edges", weights.cumsum(0)[:-1], persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        """Fresh noise of that shape, type and device."""
        component = torch.bucketize(torch.rand_like(like), self.edges)
        return self.means[component] + self.stds[component] * torch.randn_like(like)
