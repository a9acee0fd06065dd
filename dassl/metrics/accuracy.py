from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def compute_accuracy(
    output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)
) -> list[Tensor]:
    """Top-k accuracies in percent, one 0-dim tensor on output's device per k.

    output: (B, C) scores, or a sequence that starts with them; target: (B,) labels.
    """
    scores = output[0] if isinstance(output, (tuple, list)) else output
    hits = scores.topk(max(topk), dim=1).indices == target[:, None]
    return [100 * hits[:, :k].any(dim=1).float().mean() for k in topk]
