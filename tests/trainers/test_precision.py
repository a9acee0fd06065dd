"""PREC: which type is computed in, and what the log says of it."""

import pytest
import torch

from tests.trainers.methods import build
from trainers import frozen_clip
from trainers.frozen_clip import allow_tf32, choose_precision, multiplies_in_bf16

CPU = torch.device("cpu")
HINT = "; this CPU multiplies in bf16 too: PREC bf16 is faster for a large CLIP, and less exact"
SLOW = "; this CPU has no products in it that PyTorch knows of, fp32 is faster"


@pytest.mark.parametrize(
    ("prec", "can", "fixed", "said"),
    [
        ("fp32", True, False, f"fp32{HINT}"),
        ("fp32", False, False, "fp32"),
        ("fp16", True, False, f"fp32, since a CPU does not gain from fp16{HINT}"),
        ("tf32", False, False, "fp32, since a CPU does not gain from tf32"),
        ("amp", False, False, "fp32, since a CPU does not gain from amp"),
        ("fp16", True, True, "fp32, since a CPU does not gain from fp16"),
        ("bf16", True, False, "bf16"),
        ("bf16", False, False, f"bf16{SLOW}"),
    ],
)
def test_on_a_cpu(prec, can, fixed, said, monkeypatch, capsys):
    monkeypatch.setattr(frozen_clip, "multiplies_in_bf16", lambda: can)
    assert choose_precision(prec, CPU, fixed) == said[:4]
    assert capsys.readouterr().out == f"Precision: {said}\n"


@pytest.mark.parametrize("prec", frozen_clip.PRECISIONS)
def test_a_gpu_takes_what_is_asked(prec, capsys):
    assert choose_precision(prec, torch.device("cuda")) == prec
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_either_instruction_will_do_and_older_versions_know_none(name, monkeypatch):
    for other in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, other, raising=False)
    assert multiplies_in_bf16() is False
    monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    assert multiplies_in_bf16() is True


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_for_products_and_convolutions_alike(allowed):
    """PyTorch's own default allows it in convolutions alone."""
    allow_tf32(allowed)
    assert (
        torch.backends.cudnn.allow_tf32 is allowed
        and torch.backends.cuda.matmul.allow_tf32 is allowed
    )


@pytest.mark.parametrize("prec", ["fp32", "tf32"])
def test_a_trainer_allows_it_only_if_asked(prec, data, tmp_path, weights, monkeypatch):
    monkeypatch.setattr("trainers.base.choose_precision", lambda prec, device: prec)
    build("CoOp", data, tmp_path, weights, "TRAINER.COOP.PREC", prec)
    assert (
        torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is (prec == "tf32")
    )
