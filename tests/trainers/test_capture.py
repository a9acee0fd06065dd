"""Whole trainings with the steps captured, beside the same ones computed as usual. The CUDA that captures is a fake."""

import pytest
import torch

from dassl.engine.capture import CapturedStep
from tests.fake_cuda import FakeCuda, OnGpu
from tests.trainers.methods import batch, build, shake
from tests.trainers.test_amp import amp

GRAPHED = ["CoOp", "CoCoOp", "KgCoOp", "TCP", "MaPLe", "MaPLe_ATP", "P2C", "PromptSRC", "MultiModalAdapter"]
EPOCHS = 3


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def train(trainer, batches):
    """What each step logs and the parameters after it, of EPOCHS epochs of these batches."""
    trainer.max_epoch, trainer.num_batches, seen = EPOCHS, len(batches), []
    torch.manual_seed(1)
    for trainer.epoch in range(EPOCHS):
        trainer.before_epoch()
        for trainer.batch_idx, (image, label) in enumerate(batches):
            log = trainer.forward_backward({"img": image, "label": label, "domain": label})
            seen.append(log | {name: p.detach().clone() for name, p in trainer.model.named_parameters()})
    return seen


def batches(weights):
    """Four, of two sizes."""
    image, label = batch(weights, 16)
    others = torch.randn(4, *image.shape, generator=torch.Generator().manual_seed(2))
    labels = label, label.flip(0), label + torch.tensor([3, -2, 0]), label.roll(1)
    made = list(zip(others, labels, strict=True))
    return [*made[:2], (made[2][0][:2], made[2][1][:2]), made[3]]


def on_gpu(batches):
    return [tuple(t.clone().as_subclass(OnGpu) for t in pair) for pair in batches]


@pytest.mark.parametrize(("name", "half"), [*((name, False) for name in GRAPHED), ("P2C", True)])
def test_a_training_of_captured_steps_is_the_training(name, half, data, tmp_path, weights, cuda):
    """With each epoch's learning rate and σ, the random numbers drawn in order, and amp's loss scale."""
    plain, captured = (build(name, data, tmp_path / path, weights, *small(name)) for path in "ab")
    shake(plain.model)
    captured.model.load_state_dict(plain.model.state_dict())
    for trainer in (plain, captured) if half else ():
        amp(trainer).scaler.set_growth_interval(2)
    assert isinstance(captured.compute, CapturedStep)
    plain.compute = plain.gradients
    given = batches(weights)
    expected, seen = train(plain, given), train(captured, on_gpu(given))
    assert cuda.calls.count("replay") == len(expected) == EPOCHS * len(given)
    torch.testing.assert_close(seen, expected)
    assert expected[0]["loss"] != expected[len(given)]["loss"]


def test_methods_with_two_backward_passes_opt_out(data, tmp_path, weights):
    assert not isinstance(build("ProGrad", data, tmp_path, weights).compute, CapturedStep)


def replays(trainer, weights, key):
    """What five replays of one step log under the key."""
    image, label = batch(weights, 16)
    if not hasattr(trainer, "replay"):
        trainer.replay = CapturedStep(trainer.gradients, trainer.model.parameters()).capture((image, label))
    return [trainer.replay(image, label)[key].item() for _ in range(5)]


def test_noise_is_drawn_anew_and_as_large_as_the_epochs_sigma(data, tmp_path, weights, cuda):
    opts = "TRAINER.P2C.DPD.SIGMA_MAX", "0.5", "TRAINER.P2C.AUX.SIGMA", "0.5"
    trainer = build("P2C", data, tmp_path, weights, *small("P2C"), *opts)
    trainer.max_epoch = EPOCHS
    trainer.before_epoch()
    losses = replays(trainer, weights, "loss")
    assert len(set(losses)) == 5
    trainer.model.prompt_learner.sigma.fill_(0.0)
    quiet = replays(trainer, weights, "loss")
    assert 0 < max(quiet) - min(quiet) < 0.01  # what is left is the auxiliary loss's noise
    assert max(losses) - min(losses) > 10 * (max(quiet) - min(quiet))


def test_the_auxiliary_losss_noise_is_drawn_anew(data, tmp_path, weights, cuda):
    opts = "TRAINER.P2C.DPD.ENABLED", "False", "TRAINER.P2C.AUX.SIGMA", "0.5"
    trainer = build("P2C", data, tmp_path, weights, *small("P2C"), *opts)
    aux = replays(trainer, weights, "aux")
    assert len(set(aux)) == 5 and max(aux) > 1.01 * min(aux) > 0


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
