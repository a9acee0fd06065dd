"""PREC: which type is computed in."""

import pytest
import torch

from dassl.utils.errors import UsageError
from tests.trainers.methods import build
from trainers.base import allow_tf32, choose_precision

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize("prec", ["fp16", "bf16", "fp32", "tf32", "amp"])
def test_a_gpu_has_them_all(prec, capsys):
    assert choose_precision(prec, GPU) == prec and not capsys.readouterr().out


@pytest.mark.parametrize("prec", ["fp16", "amp", "tf32"])
def test_what_a_cpu_does_not_gain_from_is_fp32_and_said(prec, capsys):
    assert choose_precision(prec, CPU) == "fp32"
    assert prec in capsys.readouterr().out


def test_unknown():
    with pytest.raises(UsageError, match="PREC 'fp8': choose from fp32, tf32, fp16, bf16, amp"):
        choose_precision("fp8", GPU)


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_for_products_and_convolutions_alike(allowed):
    """PyTorch's own default allows it in convolutions alone."""
    allow_tf32(allowed)
    assert torch.backends.cudnn.allow_tf32 is allowed and torch.backends.cuda.matmul.allow_tf32 is allowed


@pytest.mark.parametrize("prec", ["fp32", "tf32"])
def test_a_trainer_allows_it_only_if_asked(prec, data, tmp_path, weights, monkeypatch):
    monkeypatch.setattr("trainers.base.choose_precision", lambda prec, device: prec)
    build("CoOp", data, tmp_path, weights, "TRAINER.COOP.PREC", prec)
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is (prec == "tf32")
