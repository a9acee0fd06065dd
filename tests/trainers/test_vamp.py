"""VaMP on MaPLe's and on MMRL's places: loss, gradients and probabilities against the plain
reference with the same draws, its limits, its prototypes, its tests and its files."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence
from yacs.config import CfgNode

import train
from reference import vamp_mmrl_plain, vamp_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import gradients
from runs.run import usual_config
from tests.runs import REPO, run
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
from trainers import draws
from trainers.vamp import VaMP

FOLDERS = {"VaMP": "VariationalPromptLearner", "VaMP_MMRL": "VariationalRepresentationLearner"}
HOSTS = pytest.mark.parametrize("method", FOLDERS)
FIXED = "TRAINER.VAMP.VARIATIONAL", "False"
ONE_DRAW = "TRAINER.VAMP.TEST_SAMPLES", "1"


def keys(*words: str) -> list[str]:
    """Names and values as keys of TRAINER.VAMP, where they name no other node."""
    names = [n if "." in n else f"TRAINER.VAMP.{n}" for n in words[::2]]
    return [word for pair in zip(names, words[1::2], strict=True) for word in pair]


def shaken(method, data, out, weights, *opts):
    """A trainer whose nets' outputs depend on what they see."""
    trainer = build(method, data, out, weights, *opts)
    shake(trainer.model.learner)
    shake(trainer.model.learner.text_prompts, 0.1)
    return trainer


def shape(trainer) -> tuple[int, int, int]:
    """L, M, W."""
    node, width = trainer.node, trainer.model.clip.transformer.width
    if trainer.node_name == "MMRL":
        return len(node.REP_LAYERS), node.N_REP_TOKENS, width
    return node.PROMPT_DEPTH, node.N_CTX, width


def random_prototypes(trainer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    dim = trainer.model.clip.visual.output_dim
    return F.normalize(torch.randn(trainer.num_classes, dim, generator=generator), dim=-1)


def host(trainer, plain, prompts, names) -> tuple[dict, dict]:
    """What the reference's loss and its log-probabilities are given of MMRL's places."""
    if trainer.node_name != "MMRL":
        return {}, {}
    args, node = (plain, prompts, names, trainer.node.REP_LAYERS), trainer.node
    loss = vamp_mmrl_plain.host_loss(*args, node.ALPHA, node.REG_WEIGHT)
    logits = vamp_mmrl_plain.host_logits(*args, node.ALPHA, trainer.model.fused)
    return {"host_loss": loss}, {"host_logits": logits}


def check(trainer, weights, tolerance=1e-5, **settings):
    """The loss, gradients and log-probabilities of a shaken trainer."""
    trainer.prototypes = random_prototypes(trainer)
    of_class = trainer.prototypes if trainer.class_aware else None
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    image, label = batch(weights, trainer.num_classes)
    node = trainer.cfg.TRAINER.VAMP
    of_both = {key: settings[key] for key in ("unit", "template") if key in settings}
    of_loss, of_test = host(trainer, plain, prompts, names)
    torch.manual_seed(7)
    noise = draws.normal(image, node.TRAIN_SAMPLES, *shape(trainer))
    assert not torch.equal(noise[0], noise[1])  # each image has its own
    args = plain, prompts, names, image, label, noise, of_class
    expected = vamp_plain.loss(*args, **settings, **of_loss)
    torch.manual_seed(7)
    assert_loss(trainer, image, label, expected, prompts, tolerance)
    noise = draws.normal(image, node.TEST_SAMPLES, *shape(trainer), seed=trainer.seed)[0]
    expected = vamp_plain.log_probabilities(*args[:4], noise, **of_both, **of_test)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    assert_logits(trainer, image, expected)


FUSED, OF_CLASS = ("TRAINER.MMRL.FUSE", "fused"), ("TRAINER.MMRL.FUSE", "class")
SUM = "PRIOR", "normal", "KL_REDUCTION", "sum"
SHARED = "SAMPLE_SPECIFIC", "False"


@pytest.mark.parametrize(
    ("method", "opts", "settings"),
    [
        ("VaMP", (), {}),
        ("VaMP", ("TRAIN_SAMPLES", "2", "KL_WEIGHT", "0.3"), {"kl_weight": 0.3}),
        ("VaMP", (*SUM, "N_CTX", "3"), {"reduction": "sum"}),
        ("VaMP", ("FEATURE_NORM", "False", "PROMPT_DEPTH", "1"), {"unit": False}),
        ("VaMP", SHARED, {}),
        ("VaMP", ("DATASET.TEMPLATE", "{} texture."), {"template": "{} texture."}),
        ("VaMP_MMRL", FUSED, {}),
        ("VaMP_MMRL", (*OF_CLASS, "TRAIN_SAMPLES", "2"), {}),
        ("VaMP_MMRL", (*SUM, "TRAINER.MMRL.REP_LAYERS", "[3]"), {"reduction": "sum"}),
    ],
)
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, method, opts, settings):
    uneven_names(monkeypatch)
    trainer = shaken(method, data, tmp_path, weights, *keys(*opts))
    check(trainer, weights, **settings)


@HOSTS
def test_on_vit_b16(tmp_path, vit_b16, method):
    """The size in use, at the published places; few classes and draws."""
    depth = "TRAINER.VAMP.PROMPT_DEPTH", "9"
    layers = "TRAINER.MMRL.REP_LAYERS", "[6,7,8,9,10,11,12]"
    opts = (*three_classes(tmp_path), *ONE_DRAW, *(depth if method == "VaMP" else layers))
    trainer = shaken(method, tmp_path, tmp_path / "out", vit_b16, *opts)
    learned = {"VaMP": 1_525_824, "VaMP_MMRL": 5_748_928}
    assert sum(p.numel() for p in trainer.model.learner.parameters()) == learned[method]
    check(trainer, vit_b16, tolerance=2e-5)  # both sides round, each CPU in its own way


@pytest.mark.parametrize("opts", [(), SHARED])
@HOSTS
def test_without_draws_it_equals_the_reference(data, tmp_path, weights, method, opts):
    """Prompts that follow from the image, and prompts that are the same for all."""
    trainer = shaken(method, data, tmp_path, weights, *FIXED, *keys(*opts))
    image, label = batch(weights, trainer.num_classes)
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    assert not any("prior" in name for name in prompts)
    of_loss, of_test = host(trainer, plain, prompts, names)
    noise, args = torch.ones(3, 1, *shape(trainer)), (plain, prompts, names, image)
    assert_loss(trainer, image, label, vamp_plain.loss(*args, label, noise, **of_loss), prompts)
    assert_logits(trainer, image, vamp_plain.log_probabilities(*args, noise[0], **of_test))


@HOSTS
def test_parameters_after_20_steps(data, tmp_path, weights, monkeypatch, method):
    """In double precision, as in test_steps.py, with the draws that each step made."""
    drawn, generator, normal = [], torch.Generator().manual_seed(4), draws.normal

    def spy(*args, **kwargs):
        drawn.append(normal(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(draws, "normal", spy)
    prototypes = torch.randn(16, 64, generator=generator, dtype=torch.float64)
    monkeypatch.setattr(VaMP, "prototypes", prototypes)

    def of_the_step(plain, prompts, names, image, label):
        of_host = {}
        if method == "VaMP_MMRL":
            of_host["host_loss"] = vamp_mmrl_plain.host_loss(plain, prompts, names, [2, 3])
        args = plain, prompts, names, image, label, drawn[-1], prototypes
        return gradients(vamp_plain.loss(*args, **of_host), prompts)

    adamw = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.01)
    monkeypatch.setitem(test_steps.CASES, method, (adamw, of_the_step))
    test_steps.test_parameters_after_20_steps(method, data, tmp_path, weights, monkeypatch)


# -- the Gaussians


@pytest.mark.parametrize("specific", ["True", "False"])
def test_begins_with_the_std_it_is_given(data, tmp_path, weights, specific):
    opts = keys("INIT_STD", "0.05", "SAMPLE_SPECIFIC", specific)
    trainer = build("VaMP", data, tmp_path, weights, *opts)
    z, features = trainer.model.learner.text_prompts, random_prototypes(trainer)
    for net in (z.posterior, z.prior):
        mean, log_var = net(features)
        assert mean.shape == log_var.shape == (16, 3, 2, 64)
        assert 0.045 < (log_var / 2).exp().mean() < 0.055 and 0.01 < mean.std() < 0.05
    mean, log_var = z.posterior(features)
    assert (mean[0] != mean[1]).any() == (specific == "True") == (log_var[0] != log_var[1]).any()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kl_is_that_of_torch(data, tmp_path, weights, reduction):
    trainer = shaken("VaMP", data, tmp_path, weights, *keys("KL_REDUCTION", reduction))
    z, prototypes = trainer.model.learner.text_prompts, random_prototypes(trainer)[:3]
    mean, log_var = z.posterior(prototypes.flip(1))
    q, zero = Normal(mean, (log_var / 2).exp()), torch.zeros_like(mean)
    for seen, (m, v) in ((prototypes, z.prior(prototypes)), (None, (zero, zero))):
        kl = kl_divergence(q, Normal(m, (v / 2).exp()))  # (B, L, M, W)
        expected = kl.mean((2, 3)) if reduction == "mean" else kl.sum((2, 3))
        torch.testing.assert_close(z.kl(mean, log_var, seen), expected.sum(1).mean())


def test_a_prior_that_is_the_posterior_costs_nothing(data, tmp_path, weights):
    trainer = shaken("VaMP", data, tmp_path, weights)
    z, x = trainer.model.learner.text_prompts, random_prototypes(trainer)
    z.prior.load_state_dict(z.posterior.state_dict())
    assert z.kl(*z.posterior(x), x) == 0


def without_spread(learner) -> dict[str, torch.Tensor]:
    """Makes the draws' σ 1e-13; what a learner that draws nothing has of its state."""
    for net in learner.text_prompts.posterior:
        half = len(net.fc2.bias) // 2
        net.fc2.weight.data[half:], net.fc2.bias.data[half:] = 0, -60
    state = {key: value for key, value in learner.state_dict().items() if "prior" not in key}
    return {key: v[: len(v) // 2] if "fc2" in key else v for key, v in state.items()}


@pytest.mark.parametrize("samples", ["0", "1", "4"])
@HOSTS
def test_without_spread_it_is_the_deterministic_row(data, tmp_path, weights, method, samples):
    trainer = shaken(method, data, tmp_path, weights, *keys("TEST_SAMPLES", samples))
    fixed = build(method, data, tmp_path, weights, *FIXED)
    fixed.model.learner.load_state_dict(without_spread(trainer.model.learner))
    image, label = batch(weights, trainer.num_classes)
    trainer.cfg.defrost()
    trainer.cfg.TRAINER.VAMP.KL_WEIGHT = 0.0
    torch.testing.assert_close(trainer.loss(image, label)[0], fixed.loss(image, label)[0])
    with torch.no_grad():
        expected = fixed.model_inference(image)
    assert_logits(trainer, image, expected)


def test_the_posteriors_mean_is_no_draw(data, tmp_path, weights):
    """TEST_SAMPLES 0, where σ is not 0."""
    trainer = shaken("VaMP", data, tmp_path, weights, *keys("TEST_SAMPLES", "0"))
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    image, _ = batch(weights, trainer.num_classes)
    noise = torch.zeros(1, *shape(trainer))
    assert_logits(trainer, image, vamp_plain.log_probabilities(plain, prompts, names, image, noise))


# -- training and tests


@HOSTS
def test_every_step_draws_anew(data, tmp_path, weights, method):
    trainer = shaken(method, data, tmp_path, weights)
    image, label = batch(weights, trainer.num_classes)
    first, second = (trainer.loss(image, label)[0] for _ in range(2))
    assert first != second


@HOSTS
def test_a_batch_of_training_is_its_images_one_by_one(data, tmp_path, weights, monkeypatch, method):
    """Also in parts, which compute their texts a second time for the gradients."""
    trainer = shaken(method, data, tmp_path, weights, *keys("TRAIN_SAMPLES", "2"))
    image, label = batch(weights, trainer.num_classes)
    noise = draws.normal(image, 2, *shape(trainer))
    monkeypatch.setattr(draws, "normal", lambda *_, **__: noise)
    whole = trainer.gradients(image, label)
    expected = {n: p.grad.clone() for n, p in trainer.model.learner.named_parameters()}
    monkeypatch.setattr(draws, "MOST_PROMPTS", 4 * trainer.num_classes)
    torch.testing.assert_close(trainer.gradients(image, label), whole)
    for name, p in trainer.model.learner.named_parameters():
        assert (p.grad - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
    alone, all_noise = [], noise
    for i in range(3):
        noise = all_noise[i : i + 1]
        alone.append(trainer.gradients(image[i : i + 1], label[i : i + 1])["loss"])
    torch.testing.assert_close(torch.stack(alone).mean(), whole["loss"])


@HOSTS
def test_a_test_repeats_whatever_its_batches_are(data, tmp_path, weights, monkeypatch, method):
    """Another seed draws otherwise."""
    trainer = shaken(method, data, tmp_path, weights)
    image, _ = batch(weights, trainer.num_classes)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        whole, before = trainer.model_inference(image), torch.get_rng_state()
        assert torch.equal(trainer.model_inference(image), whole)
        assert torch.equal(torch.get_rng_state(), before)
        monkeypatch.setattr(draws, "MOST_PROMPTS", 7 * trainer.num_classes)
        alone = torch.cat([trainer.model_inference(image[i : i + 1]) for i in range(3)])
        trainer.model.learner.text_prompts.noise.seed += 1
        other = trainer.model_inference(image)
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)
    assert (other - whole).abs().max() > 0.01
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(3))


@HOSTS
def test_a_run_tested_by_1_and_by_100_images(data, tmp_path, capsys, method):
    opts = ("OPTIM.MAX_EPOCH", "2")
    assert run(method, data, tmp_path / "run", *opts) == 0
    trained = accuracies(capsys)
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    for size in ("1", "100"):
        by = ("DATALOADER.TEST.BATCH_SIZE", size)
        assert run(method, data, tmp_path / size, *opts, *by, flags=flags) == 0
        assert accuracies(capsys) == trained


@pytest.mark.parametrize(("subset", "fused"), [("base", True), ("new", False)])
def test_what_a_test_reads_is_as_in_mmrl(data, tmp_path, weights, subset, fused):
    opts = ("DATASET.SUBSAMPLE_CLASSES", subset)
    assert build("VaMP_MMRL", data, tmp_path, weights, *opts).model.fused == fused


# -- prototypes


NORMS = [("True", "True"), ("True", "False"), ("False", "False")]


@pytest.mark.parametrize(("unit", "unit_mean"), NORMS)
@HOSTS
def test_prototypes_are_the_classes_means(data, tmp_path, weights, method, unit, unit_mean):
    """Of all training images, resized and cropped as in a test; nothing is drawn for them."""
    opts = keys("FEATURE_NORM", unit, "PROTOTYPE_NORM", unit_mean)
    opts += ["DATASET.NUM_SHOTS", "3", "DATALOADER.TEST.BATCH_SIZE", "5"]
    trainer = build(method, data, tmp_path, weights, *opts)
    before = torch.get_rng_state()
    got = trainer.prototypes
    assert torch.equal(torch.get_rng_state(), before) and not got.requires_grad
    test, items = trainer.test_loader.dataset, trainer.dm.dataset.train_x
    images = [test.transform(test.cache.read(item.impath)) for item in items]
    labels, norms = [item.label for item in items], (unit == "True", unit_mean == "True")
    expected = vamp_plain.prototypes(PlainCLIP(weights), images, labels, *norms)
    assert got.shape == (16, 64) and len(items) == 48
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_is_the_run_itself(data, tmp_path):
    """Its prototypes come from the checkpoint."""
    opts, folder = ("OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_FREQ", "1"), FOLDERS["VaMP"]
    assert run("VaMP", data, tmp_path / "whole", *opts) == 0
    first = torch.load(tmp_path / "whole" / folder / "model.pth.tar-1", weights_only=True)

    def resumed(name: str) -> dict[str, torch.Tensor]:
        (tmp_path / name / folder).mkdir(parents=True)
        torch.save(first, tmp_path / name / folder / "model.pth.tar-1")
        assert run("VaMP", data, tmp_path / name, *opts) == 0
        return read(tmp_path / name, folder, epoch=2)

    whole, again = read(tmp_path / "whole", folder, epoch=2), resumed("again")
    assert all(torch.equal(again[key], whole[key]) for key in whole)
    first["trainer"]["prototypes"] *= -1
    key = "text_prompts.prior.0.fc2.weight"
    assert not torch.equal(resumed("other")[key], whole[key])


def test_a_run_with_the_normal_prior_has_no_prototypes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(VaMP, "prototypes", property(lambda _: pytest.fail("computed")))
    assert run("VaMP", data, tmp_path, "OPTIM.MAX_EPOCH", "2", *keys("PRIOR", "normal")) == 0
    file = tmp_path / FOLDERS["VaMP"] / "model.pth.tar-2"
    checkpoint = torch.load(file, weights_only=True)
    assert "prototypes" not in checkpoint.get("trainer", {})
    assert not any("prior" in key for key in checkpoint["state_dict"])


# -- settings


@HOSTS
def test_in_bf16(data, tmp_path, weights, method):
    """The nets and the KL stay in float32."""
    trainer = shaken(method, data, tmp_path, weights, f"TRAINER.{NODES[method]}.PREC", "bf16")
    image, label = batch(weights, trainer.num_classes)
    trainer.prototypes = random_prototypes(trainer)
    log = trainer.gradients(image, label)
    assert log["loss"].isfinite() and log["kl"].dtype == torch.float32
    for name, p in trainer.model.learner.named_parameters():
        assert p.grad.isfinite().all() and p.grad.any(), name


NODES = {"VaMP": "VAMP", "VaMP_MMRL": "MMRL"}


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("N_CTX 0: must be 1 or more", "N_CTX", "0"),
        ("TRAINER.VAMP.PROMPT_DEPTH 5: this CLIP", "PROMPT_DEPTH", "5"),
        ("TRAINER.VAMP.HIDDEN 0: must be", "HIDDEN", "0"),
        ("TRAINER.VAMP.INIT_STD 0.0: must be", "INIT_STD", "0.0"),
        ("TRAINER.VAMP.PRIOR flat: must be", "PRIOR", "flat"),
        ("TRAINER.VAMP.TRAIN_SAMPLES 0: must be", "TRAIN_SAMPLES", "0"),
        ("TRAINER.VAMP.TEST_SAMPLES -1: must be", "TEST_SAMPLES", "-1"),
        ("TRAINER.VAMP.KL_WEIGHT -0.5: must be", "KL_WEIGHT", "-0.5"),
        ("TRAINER.VAMP.KL_REDUCTION none: must be", "KL_REDUCTION", "none"),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, line, key, value):
    assert_refused("VaMP", data, tmp_path, capsys, line, f"TRAINER.VAMP.{key}", value)


# What a protocol's run is given on a dataset: batch, epochs, warm-up; MMRL's λ and width.
PUBLISHED = [
    ("base2new_train", "eurosat", (4, 10, 1), (0.01, 2048)),
    ("base2new_train", "stanford_cars", (4, 10, 1), (7.0, 512)),
    ("base2new_train", "imagenet", (32, 5, 1), (0.5, 512)),
    ("xd_train", "imagenet", (32, 1, -1), (0.2, 512)),
    ("xd_test", "eurosat", (32, 1, -1), (0.2, 512)),
    ("few_shot", "food101", (4, 50, 1), (5.0, 512)),
    ("few_shot", "imagenet", (32, 5, 1), (0.5, 512)),
]


@pytest.mark.parametrize(("script", "dataset", "training", "mmrl"), PUBLISHED)
@HOSTS
def test_published_settings(method, script, dataset, training, mmrl):
    cfg = settings(method, usual_config(script, method, dataset, {}), dataset)
    batch_size, optim = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM
    assert (batch_size, optim.MAX_EPOCH, optim.WARMUP_EPOCH) == training
    assert (optim.NAME, optim.LR, optim.WEIGHT_DECAY) == ("adamw", 0.001, 0.01)
    if method == "VaMP_MMRL":
        assert mmrl == (cfg.TRAINER.MMRL.REG_WEIGHT, cfg.TRAINER.MMRL.REP_DIM)
        assert cfg.TRAINER.MMRL.REP_LAYERS == [6, 7, 8, 9, 10, 11, 12]


@HOSTS
def test_the_ablations_rows(method):
    """On every dataset the method's own settings, but for the row's key."""
    for dataset in ("imagenet", "eurosat"):
        own = settings(method, usual_config("base2new_train", method, dataset, {}), dataset)
        rows = {"sample_specific": (False, "class"), "normal_prior": (True, "normal")}
        for row, given in (rows | {"class_prior": (True, "class")}).items():
            cfg = settings(method, f"table4_{row}", dataset)
            assert given == (cfg.TRAINER.VAMP.VARIATIONAL, cfg.TRAINER.VAMP.PRIOR)
            cfg.TRAINER.VAMP.VARIATIONAL, cfg.TRAINER.VAMP.PRIOR = True, "class"
            assert cfg == own


def settings(method: str, cfg: str, dataset: str) -> CfgNode:
    """Of a config file on a dataset."""
    args = [
        "--seed",
        "1",
        "--trainer",
        method,
        "--config-file",
        f"{REPO}/configs/trainers/{method}/{cfg}.yaml",
    ]
    args += ["--dataset-config-file", f"{REPO}/configs/datasets/{dataset}.yaml"]
    made = train.setup_cfg(train.parse_args(args))
    made.defrost()
    return made
