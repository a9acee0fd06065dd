"""TCP's loss and gradients against the plain reference, the words of its datasets, its optimizer
and its files."""

import pytest
import torch

from reference import tcp_plain
from reference.clip_plain import PlainCLIP
from tests.trainers.files import save, three_classes
from tests.trainers.methods import (
    UNEVEN,
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

FOLDER = "prompt_learner"


def check(trainer, weights, layer: int) -> None:
    """Loss, gradients and logits, the classes' tokens shaken until they differ as much as they are
    large."""
    shake(trainer.model.learner)
    shake(trainer.model.learner.meta_net, 0.3)
    image, label = batch(weights, trainer.num_classes)
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    with torch.no_grad():
        features = tcp_plain.teacher_features(plain, names[:2])
        first, second = (tcp_plain.class_tokens(prompts, f / f.norm()) for f in features)
    assert (first - second).norm() > 0.05 * first.norm() > 0.05 * prompts["ctx"].norm()
    expected = tcp_plain.loss(plain, prompts, names, image, label, layer)
    assert_loss(trainer, image, label, expected, prompts)
    assert_logits(trainer, image, tcp_plain.logits(plain, prompts, names, image, layer))


@pytest.mark.parametrize("layer", [1, 2])  # at 0 nobody would see ctx
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, layer):
    uneven_names(monkeypatch)
    trainer = build("TCP", data, tmp_path, weights, "TRAINER.TCP.LAYER", str(layer))
    check(trainer, weights, layer)


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use, at the published layer."""
    opts = ("TRAINER.TCP.LAYER", "8")
    check(
        build("TCP", tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path), *opts),
        vit_b16,
        layer=8,
    )


# The words behind ctx and the teacher's sentence, as in the published code.
PET, FLOWER = "a photo of a {}, a type of pet.", "a photo of a {}, a type of flower."
AIRCRAFT, TEXTURE = "a photo of an aircraft {}.", "a photo of a {}, a type of texture."
FOOD, SPACE, ACTION = (
    "a photo of a {}, a type of food.",
    "a centered satellite photo of {}.",
    "a photo of a person doing {}.",
)


@pytest.mark.parametrize(
    ("dataset", "words", "template"),
    [
        ("OxfordPets", "{}, a type of pet.", PET),
        ("OxfordFlowers", "{}, a type of flower.", FLOWER),
        ("FGVCAircraft", "{}, a type of aircraft.", AIRCRAFT),
        ("DescribableTextures", "{} texture.", TEXTURE),
        ("EuroSAT", "{}.", SPACE),
        ("StanfordCars", "{}, a type of car", "a photo of a {}."),
        ("Food101", "{}, a type of food.", FOOD),
        ("UCF101", "person doing {}.", ACTION),
        ("ImageNet", "{}.", "a photo of a {}."),
        ("Caltech101", "{}.", "a photo of a {}."),
    ],
)
def test_every_datasets_words(data, tmp_path, weights, dataset, words, template):
    trainer = build("TCP", data, tmp_path, weights, "TRAINER.TCP.LAYER", "1")
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME = dataset
    learner = trainer.build_learner(trainer.model.clip, UNEVEN)
    shake(learner, 0.3)
    prompts = {key: p.detach() for key, p in learner.named_parameters()}
    expected = tcp_plain.text_features(PlainCLIP(weights), prompts, UNEVEN, 1, words, template)
    with torch.no_grad():
        ours = learner.text_features(trainer.model.clip)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


def test_steps_as_adam_with_a_large_epsilon(data, tmp_path, weights):
    """Adam's first step, by hand: lr * g / (|g| + eps), g with the weight decay."""
    trainer = build("TCP", data, tmp_path, weights, "TRAINER.TCP.LAYER", "1")
    ctx = trainer.model.learner.ctx
    lr, decay, before = (
        trainer.get_current_lr(),
        trainer.cfg.OPTIM.WEIGHT_DECAY,
        ctx.detach().clone(),
    )
    gradient = torch.linspace(-1e-2, 1e-2, ctx.numel()).view_as(ctx)
    ctx.grad = gradient.clone()
    trainer.optim.step()
    g = gradient + decay * before
    torch.testing.assert_close(
        ctx.detach() - before, -lr * g / (g.abs() + 1e-3), rtol=1e-2, atol=1e-3 * lr
    )


def test_upstreams_file_loads(data, tmp_path, weights):
    """Half precision; token buffers of other classes."""
    prompts = tcp_plain.random_prompts(PlainCLIP(weights))
    state = {key: p.detach().half() for key, p in prompts.items()}
    buffers = {
        "token_prefix": torch.randn(9, 1, 64).half(),
        "token_suffix": torch.randn(9, 72, 64).half(),
    }
    save(tmp_path / "upstream", FOLDER, state | buffers)
    trainer = build("TCP", data, tmp_path, weights, "TRAINER.TCP.LAYER", "2")
    trainer.load_model(str(tmp_path / "upstream"), epoch=5)
    image, _ = batch(weights, trainer.num_classes)
    expected = {key: p.float() for key, p in state.items()}
    assert_logits(
        trainer,
        image,
        tcp_plain.logits(PlainCLIP(weights), expected, class_names(trainer), image, layer=2),
    )


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (("TRAINER.TCP.LAYER", "4"), "TRAINER.TCP.LAYER 4"),
        (("TRAINER.TCP.LAYER", "-1"), "TRAINER.TCP.LAYER -1"),
        (("TRAINER.COOP.W", "8.0"), "TRAINER.COOP.W 8.0"),
        (("TRAINER.COOP.CSC", "True"), "TRAINER.COOP.CSC"),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, setting, line):
    """The small CLIP has the blocks 0 to 3."""
    assert_refused("TCP", data, tmp_path, capsys, line, *setting)
