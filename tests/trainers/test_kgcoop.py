"""KgCoOp's loss and gradient against the plain reference, and its files."""

import pytest
import torch

from dassl.data.datasets import DATASET_REGISTRY
from datasets.shapes import Shapes
from reference import coop_plain, kgcoop_plain
from reference.clip_plain import PlainCLIP
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


def check(trainer, weights, **settings):
    image, label = batch(weights, trainer.num_classes)
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    expected = kgcoop_plain.loss(plain, prompts, names, image, label, **settings)
    assert_loss(trainer, image, label, expected, prompts)
    attributes = settings.get("attributes", ())
    assert_logits(
        trainer, image, coop_plain.logits(plain, prompts, names, image, attributes=attributes)
    )


@pytest.mark.parametrize("weight", [8.0, 0.5])
@pytest.mark.parametrize("template", ["a photo of a {}.", "{} texture."])
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, weight, template):
    uneven_names(monkeypatch)
    opts = (
        "TRAINER.COOP.W",
        str(weight),
        "DATASET.TEMPLATE",
        "" if "photo" in template else template,
    )
    trainer = build("KgCoOp", data, tmp_path, weights, *opts)
    shake(trainer.model.learner)
    check(trainer, weights, weight=weight, template=template)


def test_textures_have_a_teacher_of_their_own(data, tmp_path, weights, monkeypatch):
    """Under the name of the one dataset whose teacher is not the zero-shot template ("{}
    texture.")."""
    monkeypatch.setattr(DATASET_REGISTRY, "get", lambda name: Shapes)
    trainer = build("KgCoOp", data, tmp_path, weights, "DATASET.NAME", "DescribableTextures")
    shake(trainer.model.learner)
    check(trainer, weights, template="a photo of a {}, a type of texture.")


def test_with_attributes(data, tmp_path, weights):
    trainer = build("KgCoOp", data, tmp_path, weights, "TRAINER.ATPROMPT.USE_ATPROMPT", "True")
    shake(trainer.model.learner)
    check(trainer, weights, attributes=("color", "shape"))


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use, at the published weight; few classes."""
    trainer = build("KgCoOp", tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path))
    shake(trainer.model.learner)
    check(trainer, vit_b16)


def test_starts_at_its_teacher(data, tmp_path, weights):
    """ctx starts as "a photo of a", so the loss is the cross-entropy alone."""
    trainer = build("KgCoOp", data, tmp_path, weights)
    image, label = batch(weights, trainer.num_classes)
    loss, _ = trainer.loss(image, label)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(trainer.model(image), label))


def test_upstreams_file_loads(data, tmp_path, weights):
    """With the parameters that upstream's code declares and never uses."""
    shapes = {
        "ctx": (4, 64),
        "token_prefix": (9, 1, 64),
        "token_suffix": (9, 72, 64),
        "bias_vectors": (1, 64),
    }
    shapes |= {"meta_net.linear1.weight": (4, 64), "meta_net.linear1.bias": (4,)}
    state = upstream_file(tmp_path / "upstream", shapes)
    trainer = build("KgCoOp", data, tmp_path, weights)
    image, _ = batch(weights, trainer.num_classes)
    trainer.load_model(str(tmp_path / "upstream"), epoch=50)
    assert_logits(
        trainer, image, coop_plain.logits(PlainCLIP(weights), state, class_names(trainer), image)
    )


def test_a_setting_that_does_not_fit(data, tmp_path, capsys):
    assert_refused(
        "KgCoOp", data, tmp_path, capsys, "shared by all classes", "TRAINER.COOP.CSC", "True"
    )
