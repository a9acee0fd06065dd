"""What methods with several predictions for one image share: their average."""

import math

from torch import Tensor


def log_mean_probability(logits: Tensor) -> Tensor:
    """(…, S, C) -> (…, C): the log of the mean over the S of the softmax over the C.

    Its softmax is the mean of the probabilities, so it takes the place of logits.
    """
    return logits.log_softmax(dim=-1).logsumexp(dim=-2) - math.log(logits.shape[-2])
