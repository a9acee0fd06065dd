"""Whole trainings with the steps captured, beside the same ones computed as usual. The CUDA that
captures is a fake."""

import pytest
import torch

from dassl.engine.capture import CapturedStep
from tests.fake_cuda import FakeCuda, OnGpu
from tests.trainers.methods import batch, build, shake
from tests.trainers.test_amp import amp

GRAPHED = """
CoOp CoCoOp KgCoOp TCP MaPLe MaPLe_ATP P2C PromptSRC MultiModalAdapter
BayesianPrompt MMRL MMRLpp VaMP VaMP_MMRL EMPL
""".split()
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
            seen.append(
                log | {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
            )
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
    """With each epoch's learning rate and σ, the random numbers drawn in order, and amp's loss
    scale."""
    plain, captured = (build(name, data, tmp_path / path, weights) for path in "ab")
    shake(plain.model)
    captured.model.load_state_dict(plain.model.state_dict())
    for trainer in (plain, captured) if half else ():
        amp(trainer).scaler.set_growth_interval(2)
    plain.compute.refused = True
    given = batches(weights)
    expected, seen = train(plain, given), train(captured, on_gpu(given))
    assert cuda.calls.count("replay") == len(expected) == EPOCHS * len(given)
    torch.testing.assert_close(seen, expected)
    assert expected[0]["loss"] != expected[len(given)]["loss"]


def test_methods_with_two_backward_passes_opt_out(data, tmp_path, weights):
    assert build("ProGrad", data, tmp_path, weights).compute.refused


def test_a_methods_number_that_changes_by_epoch_cannot_poison_a_training(
    data, tmp_path, weights, cuda, capsys
):
    plain, captured = (build("CoOp", data, tmp_path / path, weights) for path in "ab")
    plain.compute.refused = True
    for trainer in (plain, captured):
        trainer.loss = lambda i, x, own=trainer, loss=trainer.loss: (
            loss(i, x)[0] * (1 + own.epoch),
            {},
        )
    captured.model.load_state_dict(plain.model.state_dict())
    given = batches(weights)
    torch.testing.assert_close(train(captured, on_gpu(given)), train(plain, given))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Steps")]
    assert (
        line
        == "Steps are no longer replayed as a CUDA graph, so slower: its loss is not the step's"
    )
    assert cuda.calls.count("replay") == len(given) + 1


def test_a_step_drops_the_text_features_that_were_kept(data, tmp_path, weights):
    """Also one whose kernel does not tell that it has written."""
    trainer = build("CoOp", data, tmp_path, weights)
    trainer.num_batches = 9
    trainer.set_model_mode("eval")
    ctx = trainer.model.learner.ctx
    trainer.model_update = lambda: ctx.data.copy_(torch.randn_like(ctx))
    with torch.no_grad():
        before = trainer.model.text_features()
        trainer.step()
        assert not torch.allclose(trainer.model.text_features(), before)


def test_a_tests_memory_is_not_the_graphs(data, tmp_path, weights, cuda):
    trainer = build("CoOp", data, tmp_path, weights)
    train(trainer, on_gpu(batches(weights)))
    assert trainer.compute.replays
    trainer.test()
    assert not trainer.compute.replays


def replays(trainer, weights, key):
    """What five replays of one step log under the key."""
    image, label = batch(weights, 16)
    if not hasattr(trainer, "replay"):
        trainer.replay = CapturedStep(
            trainer.gradients, dict(trainer.model.named_parameters())
        ).capture((image, label))
    return [trainer.replay(image, label)[key].item() for _ in range(5)]


def test_noise_is_drawn_anew_and_as_large_as_the_epochs_sigma(data, tmp_path, weights, cuda):
    opts = "TRAINER.P2C.DPD.SIGMA_MAX", "0.5", "TRAINER.P2C.AUX.SIGMA", "0.5"
    trainer = build("P2C", data, tmp_path, weights, *opts)
    trainer.max_epoch = EPOCHS
    trainer.before_epoch()
    losses = replays(trainer, weights, "loss")
    assert len(set(losses)) == 5
    trainer.model.learner.sigma.fill_(0.0)
    quiet = replays(trainer, weights, "loss")
    assert 0 < max(quiet) - min(quiet) < 0.01  # what is left is the auxiliary loss's noise
    assert max(losses) - min(losses) > 10 * (max(quiet) - min(quiet))


def test_the_auxiliary_losss_noise_is_drawn_anew(data, tmp_path, weights, cuda):
    opts = "TRAINER.P2C.DPD.ENABLED", "False", "TRAINER.P2C.AUX.SIGMA", "0.5"
    trainer = build("P2C", data, tmp_path, weights, *opts)
    aux = replays(trainer, weights, "aux")
    assert len(set(aux)) == 5 and max(aux) > 1.01 * min(aux) > 0
