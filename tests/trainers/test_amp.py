"""amp as on a GPU, with the CPU's autocast and a GradScaler (a run on a CPU computes in fp32
instead)."""

import pytest
import torch

import trainers.base
from dassl.optim import build_optimizer
from tests.trainers.methods import batch, build, shake

METHODS = """
CoOp CoCoOp KgCoOp ProGrad TCP P2C PromptSRC MultiModalAdapter
BayesianPrompt MMRL MMRLpp VaMP VaMP_MMRL EMPL ReBaPL_MaPLe ReBaPL_MMRL
""".split()
QUIET = """
TRAINER.P2C.DPD.ENABLED False
TRAINER.EMPL.NOISE 0.0 TRAINER.EMPL.INIT_NOISE 0.0
""".split()


@pytest.fixture(autouse=True)
def fused_kernels(monkeypatch):
    monkeypatch.setattr(
        trainers.base, "build_optimizer", lambda *given, fused: build_optimizer(*given, fused=True)
    )


def amp(trainer):
    trainer.prec, trainer.scaler = "amp", torch.amp.GradScaler("cpu", init_scale=2.0**8)
    trainer.scaler.scale(torch.ones(()))  # it has no state before
    trainer.max_epoch, trainer.num_batches = 3, 99
    trainer.before_epoch()
    return trainer


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_near_fp32s_and_the_logits_are_fp32(name, data, tmp_path, weights):
    trainer = build(name, data, tmp_path, weights, *QUIET)
    shake(trainer.model)
    image, label = batch(weights, 16)
    torch.manual_seed(1)
    log = trainer.gradients(image, label)
    amp(trainer)
    torch.manual_seed(1)  # of the methods that draw
    half = trainer.gradients(image, label)
    for key, value in log.items():
        assert half[key].item() == pytest.approx(value.item(), rel=0.05, abs=0.01), key
    with trainer.autocast():
        assert trainer.model(image).dtype == torch.float32


@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_overflows_is_skipped_and_the_next_is_not(name, data, tmp_path, weights):
    trainer = amp(build(name, data, tmp_path, weights, *QUIET))
    image, label = batch(weights, 16)
    params = [p for p in trainer.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in params]
    step = {"img": image, "label": label, "domain": label}
    trainer.scaler.update(torch.tensor(float("inf")))  # the loss itself overflows
    trainer.forward_backward(step)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    trainer.scaler.update(2.0**8)
    trainer.forward_backward(step)
    assert all(p.isfinite().all() for p in params)
    assert any(not torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("prec", ["fp32", "amp"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_gpus_steps_have_fused_kernels(monkeypatch, data, tmp_path, weights, device, prec):
    """With which amp does not wait for the device."""
    monkeypatch.undo()
    trainer = build("CoOp", data, tmp_path, weights)
    trainer.device, trainer.prec = torch.device(device), prec
    optimizer = trainer.build_optimizer(trainer.model.learner)
    assert bool(optimizer.defaults["fused"]) is (device == "cuda")


def test_the_loss_scale_survives_a_resume(data, tmp_path, weights):
    first, second = (amp(build("CoOp", data, tmp_path / name, weights)) for name in "ab")
    first.scaler.update(2.0**5)
    second.resume_state(first.state_to_resume())
    assert second.scaler.get_scale() == 2.0**5
