"""What an image's scores say beyond the first guess. Nothing here waits for the device."""

import torch
from torch import Tensor

BINS = 15  # of confidence, all of one width


def rank(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before an image's own: (B, C) scores, (B,) int64 labels -> (B,) int64.

    Of equal scores the first class comes first, as in argmax: 0 is a right first guess.
    """
    own = scores.gather(1, labels[:, None])
    first = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return ((scores > own) | ((scores == own) & first)).sum(dim=1)


def calibration_gaps(scores: Tensor, right: Tensor) -> Tensor:
    """Right guesses minus confidence, summed in each bin: (B, C), (B,) bool -> (BINS,) float64.

    An image's confidence is the greatest softmax of its scores, in float32. Bin m has those above
    (m - 1) / BINS and up to m / BINS, so 1.0 is in the last. The expected calibration error,
    sum_m n_m/N · |right_m/n_m - confidence_m/n_m|, is the sum of the gaps' absolute values over N.
    """
    # an infinite score, as of an overflow, is a great one, and no NaN
    confidence = scores.float().nan_to_num().softmax(dim=1).amax(dim=1)
    bins = torch.arange(BINS, device=scores.device)
    edges = (bins[1:].double() / BINS).float()  # by way of float64, where a GPU rounds as a CPU
    inside = torch.bucketize(confidence, edges)[:, None] == bins
    gaps = right.double() - confidence.double()
    return (inside * gaps[:, None]).sum(dim=0)  # scatter_add_ would add in any order
