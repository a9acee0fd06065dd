"""Text features that differ from image to image, for CoCoOp and the methods that draw prompts.

A method that draws has several random prompts for an image, and averages their predictions.
Shapes: B images, S draws for each, C classes; G rows, each an image with one of its draws.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dassl.utils import mix_seed, ranks

from .base import CustomCLIP

# At most so many prompts (rows × classes) are encoded at once. With gradients that takes about
# 10 GB for ViT-B/16 in float32.
MOST_PROMPTS = 4096


class ConditionalCLIP(CustomCLIP):
    """Each image, or each draw for an image, has text features of its own.

    The learner's `conditional_text_features(clip, *given)` makes them: (G, …) -> (G, C, D).
    """

    def conditional_logits(self, image_features: Tensor, *given: Tensor) -> Tensor:
        """Unit-length image features (G, D), and what their texts are made of -> (G, C)."""

        def logits(image_features: Tensor, *given: Tensor) -> Tensor:
            text = self.learner.conditional_text_features(self.clip, *given)  # (G, C, D)
            return self.logits(image_features, self.unit(text))

        classes = self.learner.text.suffixes.classes
        return in_parts(logits, MOST_PROMPTS // classes, image_features, *given)

    def draws_logits(self, image_features: Tensor, *draws: Tensor) -> Tensor:
        """Unit-length image features (B, D), and S draws for each, (B, S, …) -> (B, S, C)."""
        n = draws[0].shape[1]
        rows = [image_features.repeat_interleave(n, dim=0), *(d.flatten(0, 1) for d in draws)]
        return self.conditional_logits(*rows).unflatten(0, (-1, n))


def in_parts(function: Callable[..., Tensor], most: int, *rows: Tensor) -> Tensor:
    """function(*rows), with at most `most` rows at a time.

    In backward each part is computed once more, so the memory needed is that of one part.
    """
    most = max(1, most)
    if torch.compiler.is_compiling() or len(rows[0]) <= most:  # a graph takes any batch
        return function(*rows)
    parts = zip(*(r.split(most) for r in rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([function(*part) for part in parts])
    once_more = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is drawn in it
    return torch.cat([checkpoint(function, *part, **once_more) for part in parts])


def normal(like: Tensor, *shape: int, seed: int | None = None) -> Tensor:
    """Standard normal draws (B, *shape) for the B rows of `like`, with its dtype and device.

    Without a seed they are new, for training: the rows are images, of a whole batch or of the part
    that this process has. With the run's seed, for tests, they are the same
    for every image: a test repeats, whatever its batch size.
    """
    if seed is None:
        n, own = ranks.all_rows(len(like))
        return torch.randn(n, *shape, dtype=like.dtype, device=like.device)[own]
    return of_seed(seed, *shape).to(like).expand(like.shape[0], *shape)


@cache
def of_seed(seed: int, *shape: int) -> Tensor:
    """Standard normal draws, float64, the same on every device. A graph has them as a constant."""
    generator = torch.Generator().manual_seed(mix_seed(seed, *shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Noise(nn.Module):
    """Standard normal draws for each image: new ones in training, in tests always the same.

    Args:
        n_train, n_test: draws for an image in a training step, and in a test.
        seed: of a test's draws, the run's.

    Attributes:
        spread: factor of a test's draws. 1: as trained; 0: all are 0, so a prompt is its mean.
        only: which of a test's draws are used.
    """

    def __init__(self, n_train: int, n_test: int, seed: int):
        super().__init__()
        self.n_train, self.n_test, self.seed = n_train, n_test, seed
        self.spread, self.only = 1.0, slice(None)

    def forward(self, like: Tensor, *shape: int) -> Tensor:
        """S draws for each of the B rows of `like`, with its dtype: (B, S, *shape)."""
        n, seed = (self.n_train, None) if self.training else (self.n_test, self.seed)
        noise = normal(like, n, *shape, seed=seed)
        return noise if self.training else self.spread * noise[:, self.only]


def log_mean_probability(logits: Tensor) -> Tensor:
    """(…, S, C) -> (…, C): the log of the mean of the S softmaxes, which is used as logits."""
    return logits.log_softmax(dim=-1).logsumexp(dim=-2) - math.log(logits.shape[-2])


def kl_normal(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | float = 0.0,
    prior_log_var: Tensor | float = 0.0,
) -> Tensor:
    """KL(N(mean, e^log_var) ‖ N(prior_mean, e^prior_log_var)) of each element."""
    gap = log_var - prior_log_var
    spread = (mean - prior_mean) ** 2 / torch.as_tensor(prior_log_var).exp()
    return 0.5 * (gap.exp() + spread - 1 - gap)
