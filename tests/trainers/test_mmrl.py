"""MMRL's loss and gradients against the plain reference, its two features, which logits a test
reads, and its files."""

import pytest
import torch

from clip.model import build_model
from dassl.engine import TrainerX
from reference import mmrl_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import as_leaves
from tests.runs import run
from tests.trainers.files import save, three_classes
from tests.trainers.methods import (
    assert_logits,
    assert_loss,
    assert_refused,
    batch,
    build,
    class_names,
    in_double,
    parameters,
    shake,
    uneven_names,
    upper_layers,
)
from trainers.mmrl import MultiModalRepresentationLearner, mmrl_loss, mmrl_node

FOLDER = "MultiModalRepresentationLearner"


def options(**settings) -> list[str]:
    """Settings of TRAINER.MMRL."""
    return [text for key, value in settings.items() for text in (f"TRAINER.MMRL.{key}", str(value))]


SMALL = {"N_REP_TOKENS": 3, "REP_DIM": 24}  # no number is another's


def node_of(**settings):
    node = mmrl_node()
    for key, value in settings.items():
        node[key] = value
    return node


def expected_logits(trainer, weights, image, layers, **settings):
    plain, prompts = PlainCLIP(weights), parameters(trainer)
    return mmrl_plain.both_logits(plain, prompts, class_names(trainer), image, layers, **settings)


def check(trainer: TrainerX, weights, layers, alpha=0.7, reg_weight=1.0) -> None:
    """Loss, gradients, both features' logits fused."""
    shake(trainer.model.learner)
    image, label = batch(weights, trainer.num_classes)
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    expected = mmrl_plain.loss(plain, prompts, names, image, label, layers, alpha, reg_weight)
    assert_loss(trainer, image, label, expected, prompts)
    with torch.no_grad():
        of_class, of_rep = expected_logits(trainer, weights, image, layers)
    assert (of_class - of_rep).norm() > 0.05 * of_class.norm()
    assert_logits(trainer, image, alpha * of_class + (1 - alpha) * of_rep)
    trainer.model.fused = False
    assert_logits(trainer, image, of_class)


@pytest.mark.parametrize(
    ("layers", "alpha", "reg_weight"),
    [([2, 3], 0.7, 1.0), ([1, 3], 0.4, 6.0), ([1, 2], 0.7, 0.0), ([3], 0.7, 0.5)],
)
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, layers, alpha, reg_weight):
    """Of [1, 3] the second block leaves the tokens as they are; of [1, 2] the third does."""
    uneven_names(monkeypatch)
    opts = options(REP_LAYERS=layers, ALPHA=alpha, REG_WEIGHT=reg_weight, **SMALL)
    trainer = build("MMRL", data, tmp_path, weights, *opts)
    check(trainer, weights, layers, alpha, reg_weight)
