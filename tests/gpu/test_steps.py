"""Training steps on a GPU: captured beside computed, each precision beside fp32, the GPU beside the
CPU."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dassl.engine import TrainerX
from dassl.engine.capture import near
from tests.trainers.methods import batch, build, shake
from tests.trainers.test_capture import GRAPHED

STEPS, EPOCHS = 20, 2
NODES = dict.fromkeys(["CoOp", "KgCoOp", "ProGrad", "TCP"], "COOP")  # of the config, by trainer
NODES |= {"CoCoOp": "COCOOP", "MaPLe": "MAPLE", "MaPLe_ATP": "MAPLE", "P2C": "P2C"}
NODES |= {"PromptSRC": "PROMPTSRC", "MultiModalAdapter": "MMADAPTER", "BayesianPrompt": "VPT"}
NODES |= {"MMRL": "MMRL", "MMRLpp": "MMRLpp", "EMPL": "EMPL"}
NODES |= {"VaMP": "VAMP", "VaMP_MMRL": "MMRL"}
# Relative to their length: what an eighth of a bit more or less in each of many roundings leaves of
# a loss, a gradient.
ROUNDING = {"fp16": (0.01, 0.1), "amp": (0.01, 0.1), "bf16": (0.05, 0.5), "tf32": (2e-3, 0.02)}

Log = list[dict[str, Tensor]]


def on(
    device: str,
    name: str,
    data: Path,
    out: Path,
    weights: Mapping[str, Tensor],
    prec: str,
    *opts: str,
) -> TrainerX:
    """The method's trainer, its parameters shaken, its batches of 3 images."""
    keys = (f"TRAINER.{NODES[name]}.PREC", prec, "USE_CUDA", str(device == "cuda"))
    trainer = build(name, data, out / device, weights, *keys, *opts)
    assert trainer.device.type == device and trainer.prec == prec
    shake(trainer.model)
    trainer.max_epoch, trainer.num_batches = EPOCHS, STEPS // EPOCHS
    trainer.before_epoch()
    return trainer


def train(trainer: TrainerX, given: list[tuple[Tensor, Tensor]]) -> Log:
    """What STEPS steps log, and the parameters in the end."""
    torch.manual_seed(1)
    seen = []
    for epoch in range(EPOCHS):
        trainer.epoch = epoch
        trainer.before_epoch()
        for i in range(trainer.num_batches):
            trainer.batch_idx = i
            image, label = given[i % len(given)]
            seen.append(trainer.forward_backward({"img": image, "label": label, "domain": label}))
    return [*seen, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}]


def batches(weights: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    image, label = batch(weights, 16)
    return [(image + 0.1 * i, (label + i) % 16) for i in range(3)]


@pytest.mark.parametrize(
    ("name", "prec"),
    [*((name, "fp32") for name in GRAPHED), *(("P2C", p) for p in ("fp16", "bf16", "amp", "tf32"))],
)
def test_captured_steps_are_the_steps(name, prec, data, tmp_path, weights, capsys):
    """Losses and parameters of 20, with the noise drawn in order, of two epochs' rates and σ."""
    eager, captured = (on("cuda", name, data, tmp_path / p, weights, prec) for p in "ab")
    captured.model.load_state_dict(eager.model.state_dict())
    eager.compute.refused = True
    expected, seen = train(eager, batches(weights)), train(captured, batches(weights))
    assert captured.compute.replays and not captured.compute.refused
    assert "Steps are" not in capsys.readouterr().out
    tolerance = 1e-4 if prec in ("fp32", "tf32") else 0.02
    for step, (a, b) in enumerate(zip(seen, expected, strict=True)):
        for key in b:
            assert near(a[key], b[key], tolerance), (
                f"{key} of step {step}: {a[key]} is not {b[key]}"
            )


def test_a_replay_draws_noise_anew(data, tmp_path, weights):
    trainer = on(
        "cuda",
        "P2C",
        data,
        tmp_path,
        weights,
        "fp32",
        "TRAINER.P2C.DPD.SIGMA_MAX",
        "0.5",
    )
    [first, *_] = batches(weights)
    step = {"img": first[0], "label": first[1], "domain": first[1]}
    trainer.step = lambda: None
    losses = [trainer.forward_backward(step)["loss"].item() for _ in range(6)]
    assert trainer.compute.replays and len(set(losses)) == 6


def test_a_python_number_that_changes_by_epoch_ends_the_replays(data, tmp_path, weights, capsys):
    trainer = on("cuda", "CoOp", data, tmp_path, weights, "fp32")
    loss = trainer.loss
    trainer.loss = lambda image, label: (loss(image, label)[0] * (1 + trainer.epoch), {})
    train(trainer, batches(weights))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Steps")]
    assert "no longer replayed" in line and trainer.compute.refused


def gradients(trainer: TrainerX, given: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The loss, and all gradients as one vector, in double precision on the CPU."""
    image, label = (t.to(trainer.device) for t in given)
    loss = next(iter(trainer.gradients(image, label).values()))
    scale = trainer.scaler.get_scale() if trainer.scaler else 1.0
    grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    return loss.double().cpu(), torch.cat(grads).double().cpu() / scale


# Without what is drawn, which on a GPU is something else.
QUIET = ("TRAINER.P2C.DPD.ENABLED", "False", "TRAINER.P2C.AUX.ENABLED", "False")
QUIET += ("TRAINER.VPT.INIT_LOGVAR", "-60", "TRAINER.VAMP.VARIATIONAL", "False")
QUIET += ("TRAINER.EMPL.NOISE", "0.0", "TRAINER.EMPL.INIT_NOISE", "0.0")


@pytest.mark.parametrize("name", NODES)
def test_fp32_on_a_gpu_is_fp32_on_a_cpu(name, data, tmp_path, weights):
    cpu, cuda = (on(d, name, data, tmp_path, weights, "fp32", *QUIET) for d in ("cpu", "cuda"))
    cuda.model.load_state_dict(cpu.model.state_dict())
    given = batches(weights)[0]
    (expected, grads), (loss, own) = (gradients(t, given) for t in (cpu, cuda))
    assert near(loss, expected, 1e-5) and near(own, grads, 1e-4)


@pytest.mark.parametrize("prec", ROUNDING)
def test_other_precisions_are_near_fp32(prec, data, tmp_path, vit_b16):
    """P2C on ViT-B/16, the weights random."""
    exact, rounded = (
        on("cuda", "P2C", data, tmp_path / p, vit_b16, p, *QUIET) for p in ("fp32", prec)
    )
    rounded.model.load_state_dict(exact.model.state_dict())
    if rounded.scaler:
        rounded.scaler.scale(torch.ones((), device="cuda"))
        rounded.scaler.update(2.0**8)
    given = batches(vit_b16)[0]
    (expected, grads), (loss, own) = (gradients(t, given) for t in (exact, rounded))
    of_loss, of_grads = ROUNDING[prec]
    assert near(loss, expected, of_loss), f"{loss} is not {expected}"
    assert near(own, grads, of_grads), (
        f"gradients differ by {((own - grads).norm() / grads.norm()).item():.2g}"
    )


def test_fp32_products_are_not_rounded_to_tf32(data, tmp_path, vit_b16):
    trainer = on("cuda", "P2C", data, tmp_path, vit_b16, "fp32")
    conv = trainer.model.clip.visual.conv1
    image = torch.randn(2, 3, 224, 224, device="cuda")
    a, b = torch.randn(2, 512, 512, device="cuda")
    with torch.no_grad():
        assert near(conv(image), conv.double()(image.double()), 1e-6)
        assert near(a @ b, a.double() @ b.double(), 1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_fused_optimizers_step_as_others(optimizer, data, tmp_path, weights):
    """And text features kept before their step are not those after it."""
    opts = ("OPTIM.NAME", optimizer, "OPTIM.WARMUP_EPOCH", "-1")
    fused, plain = (on("cuda", "CoOp", data, tmp_path / p, weights, "fp32", *opts) for p in "ab")
    plain.model.load_state_dict(fused.model.state_dict())
    assert fused.optim.defaults["fused"]
    for group in plain.optim.param_groups:
        group["fused"] = False
    for trainer in (fused, plain):
        trainer.compute.refused = True
    end, expected = (train(trainer, batches(weights))[-1] for trainer in (fused, plain))
    for key in expected:
        assert near(end[key], expected[key], 1e-5), key
    fused.set_model_mode("eval")
    with torch.no_grad():
        before = fused.model.text_features()
    fused.step()
    with torch.no_grad():
        assert not torch.equal(fused.model.text_features(), before)
