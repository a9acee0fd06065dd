"""A training step as a recorded graph. Without a GPU the recording is torch.fx's, which like a CUDA graph keeps what is
Python as it was, and runs what is tensors again."""

from types import SimpleNamespace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from dassl.engine.capture import CapturedStep
from tests.trainers.methods import batch, build, shake

GRAPHED = ["CoOp", "CoCoOp", "KgCoOp", "TCP", "MaPLe", "MaPLe_ATP", "P2C", "PromptSRC", "MultiModalAdapter"]


def recorded(trainer, image, label):
    """(loss, gradients) of a step, recorded with this batch."""
    params = [p for p in trainer.model.parameters() if p.requires_grad]

    def step(image, label):
        log = trainer.gradients(image, label)
        return log["loss"], [p.grad for p in params if p.grad is not None]

    step(image, label)  # what is made at first use is not part of the recording
    return make_fx(step)(image, label), step


@pytest.mark.parametrize("name", GRAPHED)
def test_a_recorded_step_is_the_step(name, data, tmp_path, weights):
    trainer = build(name, data, tmp_path, weights, *small(name))
    trainer.max_epoch = 3
    trainer.before_epoch()
    image, label = batch(weights, 16)
    replay, step = recorded(trainer, image, label)
    assert trainer.graphed
    shake(trainer.model)  # parameters are tensors: a replay sees the new ones
    for seed in (1, 2):
        torch.manual_seed(seed)
        other, others = torch.randn_like(image), label.flip(0)
        state = torch.get_rng_state()
        loss, grads = replay(other, others)
        torch.set_rng_state(state)
        expected_loss, expected = step(other, others)
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(list(grads), [g.clone() for g in expected])


def test_noise_is_drawn_anew_and_as_large_as_the_epochs_sigma(data, tmp_path, weights):
    trainer = build("P2C", data, tmp_path, weights, *small("P2C"), "TRAINER.P2C.DPD.SIGMA_MAX", "0.5")
    trainer.max_epoch = 3
    trainer.before_epoch()
    image, label = batch(weights, 16)
    replay, _ = recorded(trainer, image, label)
    losses = {replay(image, label)[0].item() for _ in range(5)}
    assert len(losses) == 5
    trainer.node.defrost()
    trainer.node.AUX.LAMBDA = 1.0  # Python: the recording has the old one, so only σ makes the difference below
    trainer.model.prompt_learner.sigma.fill_(0.0)
    quiet = [replay(image, label)[0].item() for _ in range(5)]
    assert max(quiet) - min(quiet) < 1e-3  # what is left is the auxiliary loss's noise
    assert max(losses) - min(losses) > 10 * (max(quiet) - min(quiet))


def test_methods_with_two_backward_passes_opt_out(data, tmp_path, weights):
    assert not build("ProGrad", data, tmp_path, weights).graphed


def test_a_step_that_cannot_be_captured_is_computed_as_usual(monkeypatch, capsys):
    """And a line says so, once for each shape."""

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(CapturedStep, "capture", refuse)
    step = CapturedStep(lambda x: {"loss": x.shape}, [])
    on_gpu = SimpleNamespace(shape=(2,), dtype=torch.float32, device=FakeDevice())
    assert step(on_gpu) == step(on_gpu) == {"loss": (2,)}
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Steps are not captured as a CUDA graph, so slower: operation not permitted when stream is capturing"
    ]


class FakeDevice:
    type = "cuda"


def small(name: str) -> tuple[str, ...]:
    """Settings that fit the tiny CLIP's three blocks."""
    keys = {
        "MaPLe": ["MAPLE.PROMPT_DEPTH"],
        "MaPLe_ATP": ["MAPLE.PROMPT_DEPTH"],
        "P2C": ["P2C.PROMPT_DEPTH"],
        "PromptSRC": ["PROMPTSRC.PROMPT_DEPTH_TEXT", "PROMPTSRC.PROMPT_DEPTH_VISION"],
        "MultiModalAdapter": ["MMADAPTER.ADAPTER_END"],
    }
    return tuple(word for key in keys.get(name, ()) for word in (f"TRAINER.{key}", "3"))
