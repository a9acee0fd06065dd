"""VaMP's Gaussian text prompts z, and the nets that give their means and variances.

Shapes: B images, S draws for each, L layers with M prompts of width W.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP

from .draws import Noise, kl_normal


def start(*shape: int, std: float | None) -> Tensor:
    """Initial means (1, *shape); with `std`, means and log-variances (2, *shape)."""
    mean = torch.empty(shape).normal_(std=0.02)  # as other learned prompts
    return torch.stack([mean] if std is None else [mean, torch.full(shape, 2 * math.log(std))])


class Gaussians(nn.ModuleList):
    """A net for each layer: (B, D) -> means (B, L, M, W) and, with `std`, log-variances."""

    def __init__(self, dim: int, hidden: int, shape: tuple[int, int, int], std: float | None):
        super().__init__()
        layers, *tokens = shape
        for _ in range(layers):
            bias = start(*tokens, std=std)
            first, second = nn.Linear(dim, hidden), nn.Linear(hidden, bias.numel())
            second.bias = nn.Parameter(bias.flatten())
            self.append(nn.Sequential(OrderedDict(fc1=first, act=nn.GELU(), fc2=second)))
        self.outputs = bias.shape

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # amp would round means and variances
        with torch.autocast(x.device.type, enabled=False):
            made = torch.stack([net(x) for net in self], dim=1)
        return made.unflatten(-1, self.outputs).unbind(2)


class SharedGaussians(nn.Module):
    """One Gaussian for all images, whose mean and log-variance are parameters."""

    def __init__(self, shape: tuple[int, int, int], std: float | None):
        super().__init__()
        self.z = nn.Parameter(start(*shape, std=std))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(z.expand(x.shape[0], *z.shape) for z in self.z)


class VariationalPrompts(nn.Module):
    """The posterior of z, its prior and its draws; where z goes, the learner says.

    Args:
        node: TRAINER.VAMP.
        shape: L, M, W.
        seed: of a test's draws.
    """

    def __init__(self, node: CfgNode, clip_model: CLIP, shape: tuple[int, int, int], seed: int):
        super().__init__()
        self.node, std = node, node.INIT_STD if node.VARIATIONAL else None
        nets = clip_model.visual.output_dim, node.HIDDEN, shape, std
        self.posterior = Gaussians(*nets) if node.SAMPLE_SPECIFIC else SharedGaussians(shape, std)
        if node.VARIATIONAL and node.PRIOR == "class":
            self.prior = Gaussians(*nets)
        if node.VARIATIONAL:
            self.noise = Noise(node.TRAIN_SAMPLES, node.TEST_SAMPLES or 1, seed)
            self.noise.spread = 1.0 if node.TEST_SAMPLES else 0.0

    def draws(self, mean: Tensor, *log_var: Tensor) -> Tensor:
        """Draws for each image (B, S, L, M, W), with gradients; no `log_var`: the mean."""
        if not log_var:
            return mean[:, None]
        noise = self.noise(mean, *mean.shape[1:])
        return mean[:, None] + (0.5 * log_var[0]).exp()[:, None] * noise

    def of_training(self, features: Tensor, prototypes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (B, D) -> z (B, S, L, M, W), and the KL to the prior."""
        mean, *log_var = self.posterior(features)
        kl = self.kl(mean, *log_var, prototypes) if log_var else mean.new_zeros(())
        return self.draws(mean, *log_var), kl

    def of_test(self, features: Tensor) -> Tensor:
        """Features (B, D) -> z (B, S, L, M, W)."""
        return self.draws(*self.posterior(features))

    def kl(self, mean: Tensor, log_var: Tensor, prototypes: Tensor | None) -> Tensor:
        """Σ over layers of KL(q ‖ p), mean over the images (eq. 20).

        prototypes: (B, D), of the images' classes; None: p is N(0, I).
        """
        prior = () if prototypes is None else self.prior(prototypes)
        kl = kl_normal(mean, log_var, *prior).flatten(2)  # (B, L, M·W)
        of_layers = kl.mean(dim=2) if self.node.KL_REDUCTION == "mean" else kl.sum(dim=2)
        return of_layers.sum(dim=1).mean()
