"""Kept features and decoded test images on a GPU: the logits are, bit for bit, those without."""

import pytest
import torch
from torch import Tensor

from dassl.evaluation.evaluator import Classification
from dassl.utils import read_json
from tests.runs import run


@pytest.fixture
def logits(monkeypatch) -> list[Tensor]:
    """Of the tests so far, batch by batch."""
    seen, process = [], Classification.process

    def record(self: Classification, mo: Tensor, gt: Tensor) -> None:
        seen.append(mo.clone())
        process(self, mo, gt)

    monkeypatch.setattr(Classification, "process", record)
    return seen


@pytest.mark.parametrize(
    ("name", "prec", "key", "where"),
    [
        ("ZeroshotCLIP", "", "FEATURES", "features"),
        *(("CoOp", prec, "FEATURES", "features") for prec in ("fp16", "bf16", "fp32", "amp")),
        ("CoCoOp", "fp16", "FEATURES", "features"),
        *(("P2C", prec, "TEST_CACHE", "crops") for prec in ("fp16", "fp32")),
    ],
)
def test_logits_are_those_without(name, prec, key, where, data, tmp_path, logits):
    node = {"P2C": "P2C", "CoOp": "COOP", "CoCoOp": "COCOOP"}.get(name)
    opts = (f"TRAINER.{node}.PREC", prec, "OPTIM.MAX_EPOCH", "2") if node else ()
    off = ("DATALOADER.FEATURES", "", "DATALOADER.TEST_CACHE", "")
    flags = ("--eval-only", "--model-dir", str(tmp_path / "train")) if node else ()
    if node:
        assert run(name, data, tmp_path / "train", *opts, *off) == 0
    logits.clear()
    for folder, kept in (
        ("without", off),
        ("first", (f"DATALOADER.{key}", str(tmp_path / "kept"))),
    ) * 2:
        again = folder + "_again" * (tmp_path / folder).exists()
        assert run(name, data, tmp_path / again, *opts, *kept, flags=flags) == 0
    assert read_json(str(tmp_path / "first_again" / "results.json"))["test_from"] == where
    batches = len(logits) // 4
    expected = logits[:batches]
    assert batches and expected[0].device.type == "cuda"
    for i in range(1, 4):
        for a, b in zip(logits[i * batches : (i + 1) * batches], expected, strict=True):
            assert torch.equal(a, b)
