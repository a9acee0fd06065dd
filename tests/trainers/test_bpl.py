"""Bayesian Prompt Learning's loss, gradients and test against the plain reference, its limits, its
draws and its files."""

import pytest
import torch
from torch import Tensor

import datasets  # noqa: F401  registers them
from dassl.config import get_cfg_default, merge_file
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import Failure
from reference import bpl_plain
from reference.clip_plain import PlainCLIP
from runs.run import read_words
from tests.runs import REPO
from tests.trainers.files import three_classes
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
    upstream_file,
)
from trainers import add_configs, bpl
from trainers.draws import Noise, normal

FORMS = pytest.mark.parametrize("form", ["cocoopvpt", "coopvpt"])
W = 64  # of the tiny CLIP: width of the text tower, and the features'
NET = {
    "0.weight": (32, W), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,),
    "4.weight": (W, 32), "4.bias": (W,),
}  # fmt: skip
SHAPES = {
    "coopvpt": {"ctx": (4, W), "mean_posterior": (1, W), "std_posterior": (1, W)},
    "cocoopvpt": {"ctx": (4, W)}
    | {f"meta_net.weight_mean.module.{key}": shape for key, shape in NET.items()}
    | {f"meta_net.weight_log_variance.module.{key}": shape for key, shape in NET.items()},
}


def options(form: str, **node: object) -> tuple[str, ...]:
    node = {"VPT_TYPE": form} | node
    return tuple(word for key, value in node.items() for word in (f"TRAINER.VPT.{key}", str(value)))


def make(data, tmp_path, weights, form: str, **node: object):
    """A trainer whose posterior is another for every image and of ctx's size."""
    trainer = build("BayesianPrompt", data, tmp_path, weights, *options(form, **node))
    trainer.cfg.defrost()
    shake(trainer.model.learner)
    return trainer


def new_noise(trainer, images: int) -> Tensor:
    """What the next step draws, if it comes after torch.manual_seed(7)."""
    node, width = trainer.node, trainer.model.learner.ctx.shape[-1]
    rows = images if node.VPT_TYPE == "cocoopvpt" else 1
    torch.manual_seed(7)
    noise = torch.randn(rows, node.L, width)
    torch.manual_seed(7)
    return noise if rows > 1 else noise[0]


def test_noise(trainer) -> Tensor:
    n, width = trainer.node.TEST_L or trainer.node.L, trainer.model.learner.ctx.shape[-1]
    return normal(torch.zeros(1), n, width, seed=trainer.seed)[0]


test_noise.__test__ = False


def check(trainer, weights, images: int = 3, **settings: object) -> None:
    image, label = (given[:images] for given in batch(weights, trainer.num_classes))
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    noise = new_noise(trainer, len(image))
    expected = bpl_plain.loss(plain, prompts, names, image, label, noise, **settings)
    assert_loss(trainer, image, label, expected, prompts)
    with torch.no_grad():
        expected = bpl_plain.logits(plain, prompts, names, image, test_noise(trainer))
    assert_logits(trainer, image, expected)


@pytest.mark.parametrize(("likelihood", "reduction"), [("log_mean", "mean"), ("mean_log", "sum")])
@FORMS
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, form, likelihood, reduction):
    uneven_names(monkeypatch)
    node = {"L": 2, "TEST_L": 3, "LIKELIHOOD": likelihood, "KL_REDUCTION": reduction}
    trainer = make(data, tmp_path, weights, form, KL_WEIGHT=0.1, **node)
    learned = {n: tuple(p.shape) for n, p in trainer.model.learner.named_parameters()}
    assert learned == SHAPES[form]
    check(trainer, weights, kl_weight=0.1, likelihood=likelihood, kl_reduction=reduction)


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use; few images, classes and draws."""
    given = *three_classes(tmp_path), *options("cocoopvpt", L=2)
    trainer = build("BayesianPrompt", tmp_path, tmp_path / "out", vit_b16, *given)
    clip_model, names = trainer.model.clip, class_names(trainer)
    shared = {"noise": Noise(2, 2, seed=1), "init_log_var": None}
    other = bpl.UnconditionalLearner(clip_model, names, *trainer.start(), **shared)
    count = [sum(p.numel() for p in m.parameters()) for m in (trainer.model.learner, other)]
    assert count == [659_456, 3_072]
    shake(trainer.model.learner)
    check(trainer, vit_b16, images=2)


# -- the loss


@FORMS
def test_of_one_draw_it_is_cross_entropy_and_the_divergence(data, tmp_path, weights, form):
    trainer = make(data, tmp_path, weights, form, L=1, KL_WEIGHT=0.5)
    image, label = batch(weights, trainer.num_classes)
    for trainer.node.LIKELIHOOD in bpl.LIKELIHOODS:
        new_noise(trainer, 3)
        logits, mean, log_var = trainer.model.draws(image)
        q = torch.distributions.Normal(mean, (log_var / 2).exp())
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean()
        new_noise(trainer, 3)
        loss, log = trainer.loss(image, label)
        torch.testing.assert_close(log["kl"], kl)
        cross_entropy = torch.nn.functional.cross_entropy(logits[:, 0], label)
        torch.testing.assert_close(loss, cross_entropy + 0.5 * kl)


@FORMS
def test_the_bound_is_above_the_loss_of_the_mean_probability(data, tmp_path, weights, form):
    trainer = make(data, tmp_path, weights, form, L=4)
    image, label = batch(weights, trainer.num_classes)
    losses = []
    for trainer.node.LIKELIHOOD in ("log_mean", "mean_log"):
        new_noise(trainer, 3)
        losses.append(trainer.loss(image, label)[0])
    assert losses[1] > 1.001 * losses[0]


def test_the_divergences_gradient(data, tmp_path, weights):
    """By hand; far from the loss's own, as its weight is large."""
    trainer = make(data, tmp_path, weights, "coopvpt", L=1, KL_WEIGHT=1e6)
    trainer.model.double(), trainer.model.clip.double()
    image, label = batch(weights, trainer.num_classes)
    trainer.loss(image.double(), label)[0].backward()
    learner = trainer.model.learner
    mean, log_var = learner.mean_posterior, learner.std_posterior
    assert (mean.grad / 1e6 - mean / W).abs().max() < 1e-5
    assert (log_var.grad / 1e6 - (log_var.exp() - 1) / (2 * W)).abs().max() < 1e-5


# -- limits


@pytest.mark.parametrize("n", [1, 3])
def test_without_variance_it_is_coop_with_a_shifted_context(data, tmp_path, weights, n):
    trainer = make(data, tmp_path, weights, "coopvpt", INIT_LOGVAR=-60, L=n)
    learner, coop = trainer.model.learner, build("CoOp", data, tmp_path, weights)
    with torch.no_grad():
        learner.mean_posterior.normal_(std=0.05)
        coop.model.learner.ctx.copy_(learner.ctx + learner.mean_posterior)
    image, label = batch(weights, trainer.num_classes)
    loss, log = trainer.loss(image, label)
    torch.testing.assert_close(loss - 0.001 * log["kl"], coop.loss(image, label)[0])
    assert_logits(trainer, image, coop.model(image).detach().log_softmax(-1))


@pytest.mark.parametrize("n", [1, 3])
def test_without_variance_it_is_cocoop_whose_net_gives_the_mean(data, tmp_path, weights, n):
    trainer = build(
        "BayesianPrompt", data, tmp_path, weights, *options("cocoopvpt", INIT_LOGVAR=-60, L=n)
    )
    learner, cocoop = trainer.model.learner, build("CoCoOp", data, tmp_path, weights)
    shake(learner.meta_net["weight_mean"], 0.2)
    cocoop.model.learner.meta_net = learner.meta_net["weight_mean"]["module"]
    image, label = batch(weights, trainer.num_classes)
    loss, log = trainer.loss(image, label)
    torch.testing.assert_close(loss - 0.001 * log["kl"], cocoop.loss(image, label)[0])
    assert_logits(trainer, image, cocoop.model(image).detach().log_softmax(-1))


def test_starts_as_upstream(data, tmp_path, weights):
    """From CTX_INIT's words; unconditional from mean 0 and a log-variance from 0 to 1."""
    trainer = build("BayesianPrompt", data, tmp_path, weights, *options("coopvpt"))
    learner, words = trainer.model.learner, [320, 1125, 539, 320]  # a photo of a
    assert torch.equal(learner.ctx.data, weights["token_embedding.weight"][words])
    start = learner.std_posterior
    assert not learner.mean_posterior.any()
    assert 0 <= start.min() < 0.1 and 0.9 < start.max() < 1 and abs(start.mean() - 0.5) < 0.15


# -- draws


@FORMS
def test_a_test_repeats_and_does_not_depend_on_the_batch_size(data, tmp_path, weights, form):
    """A batch as large as ctx, too, where upstream gives image b's r to vector b."""
    trainer = make(data, tmp_path, weights, form, L=2)
    size = weights["input_resolution"].item()
    image = torch.randn(7, 3, size, size)
    trainer.set_model_mode("eval")
    state = torch.get_rng_state()
    with torch.no_grad():
        whole, again = trainer.model_inference(image), trainer.model_inference(image)
        parts = torch.cat([trainer.model_inference(part) for part in image.split([4, 1, 2])])
        trainer.set_model_mode("eval")  # nothing is kept
        assert torch.equal(trainer.model_inference(image), whole)
    assert torch.equal(again, whole) and torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(7))


@FORMS
def test_more_draws_make_a_test_depend_less_on_the_seed(data, tmp_path, weights, form):
    """Sixteen times as many, a sixteenth of the variance."""
    trainer = make(data, tmp_path, weights, form, INIT_LOGVAR=-2)
    image, learner = batch(weights, trainer.num_classes)[0][:1], trainer.model.learner
    variances = []
    for n in (1, 16):
        learner.noise.n_test, predicted = n, []
        for learner.noise.seed in range(30):
            trainer.set_model_mode("eval")
            with torch.no_grad():
                predicted.append(trainer.model_inference(image).exp())
        variances.append(torch.cat(predicted).var(dim=0).sum())
    assert 8 < variances[0] / variances[1] < 32


def test_training_draws_anew(data, tmp_path, weights):
    trainer = make(data, tmp_path, weights, "coopvpt", L=2)
    image, label = batch(weights, trainer.num_classes)
    assert trainer.loss(image, label)[0] != trainer.loss(image, label)[0]


def test_all_images_of_a_test_share_one_posteriors_texts(data, tmp_path, weights, monkeypatch):
    """In as many parts as MOST_PROMPTS asks for, in training too, where nothing changes by them."""
    trainer = make(data, tmp_path, weights, "coopvpt", L=5)
    image, label = batch(weights, trainer.num_classes)
    learner, parts = trainer.model.learner, []
    new_noise(trainer, 3)
    whole, _ = trainer.loss(image, label)
    expected = torch.autograd.grad(whole, list(learner.parameters()))
    texts = learner.conditional_text_features
    monkeypatch.setattr(
        learner,
        "conditional_text_features",
        lambda clip_model, r: (parts.append(len(r)), texts(clip_model, r))[1],
    )
    monkeypatch.setattr(bpl, "MOST_PROMPTS", 3 * trainer.num_classes - 1)
    new_noise(trainer, 3)
    loss, _ = trainer.loss(image, label)
    gradients = torch.autograd.grad(loss, list(learner.parameters()))
    torch.testing.assert_close([loss, *gradients], [whole, *expected], rtol=1e-4, atol=1e-6)
    assert parts[:3] == [2, 2, 1]
    parts.clear()
    trainer.set_model_mode("eval")
    with torch.no_grad():
        trainer.model_inference(image), trainer.model_inference(image[:1])
    assert parts == [2, 2, 1]


# -- files and settings


@FORMS
def test_upstreams_file_loads(data, tmp_path, weights, form):
    """Half precision; token buffers of other classes."""
    pieces = dict.fromkeys(["token_prefix", "token_suffix"], (9, 5, W))
    state = upstream_file(tmp_path / "upstream", SHAPES[form] | pieces)
    trainer = build("BayesianPrompt", data, tmp_path, weights, *options(form, L=2))
    image, _ = batch(weights, trainer.num_classes)
    trainer.load_model(str(tmp_path / "upstream"), epoch=50)
    plain, names = PlainCLIP(weights), class_names(trainer)
    assert_logits(trainer, image, bpl_plain.logits(plain, state, names, image, test_noise(trainer)))


@FORMS
def test_the_other_forms_file_is_refused(data, tmp_path, weights, form):
    [other] = SHAPES.keys() - {form}
    upstream_file(tmp_path / "upstream", SHAPES[other])
    trainer = build("BayesianPrompt", data, tmp_path, weights, *options(form))
    with pytest.raises(Failure, match=f"VPT_TYPE {form}: the model") as refused:
        trainer.load_model(str(tmp_path / "upstream"), epoch=50)
    assert f"TRAINER.VPT.VPT_TYPE {other}" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "opts"),
    [
        ("TRAINER.VPT.VPT_TYPE 'vpt': choose from cocoopvpt, coopvpt", options("vpt")),
        ("TRAINER.VPT.LIKELIHOOD 'mean': choose", options("coopvpt", LIKELIHOOD="mean")),
        ("TRAINER.VPT.KL_REDUCTION 'max': choose", options("coopvpt", KL_REDUCTION="max")),
        ("TRAINER.VPT.L 0: must be 1 or more", options("coopvpt", L=0)),
        ("TRAINER.VPT.TEST_L -1: must be 0 or more", options("coopvpt", TEST_L=-1)),
        ("TRAINER.VPT.KL_WEIGHT -0.1: must be 0", options("coopvpt", KL_WEIGHT=-0.1)),
        ("TRAINER.VPT.INIT_LOGVAR 21", options("coopvpt", INIT_LOGVAR=21)),
        ("N_CTX 0", options("coopvpt", CTX_INIT="", N_CTX=0)),
        ("TRAINER.COOP.CSC", ("TRAINER.COOP.CSC", "True")),
        ("BayesianPrompt has no place for", ("TRAINER.ATPROMPT.USE_ATPROMPT", "True")),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, line, opts):
    assert_refused("BayesianPrompt", data, tmp_path, capsys, line, *opts)


@pytest.mark.parametrize("name", ["vit_b16", "vit_b16_unconditional"])
def test_draws_and_epochs_of_a_dataset(name):
    seen = {}
    for dataset in [*DATASET_REGISTRY.registered_names(), "none"]:
        add_configs(cfg := get_cfg_default())
        merge_file(cfg, f"{REPO}/configs/trainers/BayesianPrompt/{name}.yaml", dataset)
        seen[dataset] = cfg.TRAINER.VPT.L, cfg.OPTIM.MAX_EPOCH
    assert seen["none"] == seen["ImageNet"] == seen["FGVCAircraft"] == (10, 10)
    assert seen["EuroSAT"] == (20, 60) and seen["DescribableTextures"] == (40, 10)
    assert len({name for name, values in seen.items() if values != (10, 10)}) == 9


@pytest.mark.parametrize("script", ["xd_train", "xd_test"])
def test_another_dataset_is_tested_with_the_draws_of_training(script):
    for dataset in ("imagenet", "oxford_pets", "ucf101", "imagenet_r"):
        run, _ = read_words([script, "BayesianPrompt", dataset, "1"], {})
        add_configs(cfg := get_cfg_default())
        merge_file(cfg, f"{REPO}/configs/datasets/{dataset}.yaml")
        file = f"{REPO}/configs/trainers/BayesianPrompt/{run.cfg}.yaml"
        merge_file(cfg, file, cfg.DATASET.NAME)
        assert (cfg.TRAINER.VPT.L, cfg.OPTIM.MAX_EPOCH) == (10, 10)


def test_upstreams_name_is_the_same_method():
    ours, upstreams = (TRAINER_REGISTRY.get(name) for name in ("BayesianPrompt", "VPT"))
    assert issubclass(upstreams, ours)
    assert all(vars(t)["graphed"] and vars(t)["frozen_image_tower"] for t in (ours, upstreams))
