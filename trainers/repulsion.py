"""ReBaPL's force, which drives what is learned away from earlier samples.

It is minus the gradient of a potential ξ / (d² + ε). d is a distance between two sets of features
of the same reference images and classes: those with the present prompts and those with a sample's.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.data.samplers import SeededIndex
from dassl.utils import mix_seed, seeded

from .base import CLIPTrainer, CustomCLIP

REFERENCES = 2**31  # mixed with the seed to draw reference images; no epoch has this number


def mse(x: Tensor, y: Tensor) -> Tensor:
    """The mean of |x_i - y_i|²: row i is compared with row i."""
    return (x - y).square().sum(-1).mean()


def wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """W₂²: the least mean of |x_i - y_π(i)|² over all permutations π.

    Between equally many points of equal weight the best transport is a permutation. Gradients
    take it as a constant.
    """
    from scipy.optimize import linear_sum_assignment  # here, since it is slow to import

    cost = squared_distances(x, y)
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return cost[rows, columns].mean()


def mmd(x: Tensor, y: Tensor, bandwidth: float = 1.0) -> Tensor:
    """MMD² with the kernel exp(-|·|² / 2 bandwidth²), i = j included (eq. 13)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(squared_distances(a, b) / (-2 * bandwidth**2))

    # Added before the mean is taken: in near sets they nearly cancel, and rounding would show.
    return (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)).mean()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, D) and (m, D) -> (n, m). By differences: in products, rounding hides small ones."""
    return (x[:, None] - y[None]).square().sum(-1)


# d² of x and y, (n, D), a scalar with gradients.
DISTANCES: dict[str, Callable[..., Tensor]] = {"mmd": mmd, "wasserstein": wasserstein, "mse": mse}


class Repelled(CLIPTrainer):
    """A trainer with reference images, representations of them and the force.

    Attributes:
        before: representations of the samples to be far from, in the order they were made.
        reference_seed: the reference images follow from it.
        distance: d² as it was when the force was last computed, the mean over the samples.
    """

    before: list[Tensor]
    reference_seed: int
    distance: Tensor

    @property
    def repulsion(self) -> CfgNode:
        return self.cfg.TRAINER.REBAPL.REPULSION

    @cached_property
    def references(self) -> Tensor:
        """(n, 3, R, R): training images, augmented as in training."""
        data = self.train_loader_x.dataset
        with seeded(mix_seed(self.reference_seed, REFERENCES)):  # training's own draws go on
            chosen = torch.randperm(len(data))[: self.repulsion.IMAGES].tolist()
            seeds = torch.randint(2**32, (len(chosen),)).tolist()
        drawn = [data[SeededIndex(i, seed)]["img"] for i, seed in zip(chosen, seeds, strict=True)]
        return torch.stack(drawn).to(self.device)

    @property
    def n_images(self) -> int:
        """Rows of a representation that are of images; those behind them are of classes."""
        return 0 if self.repulsion.FEATURES == "text" else len(self.references)

    def all_rows(self) -> Tensor:
        """The indices of a whole representation's rows."""
        classes = 0 if self.repulsion.FEATURES == "image" else self.num_classes
        return torch.arange(self.n_images + classes)

    def draw_rows(self) -> Tensor:
        """The rows that a step compares, in order."""
        rows, some = self.all_rows(), self.repulsion.ROWS
        if some == -1 or some >= len(rows):
            return rows
        return torch.randperm(len(rows))[:some].sort().values

    def representation(self, model: CustomCLIP, rows: Tensor) -> Tensor:
        """(len(rows), D), unit length: features of reference images, then of classes.

        Of the images only those in `rows`, which are in order, are encoded.
        """
        images, classes = rows[rows < self.n_images], rows[rows >= self.n_images] - self.n_images
        with self.autocast():
            parts = [model.image_features(self.references[images])] if len(images) else []
            parts += [model.text_features()[classes]] if len(classes) else []
        return torch.cat(parts)

    def force(self) -> dict[Tensor, Tensor]:
        """{parameter: minus the gradient there of Σ ξ / (d² + ε) over the samples}."""
        node, rows = self.repulsion, self.draw_rows()
        self.model.eval()  # as when a sample is kept; P2C's noise must not count as distance
        features = self.representation(self.model, rows)
        self.model.train()
        options = {"bandwidth": node.BANDWIDTH} if node.DISTANCE == "mmd" else {}
        others = self.before if node.AGAINST == "all" else self.before[-1:]
        squared = [DISTANCES[node.DISTANCE](features, other[rows], **options) for other in others]
        squared = torch.stack(squared)
        self.distance = squared.detach().mean()
        # The chain rule by hand: for near sets the slope ξ / (d² + ε)² is huge, and would overflow
        # on its way back through a tower in half precision. So gradients get it afterwards.
        slopes = node.STRENGTH / (squared.detach() + node.EPS) ** 2
        weighted = (slopes / slopes.sum() * squared).sum()
        params = [p for p in self.model.learner.parameters() if p.requires_grad]
        grads = torch.autograd.grad(self.scaled(weighted), params, allow_unused=True)
        factor = slopes.sum() / self.scaled(torch.ones_like(weighted))
        force = {p: factor * g for p, g in zip(params, grads, strict=True) if g is not None}
        if node.MAX_FORCE:
            length = torch.stack([f.norm() for f in force.values()]).norm()
            shorter = (node.MAX_FORCE / length).clamp(max=1)
            force = {p: shorter * f for p, f in force.items()}
        return force
