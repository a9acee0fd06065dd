"""A test's counting on a GPU: it waits for nothing, and its numbers are those of a CPU."""

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_process_does_not_wait(dtype):
    torch.manual_seed(0)
    scores, labels = (3 * torch.randn(1000, 50)).to(dtype), torch.randint(50, (1000,))
    results = []
    for device in ("cpu", "cuda"):
        evaluator = build_evaluator(get_cfg_default())
        on_device = [
            (s.to(device), t.to(device))
            for s, t in zip(scores.split(99), labels.split(99), strict=True)
        ]
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in on_device:
                evaluator.process(*batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append(evaluator.evaluate())
    assert results[0].pop("ece") == pytest.approx(results[1].pop("ece"), abs=1e-4)
    assert results[0] == results[1] and "top5_accuracy" in results[0]
