"""Classes that processes share in a training step: each encodes some, and gets all features.

Where classes are many, most of a step is the text tower's, which sharing the images leaves whole.

Shapes: C classes, of which `own` are this process's, with t of the T tokens of all suffixes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clip.shared_prefix import DeepPrompts, Suffixes
from dassl.utils import ranks


class Share:
    """What of the prompts of C classes is of the classes `own`.

    Args:
        lengths: (C,) tokens of each class's suffix.
    """

    def __init__(self, lengths: Sequence[int], own: slice, device: torch.device):
        start = sum(lengths[: own.start])
        self.own, self.classes = own, len(lengths)
        self.tokens = slice(start, start + sum(lengths[own]))
        self.suffixes = Suffixes(lengths[own], device)

    def of_deep(self, deep: DeepPrompts) -> DeepPrompts:
        """Of vectors for each class, (1, C, n, W), those of these classes."""

        def of(vectors):
            each = not callable(vectors) and vectors.shape[1] == self.classes
            return vectors[:, self.own] if each else vectors

        return {block: (where, of(vectors)) for block, (where, vectors) in deep.items()}

    def gather(self, features: Tensor) -> Tensor:
        """(1, own, D) -> (1, C, D), with gradients."""
        return _Gathered.apply(features, self)


class _Gathered(torch.autograd.Function):
    """A process's loss, of its images alone, counts for the batch as `ranks.weight()`, which its
    gradients are multiplied with at the end (`ranks.mean`). So what the processes' losses say of a
    class is added up here so weighted, and divided by the weight of the process that has the class.
    """

    @staticmethod
    def forward(ctx, features: Tensor, share: Share) -> Tensor:
        ctx.share = share
        whole = features.new_zeros(len(features), share.classes, features.shape[2])
        whole[:, share.own] = features
        ranks.add_up(whole)
        return whole

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        weight = ranks.weight()
        exact = torch.promote_types(grad.dtype, torch.float32)
        total = (grad.to(exact) * weight).contiguous()
        ranks.add_up(total)
        return (total[:, ctx.share.own] / weight).to(grad.dtype), None
