"""VaMP on MaPLe's places: loss, gradients and probabilities against the plain reference with the
same draws, its limits, its prototypes, its tests and its files."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from reference import vamp_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import gradients
from tests.runs import run
from tests.trainers import test_steps
from tests.trainers.files import accuracies, read, three_classes
from tests.trainers.methods import (
    assert_logits,
    assert_loss,
    assert_refused,
    batch,
    build,
    class_names,
    parameters,
    shake,
    uneven_names,
)
from trainers import draws, vamp
from trainers.vamp import VaMP

FOLDER = "VariationalPromptLearner"
DETERMINISTIC = "TRAINER.VAMP.VARIATIONAL", "False"
NORMAL_PRIOR = "TRAINER.VAMP.PRIOR", "normal"


def shaken(method, data, out, weights, *opts):
    """A trainer whose nets' outputs depend on what they see, with draws as large as the means."""
    trainer = build(method, data, out, weights, *opts)
    shake(trainer.model.learner)
    for name in ("posterior", "prior"):
        shake(getattr(trainer.model.learner, name, torch.nn.Module()), 0.1)
    return trainer


def random_prototypes(trainer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    dim = trainer.model.clip.visual.output_dim
    return F.normalize(torch.randn(trainer.num_classes, dim, generator=generator), dim=-1)


def check(trainer, weights, **settings):
    """The loss, gradients and log-probabilities of a shaken trainer."""
    trainer.prototypes = random_prototypes(trainer)
    of_class = trainer.prototypes if trainer.class_aware else None
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    image, label = batch(weights, trainer.num_classes)
    node, width = trainer.node, trainer.model.clip.transformer.width
    shape = node.PROMPT_DEPTH, node.N_CTX, width
    torch.manual_seed(7)
    noise = draws.normal(image, node.TRAIN_SAMPLES, *shape)
    assert not torch.equal(noise[0], noise[1])  # each image has its own
    expected = vamp_plain.loss(plain, prompts, names, image, label, noise, of_class, **settings)
    torch.manual_seed(7)
    assert_loss(trainer, image, label, expected, prompts)
    noise = draws.normal(image, node.TEST_SAMPLES, *shape, seed=trainer.seed)[0]
    unit = {"unit": settings.get("unit", True)}
    expected = vamp_plain.log_probabilities(plain, prompts, names, image, noise, **unit)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    assert_logits(trainer, image, expected)


@pytest.mark.parametrize(
    ("opts", "settings"),
    [
        ((), {}),
        (("TRAIN_SAMPLES", "2", "KL_WEIGHT", "0.3", "TEST_SAMPLES", "3"), {"kl_weight": 0.3}),
        (("PRIOR", "normal", "KL_REDUCTION", "sum", "N_CTX", "3"), {"reduction": "sum"}),
        (("FEATURE_NORM", "False", "PROMPT_DEPTH", "1"), {"unit": False}),
    ],
)
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, opts, settings):
    uneven_names(monkeypatch)
    opts = [f"TRAINER.VAMP.{word}" if i % 2 == 0 else word for i, word in enumerate(opts)]
    trainer = shaken("VaMP", data, tmp_path, weights, *opts)
    check(trainer, weights, **settings)


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use; few classes, draws and images."""
    opts = (*three_classes(tmp_path), "TRAINER.VAMP.TEST_SAMPLES", "1")
    trainer = shaken("VaMP", tmp_path, tmp_path / "out", vit_b16, *opts)
    check(trainer, vit_b16)


@pytest.mark.parametrize("opts", [(), ("TRAINER.VAMP.SAMPLE_SPECIFIC", "False")])
def test_without_draws_it_equals_the_reference(data, tmp_path, weights, opts):
    """Prompts that follow from the image, and prompts that are the same for all."""
    trainer = shaken("VaMP", data, tmp_path, weights, *DETERMINISTIC, *opts)
    image, label = batch(weights, trainer.num_classes)
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    expected = vamp_plain.deterministic_logits(plain, prompts, names, image)
    assert_loss(trainer, image, label, F.cross_entropy(expected, label), prompts)
    assert_logits(trainer, image, expected if opts else expected.log_softmax(-1))


def test_parameters_after_20_steps(data, tmp_path, weights, monkeypatch):
    """In double precision, as in test_steps.py, with the draws that each step made."""
    drawn, generator = [], torch.Generator().manual_seed(4)

    def normal(*args, **kwargs):
        drawn.append(draws.normal(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(vamp, "normal", normal)
    prototypes = torch.randn(16, 64, generator=generator, dtype=torch.float64)
    monkeypatch.setattr(VaMP, "prototypes", prototypes)

    def of_the_step(plain, prompts, names, image, label):
        loss = vamp_plain.loss(plain, prompts, names, image, label, drawn[-1], prototypes)
        return gradients(loss, prompts)

    adamw = lambda p, **options: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01, **options)  # noqa: E731
    monkeypatch.setitem(test_steps.CASES, "VaMP", (adamw, of_the_step))
    test_steps.test_parameters_after_20_steps("VaMP", data, tmp_path, weights)


# -- the Gaussians


def test_begins_with_the_std_it_is_given(data, tmp_path, weights):
    trainer = build("VaMP", data, tmp_path, weights, "TRAINER.VAMP.INIT_STD", "0.05")
    image, _ = batch(weights, trainer.num_classes)
    learner = trainer.model.learner
    for net in (learner.posterior, learner.prior):
        mean, log_var = net(trainer.model.condition(image))
        assert mean.shape == log_var.shape == (3, 3, 2, 64)
        assert 0.04 < (log_var / 2).exp().mean() < 0.06
        assert 0.015 < mean.std() < 0.1 and (mean[0] - mean[1]).abs().max() > 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kl_is_that_of_torch(data, tmp_path, weights, reduction):
    opts = ("TRAINER.VAMP.KL_REDUCTION", reduction)
    trainer = shaken("VaMP", data, tmp_path, weights, *opts)
    image, label = batch(weights, trainer.num_classes)
    learner, prototypes = trainer.model.learner, random_prototypes(trainer)[label]
    q = learner.posterior(trainer.model.condition(image))
    for of_class, (mean, log_var) in {
        prototypes: learner.prior(prototypes),
        None: (torch.zeros_like(q[0]), torch.zeros_like(q[0])),
    }.items():
        p = Normal(mean, (log_var / 2).exp())
        kl = kl_divergence(Normal(q[0], (q[1] / 2).exp()), p)  # (B, L, M, W)
        expected = kl.mean((2, 3)) if reduction == "mean" else kl.sum((2, 3))
        torch.testing.assert_close(learner.kl(*q, of_class), expected.sum(1).mean())


def test_a_prior_that_is_the_posterior_costs_nothing(data, tmp_path, weights):
    trainer = shaken("VaMP", data, tmp_path, weights)
    learner, x = trainer.model.learner, random_prototypes(trainer)[:2]
    learner.prior.load_state_dict(learner.posterior.state_dict())
    assert learner.kl(*learner.posterior(x), x) == 0


def without_spread(trainer):
    """The learner's state, its draws' σ made 1e-13; and what of it a deterministic one has."""
    learner = trainer.model.learner
    for net in learner.posterior:
        half = len(net.fc2.bias) // 2
        net.fc2.weight.data[half:], net.fc2.bias.data[half:] = 0, -60
    state = {k: v for k, v in learner.state_dict().items() if not k.startswith("prior")}
    return {k: v[: len(v) // 2] if "fc2" in k else v for k, v in state.items()}


@pytest.mark.parametrize("samples", ["0", "1", "4"])
def test_without_spread_it_is_the_deterministic_row(data, tmp_path, weights, samples):
    trainer = shaken("VaMP", data, tmp_path, weights, "TRAINER.VAMP.TEST_SAMPLES", samples)
    fixed = build("VaMP", data, tmp_path, weights, *DETERMINISTIC)
    fixed.model.learner.load_state_dict(without_spread(trainer))
    image, _ = batch(weights, trainer.num_classes)
    with torch.no_grad():
        expected = fixed.model_inference(image)
    assert_logits(trainer, image, expected)


def test_the_posteriors_mean_is_no_draw(data, tmp_path, weights):
    """TEST_SAMPLES 0, where σ is not 0."""
    trainer = shaken("VaMP", data, tmp_path, weights, "TRAINER.VAMP.TEST_SAMPLES", "0")
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    image, _ = batch(weights, trainer.num_classes)
    noise = torch.zeros(1, 3, 2, 64)
    expected = vamp_plain.log_probabilities(plain, prompts, names, image, noise)
    assert_logits(trainer, image, expected)


# -- tests and training


def test_a_test_repeats_whatever_its_batches_are(data, tmp_path, weights, monkeypatch):
    """Also in parts; another seed draws otherwise."""
    trainer = shaken("VaMP", data, tmp_path, weights)
    image, _ = batch(weights, trainer.num_classes)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        whole, before = trainer.model_inference(image), torch.get_rng_state()
        assert torch.equal(trainer.model_inference(image), whole)
        assert torch.equal(torch.get_rng_state(), before)
        monkeypatch.setattr(draws, "MOST_PROMPTS", 7 * trainer.num_classes)
        alone = torch.cat([trainer.model_inference(image[i : i + 1]) for i in range(3)])
        trainer.model.seed += 1
        other = trainer.model_inference(image)
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)
    assert (other - whole).abs().max() > 0.01
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(3))


def test_a_run_tested_by_1_and_by_100_images(data, tmp_path, capsys):
    opts = ("OPTIM.MAX_EPOCH", "2")
    assert run("VaMP", data, tmp_path / "run", *opts) == 0
    trained = accuracies(capsys)
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    for size in ("1", "100"):
        out, by = tmp_path / size, ("DATALOADER.TEST.BATCH_SIZE", size)
        assert run("VaMP", data, out, *opts, *by, flags=flags) == 0
        assert accuracies(capsys) == trained


def test_every_step_draws_anew(data, tmp_path, weights):
    trainer = shaken("VaMP", data, tmp_path, weights)
    image, label = batch(weights, trainer.num_classes)
    first, second = (trainer.loss(image, label)[0] for _ in range(2))
    assert first != second


# -- prototypes


@pytest.mark.parametrize("norms", [("True", "True"), ("True", "False"), ("False", "False")])
def test_prototypes_are_the_classes_means(data, tmp_path, weights, norms):
    """Of all training images, resized and cropped as in a test; nothing is drawn for them."""
    unit, unit_mean = norms
    keys = ("TRAINER.VAMP.FEATURE_NORM", unit, "TRAINER.VAMP.PROTOTYPE_NORM", unit_mean)
    shots = ("DATASET.NUM_SHOTS", "3", "DATALOADER.TEST.BATCH_SIZE", "5")
    trainer = build("VaMP", data, tmp_path, weights, *keys, *shots)
    before = torch.get_rng_state()
    got = trainer.prototypes
    assert torch.equal(torch.get_rng_state(), before) and not got.requires_grad
    test, items = trainer.test_loader.dataset, trainer.dm.dataset.train_x
    images = [test.transform(test.cache.read(item.impath)) for item in items]
    labels = [item.label for item in items]
    expected = vamp_plain.prototypes(
        PlainCLIP(weights), images, labels, unit == "True", unit_mean == "True"
    )
    assert got.shape == (16, 64) and len(items) == 48
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_is_the_run_itself(data, tmp_path):
    """Prototypes come from the checkpoint, not anew."""
    opts = ("OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_FREQ", "1")
    assert run("VaMP", data, tmp_path / "whole", *opts) == 0
    expected = read(tmp_path / "whole", FOLDER, epoch=2)
    (tmp_path / "cut" / FOLDER).mkdir(parents=True)
    first = torch.load(tmp_path / "whole" / FOLDER / "model.pth.tar-1", weights_only=True)
    torch.save(first, tmp_path / "cut" / FOLDER / "model.pth.tar-1")
    assert run("VaMP", data, tmp_path / "cut", *opts) == 0
    got = read(tmp_path / "cut", FOLDER, epoch=2)
    assert all(torch.equal(got[key], expected[key]) for key in expected | got)
    first["trainer"]["prototypes"] *= -1
    (tmp_path / "other" / FOLDER).mkdir(parents=True)
    torch.save(first, tmp_path / "other" / FOLDER / "model.pth.tar-1")
    assert run("VaMP", data, tmp_path / "other", *opts) == 0
    other = read(tmp_path / "other", FOLDER, epoch=2)
    assert not torch.equal(other["prior.0.fc2.weight"], expected["prior.0.fc2.weight"])


def test_a_run_with_the_normal_prior_has_no_prototypes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(VaMP, "prototypes", property(lambda _: pytest.fail("computed")))
    opts = ("OPTIM.MAX_EPOCH", "2", *NORMAL_PRIOR)
    assert run("VaMP", data, tmp_path, *opts) == 0
    file = torch.load(tmp_path / FOLDER / "model.pth.tar-2", weights_only=True)
    assert "prototypes" not in file.get("trainer", {})
    assert not any(key.startswith("prior") for key in file["state_dict"])


@pytest.mark.parametrize("prec", ["fp16", "bf16"])
def test_in_half_precision(data, tmp_path, weights, prec):
    """A CPU computes fp16 in fp32; the nets and the KL stay in float32 throughout."""
    trainer = shaken("VaMP", data, tmp_path, weights, "TRAINER.VAMP.PREC", prec)
    image, label = batch(weights, trainer.num_classes)
    trainer.prototypes = random_prototypes(trainer)
    log = trainer.gradients(image, label)
    assert log["loss"].isfinite() and log["kl"].dtype == torch.float32
    for name, p in trainer.model.learner.named_parameters():
        assert p.grad.isfinite().all() and p.grad.any(), name


@pytest.mark.parametrize(
    ("line", "opts"),
    [
        ("N_CTX 0", ("N_CTX", "0")),
        ("TRAINER.VAMP.PROMPT_DEPTH 5", ("PROMPT_DEPTH", "5")),
        ("TRAINER.VAMP.HIDDEN 0", ("HIDDEN", "0")),
        ("TRAINER.VAMP.INIT_STD 0.0", ("INIT_STD", "0.0")),
        ("TRAINER.VAMP.VARIATIONAL True with", ("SAMPLE_SPECIFIC", "False")),
        ("TRAINER.VAMP.PRIOR 'flat'", ("PRIOR", "flat")),
        ("TRAINER.VAMP.TRAIN_SAMPLES 0", ("TRAIN_SAMPLES", "0")),
        ("TRAINER.VAMP.TEST_SAMPLES -1", ("TEST_SAMPLES", "-1")),
        ("TRAINER.VAMP.KL_WEIGHT -0.5", ("KL_WEIGHT", "-0.5")),
        ("TRAINER.VAMP.KL_REDUCTION 'none'", ("KL_REDUCTION", "none")),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, line, opts):
    assert_refused("VaMP", data, tmp_path, capsys, line, f"TRAINER.VAMP.{opts[0]}", opts[1])
