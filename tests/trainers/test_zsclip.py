"""Zero-shot CLIP, with one template and with eight, against the plain reference."""

from pathlib import Path

import pytest

import train
import trainers.frozen_clip
from reference.clip_plain import PlainCLIP
from reference.kgcoop_plain import teacher_features
from tests.runs import REPO, run
from tests.trainers.files import accuracies
from tests.trainers.methods import (
    assert_logits,
    assert_refused,
    batch,
    build,
    class_names,
    uneven_names,
)
from trainers.prompt_text import zero_shot_template

OWN = "a photo of a {}."
SEVEN = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
]


def check(trainer, weights, templates: list[str]) -> None:
    """The logits of the mean of the templates' features, each of unit length first."""
    image, _ = batch(weights, trainer.num_classes)
    plain, names = PlainCLIP(weights), class_names(trainer)
    each = [teacher_features(plain, names, template) for template in templates]
    mean = sum(features / features.norm(dim=-1, keepdim=True) for features in each) / len(each)
    assert_logits(trainer, image, plain.logits(plain.encode_image(image), mean))


@pytest.mark.parametrize("template", [OWN, "{} texture."])
@pytest.mark.parametrize("method, others", [("ZeroshotCLIP", []), ("ZeroshotCLIP2", SEVEN)])
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, method, others, template):
    uneven_names(monkeypatch)
    opts = () if template == OWN else ("DATASET.TEMPLATE", template)
    check(build(method, data, tmp_path, weights, *opts), weights, [*others, template])


def test_on_vit_b16(data, tmp_path, vit_b16):
    check(build("ZeroshotCLIP", data, tmp_path, vit_b16), vit_b16, [OWN])


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ("oxford_pets", "a photo of a {}, a type of pet."),
        ("oxford_flowers", "a photo of a {}, a type of flower."),
        ("fgvc_aircraft", "a photo of a {}, a type of aircraft."),
        ("dtd", "{} texture."),
        ("eurosat", "a centered satellite photo of {}."),
        ("food101", "a photo of {}, a type of food."),
        ("ucf101", "a photo of a person doing {}."),
        ("caltech101", OWN),
        ("stanford_cars", OWN),
        ("sun397", OWN),
        ("imagenet", OWN),
        ("imagenetv2", OWN),
        ("imagenet_sketch", OWN),
        ("imagenet_a", OWN),
        ("imagenet_r", OWN),
    ],
)
def test_every_datasets_template(config, template):
    flags = [
        "--trainer",
        "ZeroshotCLIP",
        "--dataset-config-file",
        f"{REPO}/configs/datasets/{config}.yaml",
    ]
    assert zero_shot_template(train.setup_cfg(train.parse_args(flags))) == template


def test_imagenets_own_template_is_none_of_its_seven(data, tmp_path, weights, monkeypatch):
    trainer = build("ZeroshotCLIP2", data, tmp_path, weights)
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME = "ImageNet"
    monkeypatch.setattr(trainers.frozen_clip, "find_weights", lambda *_: Path(__file__))
    monkeypatch.setattr(trainers.frozen_clip, "read_state_dict", lambda _: dict(weights))
    trainer.build_model()
    check(trainer, weights, SEVEN)


def test_a_run_is_its_test(data, tmp_path, capsys):
    """There is nothing to train or to save."""
    assert run("ZeroshotCLIP2", data, tmp_path / "train") == 0
    trained = accuracies(capsys)
    assert run("ZeroshotCLIP2", data, tmp_path / "test", flags=("--eval-only",)) == 0
    assert len(trained) == 1 and accuracies(capsys) == trained
    assert not list(tmp_path.rglob("model.pth.tar*"))


@pytest.mark.parametrize("method", ["ZeroshotCLIP", "ZeroshotCLIP2"])
def test_a_template_without_a_place_for_the_name(data, tmp_path, capsys, method):
    assert_refused(
        method, data, tmp_path, capsys, "must have one {}", "DATASET.TEMPLATE", "a photo."
    )
