"""EMPL's loss, gradients and logits against the plain reference, by every setting; its chains, its
limits and its files."""

from dataclasses import replace

import pytest
import torch

from reference import coop_plain, empl_plain
from reference.clip_plain import PlainCLIP
from reference.empl_plain import Settings
from reference.maple_plain import gradients
from tests.runs import run
from tests.trainers.files import three_classes
from tests.trainers.methods import (
    assert_gradients,
    assert_logits,
    assert_loss,
    assert_refused,
    batch,
    build,
    class_names,
    parameters,
    shake,
    upstream_file,
)
from trainers import draws
from trainers import empl as empl_module
from trainers.empl import WHAT


def empl(data, out, weights, *opts: str, **settings):
    """The trainer, with two chains of two steps, and settings as of the reference's Settings."""
    words = {"unrolled": "META", "per_batch": "PER"}
    said = {
        "unrolled": {False: "first_order", True: "unrolled"},
        "per_batch": {False: "image", True: "batch"},
    }
    for key, value in {"samples": 2, "steps": 2, **settings}.items():
        value = said.get(key, {}).get(value, value)
        opts = (f"TRAINER.EMPL.{words.get(key, key.upper())}", str(value), *opts)
    return build("EMPL", data, out, weights, *opts)


def drawn(trainer, image, s: Settings, seed: int | None = None):
    """The noise of a step after torch.manual_seed(5), or of a test."""
    groups = torch.zeros(1 if s.per_batch else len(image), 1, dtype=image.dtype)
    node, ctx = trainer.node, trainer.model.learner.ctx
    torch.manual_seed(5)
    return draws.normal(groups, node.SAMPLES, 1 + node.STEPS, *ctx.shape, seed=seed)


def check(trainer, weights, s: Settings, images: int = 3, tolerance: float = 1e-5) -> None:
    """In the precision of the trainer's CLIP."""
    dtype = trainer.model.clip.dtype
    image, label = (t[:images] for t in batch(weights, trainer.num_classes))
    image, plain = image.to(dtype), PlainCLIP(weights, dtype)
    prompts, names = parameters(trainer), class_names(trainer)
    expected = empl_plain.loss(plain, prompts, names, image, label, drawn(trainer, image, s), s)
    torch.manual_seed(5)
    loss = trainer.gradients(image, label)["loss"]
    assert abs(loss - expected) <= tolerance * abs(expected)
    assert_gradients(trainer.model.learner, gradients(expected, prompts), tolerance)
    noise, s = drawn(trainer, image, s, seed=trainer.seed), replace(s, unrolled=False)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        expected = empl_plain.logits(plain, prompts, names, image, noise, s)
        logits = trainer.model_inference(image)
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


CASES = {
    "as it is": {},
    "unrolled": {"unrolled": True},
    "unrolled, the gradient as it is": {"unrolled": True, "normalize": False, "step": 0.0001},
    "entropy": {"energy": "entropy", "temperature": 20.0, "prior_std": 0.0},
    "max, feature": {"energy": "max", "average": "feature"},
    "temperature, logit": {"temperature": 3.0, "average": "logit"},
    "coupled": {"coupled": True, "step": 0.0001, "prior_std": 0.05},
    "per batch": {"per_batch": True},
    "per batch, unrolled, feature": {"per_batch": True, "unrolled": True, "average": "feature"},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(tmp_path, weights, case):
    """In double precision: where the energy is flat, single's rounding turns a unit slope."""
    trainer = empl(tmp_path, tmp_path / "out", weights, *three_classes(tmp_path), **CASES[case])
    trainer.model.double(), trainer.model.clip.double()
    shake(trainer.model.learner)
    check(trainer, weights, Settings(**CASES[case]), images=2, tolerance=1e-9)


@pytest.mark.parametrize("case", ["as it is", "per batch"])
def test_in_single_precision(data, tmp_path, weights, case):
    trainer = empl(data, tmp_path, weights, **CASES[case])
    shake(trainer.model.learner)
    check(trainer, weights, Settings(**CASES[case]), images=2)


def test_on_vit_b16(tmp_path, vit_b16):
    trainer = empl(tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path), steps=1)
    shake(trainer.model.learner, 0.01)
    check(trainer, vit_b16, Settings(), images=1)


@pytest.mark.parametrize("meta", ["first_order", "unrolled"])
def test_no_steps_and_no_noise_is_coop(data, tmp_path, weights, meta):
    """Bit for bit: loss, gradient, three steps, logits."""
    words = ("DATALOADER.TRAIN_X.BATCH_SIZE", "4")
    coop = build("CoOp", data, tmp_path / "coop", weights, *words, "TRAINER.COOP.PREC", "fp32")
    opts = (*words, "TRAINER.EMPL.META", meta)
    ours = empl(data, tmp_path / "empl", weights, *opts, steps=0, init_noise=0.0)
    image, label = batch(weights, 16)
    seen = []
    for trainer in coop, ours:
        trainer.num_batches, got = 9, []
        for trainer.batch_idx in range(3):
            log = trainer.forward_backward({"img": image, "label": label, "domain": label})
            ctx = trainer.model.learner.ctx
            got += [log["loss"], ctx.grad.clone(), ctx.detach().clone()]
        trainer.set_model_mode("eval")
        with torch.no_grad():
            seen.append([*got, trainer.model_inference(image)])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert not torch.equal(seen[0][2], seen[0][5])


@pytest.mark.parametrize("settings", [{}, {"per_batch": True}, {"unrolled": True}])
def test_chains_that_stay_are_coop(data, tmp_path, weights, settings):
    """Up to rounding: they are computed like all others."""
    trainer = empl(data, tmp_path, weights, step=0.0, noise=0.0, init_noise=0.0, **settings)
    shake(trainer.model.learner)
    plain, prompts = PlainCLIP(weights), parameters(trainer)
    image, label = batch(weights, 16)
    expected = coop_plain.loss(plain, prompts, class_names(trainer), image, label)
    assert_loss(trainer, image, label, expected, prompts)


def test_without_steps_both_outer_gradients_are_the_same(data, tmp_path, weights):
    image, label = batch(weights, 16)
    seen = []
    for unrolled in False, True:
        trainer = empl(data, tmp_path / str(unrolled), weights, steps=0, unrolled=unrolled)
        torch.manual_seed(5)
        trainer.gradients(image, label)
        seen.append(trainer.model.learner.ctx.grad)
    torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("settings", [{}, {"per_batch": True, "normalize": False}])
def test_the_unrolled_gradient_is_the_finite_differences(data, tmp_path, weights, settings):
    """In double precision, along a direction; the first-order one is another."""
    slopes = {}
    for unrolled in True, False:
        # Steps short enough to stay in reach of a difference, a prior weak enough to be no wall.
        usual = {"step": 0.001, "prior_std": 0.1} | settings
        trainer = empl(data, tmp_path / str(unrolled), weights, unrolled=unrolled, **usual)
        trainer.model.double(), trainer.model.clip.double()
        image, label = (t.double() if t.is_floating_point() else t for t in batch(weights, 16))
        ctx = trainer.model.learner.ctx
        torch.manual_seed(2)
        direction, losses = torch.randn_like(ctx), []
        for shift in 1e-6, -2e-6, 1e-6:  # ahead, behind, and back again
            with torch.no_grad():
                ctx += shift * direction
            torch.manual_seed(5)
            losses.append(trainer.gradients(image, label)["loss"])
        slopes[unrolled] = (ctx.grad * direction).sum()
        difference = (losses[0] - losses[1]) / 2e-6
    assert abs(slopes[True] - difference) < 1e-6 * abs(difference)
    assert abs(slopes[False] - difference) > 1e-4 * abs(difference)


@pytest.mark.parametrize("energy", ["lse", "entropy", "max"])
def test_without_noise_the_energy_falls(data, tmp_path, weights, energy):
    settings = {"energy": energy, "normalize": False, "step": 1e-4, "steps": 4, "noise": 0.0}
    trainer = empl(data, tmp_path, weights, **settings)
    model, [image, _] = trainer.model, batch(weights, 16)
    energies = []
    with torch.no_grad():
        features = model.image_features(image)[:, None]
        noise = draws.normal(features, 5, 4, 64)
        for steps in range(5):
            ends = model.chain(features, noise[:, : 1 + steps])
            energies.append(model.energy(ends, features))
    assert all(
        (after < before).all() for before, after in zip(energies, energies[1:], strict=False)
    )


@pytest.mark.parametrize("coupled", [False, True])
def test_in_a_quadratic_energy_the_variance_is_known(data, tmp_path, weights, coupled, monkeypatch):
    """With the prior alone."""
    settings = {"noise": 0.02, "step": 0.0002, "prior_std": 0.02, "normalize": False}
    trainer = empl(data, tmp_path, weights, coupled=coupled, **settings)
    model, rows = trainer.model, 400
    monkeypatch.setattr(model, "texts", lambda prompts: torch.zeros(len(prompts), 1, 64))
    with torch.no_grad():
        noise = draws.normal(torch.zeros(rows, 1), 1 + 20, 4, 64)
        ends = model.chain(torch.zeros(rows, 1, 64), noise) - model.learner.ctx
    step, variance = (1e-4, 2e-4) if coupled else (2e-4, 4e-4)
    expected = variance / (1 - (1 - step / 0.02**2) ** 2)
    assert ends.var() == pytest.approx(expected, rel=0.02) and abs(ends.mean()) < 1e-3


def test_a_test_repeats_whatever_its_batches(data, tmp_path, weights):
    trainer = empl(data, tmp_path, weights)
    trainer.model.double(), trainer.model.clip.double()
    trainer.set_model_mode("eval")
    image = batch(weights, 16)[0].double()
    with torch.no_grad():
        whole, again = trainer.model_inference(image), trainer.model_inference(image)
        alone = torch.cat([trainer.model_inference(one[None]) for one in image])
    assert torch.equal(whole, again)
    torch.testing.assert_close(whole, alone, rtol=1e-9, atol=1e-9)


def test_one_set_of_prompts_for_a_batch_says_what_that_means(data, tmp_path, weights, capsys):
    trainer = empl(data, tmp_path, weights, per_batch=True)
    assert "PER batch: a test's result depends on its batches" in capsys.readouterr().out
    trainer.set_model_mode("eval")
    image, _ = batch(weights, 16)
    with torch.no_grad():
        whole = trainer.model_inference(image)
        alone = torch.cat([trainer.model_inference(one[None]) for one in image])
    assert (whole - alone).abs().max() > 1e-3


def test_a_training_draws_anew_and_a_test_by_its_own_numbers(data, tmp_path, weights, monkeypatch):
    opts = "TRAINER.EMPL.TEST_SAMPLES", "5", "TRAINER.EMPL.TEST_STEPS", "1"
    trainer = empl(data, tmp_path, weights, *opts)
    image, label = batch(weights, 16)
    shapes = []
    normal = draws.normal
    monkeypatch.setattr(
        draws, "normal", lambda *a, **k: shapes.append((a[1:3], k)) or normal(*a, **k)
    )
    with torch.no_grad():
        first, second = (trainer.loss(image, label)[0] for _ in range(2))
        trainer.set_model_mode("eval")
        trainer.model_inference(image)
    assert first != second
    assert shapes == [((2, 3), {"seed": None})] * 2 + [((5, 2), {"seed": trainer.seed})]


@pytest.mark.parametrize("unrolled", [False, True])
def test_parts_are_the_whole(data, tmp_path, weights, monkeypatch, unrolled):
    """A few rows at a time, each with its whole chain."""
    trainer = empl(data, tmp_path, weights, unrolled=unrolled)
    image, label = batch(weights, 16)
    seen, parts, chain = [], [], trainer.model.chain
    monkeypatch.setattr(trainer.model, "chain", lambda f, n: (parts.append(len(f)), chain(f, n))[1])
    for most in 4096, 4 * 16 + 1:
        monkeypatch.setattr(draws, "MOST_PROMPTS", most)
        torch.manual_seed(5)
        loss = trainer.gradients(image, label)["loss"]
        seen.append((loss, trainer.model.learner.ctx.grad.clone()))
    torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-7)
    assert parts[0] == 6 and {*parts[1:]} == {4, 2}


def test_chains_are_in_single_precision_under_amp(data, tmp_path, weights):
    trainer = empl(data, tmp_path, weights)
    image, _ = batch(weights, 16)
    with torch.no_grad():
        groups = trainer.model.image_features(image)[:, None]
        torch.manual_seed(5)
        expected = trainer.model.sample(groups)
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.float16):
            assert torch.equal(trainer.model.sample(groups), expected)


@pytest.mark.parametrize("meta", ["first_order", "unrolled"])
def test_in_bfloat16_it_is_near(data, tmp_path, weights, meta):
    image, label = batch(weights, 16)
    losses = []
    for prec in "fp32", "bf16":
        opts = "TRAINER.EMPL.PREC", prec, "TRAINER.EMPL.META", meta
        trainer = empl(data, tmp_path / prec, weights, *opts)
        torch.manual_seed(5)
        losses.append(trainer.gradients(image, label)["loss"])
        assert trainer.model.learner.ctx.grad.isfinite().all()
        assert trainer.model.learner.ctx.dtype == torch.float32
    # two digits in each product, and a chain's steps: 6% where a CPU has AMX
    assert 0 < abs(losses[0] - losses[1]) < 0.1 * losses[0]


def test_coops_file_can_be_tested(data, tmp_path, weights):
    """Its ctx, in half precision, beside the token buffers of upstream."""
    state = upstream_file(tmp_path / "coop", {"ctx": (4, 64), "token_prefix": (9, 1, 64)})
    trainer = empl(data, tmp_path, weights)
    trainer.load_model(str(tmp_path / "coop"), epoch=50)
    image, _ = batch(weights, 16)
    noise = drawn(trainer, image, Settings(), seed=trainer.seed)
    plain = PlainCLIP(weights)
    expected = empl_plain.logits(plain, state, class_names(trainer), image, noise, Settings())
    assert_logits(trainer, image, expected)


def test_a_log_says_first_whose_it_is(data, tmp_path):
    opts = "OPTIM.MAX_EPOCH 1 OPTIM.WARMUP_EPOCH 0 TEST.NO_TEST True".split()
    assert run("EMPL", data, tmp_path / "out", *opts, flags=("--no-train",)) == 0
    assert (tmp_path / "out" / "log.txt").read_text().splitlines()[0] == WHAT
    assert "after the abstract of Chen et al." in WHAT
    assert "after the abstract of Chen et al." in empl_module.__doc__.splitlines()[0]


@pytest.mark.parametrize(
    ("line", "opts"),
    [
        ("TRAINER.EMPL.ENERGY joint: must be lse, entropy or max", ("ENERGY", "joint")),
        ("TRAINER.EMPL.META second: must be first_order", ("META", "second")),
        ("TRAINER.EMPL.AVERAGE mean: must be probability", ("AVERAGE", "mean")),
        ("TRAINER.EMPL.PER class: must be image or batch", ("PER", "class")),
        ("TRAINER.EMPL.TEMPERATURE 0.0: must be above 0", ("TEMPERATURE", "0.0")),
        ("TRAINER.EMPL.SAMPLES 0: must be 1 or more", ("SAMPLES", "0")),
        ("TRAINER.EMPL.STEPS -1: must be 0 or more", ("STEPS", "-1")),
        ("TRAINER.EMPL.NOISE -0.1: must be 0 or more", ("NOISE", "-0.1")),
        ("N_CTX 0", ("CTX_INIT", "", "TRAINER.EMPL.N_CTX", "0")),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, line, opts):
    assert_refused("EMPL", data, tmp_path, capsys, line, f"TRAINER.EMPL.{opts[0]}", *opts[1:])


@pytest.mark.parametrize(
    "opts", [("TRAINER.COOP.CSC", "True"), ("TRAINER.ATPROMPT.USE_ATPROMPT", "True")]
)
def test_what_it_has_no_place_for(data, tmp_path, capsys, opts):
    assert_refused("EMPL", data, tmp_path, capsys, "EMPL", *opts)
