"""MMA's loss and rescaled gradients against the plain reference, and its files."""

import pytest
import torch

from reference import mma_plain
from reference.clip_plain import PlainCLIP
from tests.trainers.files import save, three_classes
from tests.trainers.methods import (
    assert_gradients,
    assert_logits,
    assert_refused,
    batch,
    build,
    class_names,
    parameters,
    shake,
    uneven_names,
)

NAME, FOLDER = "MultiModalAdapter", "adapter_learner"


def options(first: int, last: int, **settings) -> list[str]:
    """Settings of TRAINER.MMADAPTER."""
    settings = {"ADAPTER_START": first, "ADAPTER_END": last, **settings}
    return [
        text for key, value in settings.items() for text in (f"TRAINER.MMADAPTER.{key}", str(value))
    ]


def check(
    trainer, weights, scale: float, ctx: str = "a photo of a", tolerance: float = 1e-5
) -> None:
    """Loss, gradients and logits."""
    learner = trainer.model.learner
    shake(learner)
    image, label = batch(weights, trainer.num_classes)
    image = image.to(trainer.model.clip.dtype)
    plain, params, names = (
        PlainCLIP(weights, image.dtype),
        parameters(trainer),
        class_names(trainer),
    )
    expected = mma_plain.loss(plain, params, names, image, label, scale, ctx)
    loss, _ = trainer.loss(image, label)
    loss.backward()
    assert abs(loss - expected) <= tolerance * expected
    assert_gradients(learner, mma_plain.gradients(expected, params, scale), tolerance)
    assert_logits(trainer, image, mma_plain.logits(plain, params, names, image, scale, ctx))


@pytest.mark.parametrize("scale", [0.001, 0.3])
@pytest.mark.parametrize("first, last", [(1, 3), (2, 2)])
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, scale, first, last):
    """At 0.3 the adapters weigh as much as the blocks: one at a wrong place would be seen in the
    loss."""
    uneven_names(monkeypatch)
    trainer = build(NAME, data, tmp_path, weights, *options(first, last, ADAPTER_SCALE=scale))
    check(trainer, weights, scale)


def test_words_and_width_of_ones_own(data, tmp_path, weights):
    opts = options(2, 3, ADAPTER_SCALE=0.3, ADAPTER_DIM=8, TEXT_CTX_INIT="itap of")
    check(build(NAME, data, tmp_path, weights, *opts), weights, 0.3, "itap of")


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use, at the published settings.

    In double precision: the gradients that the classes give to the last bias of the text tower
        nearly cancel, and in
    single precision 1.1e-5 of what is left is rounding, in the reference as here.
    """
    opts = options(5, 12, ADAPTER_SCALE=0.001, ADAPTER_DIM=32)
    trainer = build(NAME, tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path), *opts)
    trainer.model.double().clip.double()
    check(trainer, vit_b16, 0.001, tolerance=1e-9)


def test_names_and_initial_values(data, tmp_path, weights):
    """Kaiming's normal initialisation for ReLU, by the number of outputs; no bias."""
    learned = parameters(build(NAME, data, tmp_path, weights, *options(2, 3)))
    expected = mma_plain.random_params(PlainCLIP(weights), first=2, last=3)
    assert {key: p.shape for key, p in learned.items()} == {
        key: p.shape for key, p in expected.items()
    }
    for key, p in learned.items():
        if key.endswith("bias"):
            assert not p.any(), key
        else:
            assert p.std().item() == pytest.approx((2 / len(p)) ** 0.5, rel=0.1), key


def test_upstreams_file_loads(data, tmp_path, weights):
    """Half precision; the embedded sentences of other classes."""
    params = mma_plain.random_params(PlainCLIP(weights), first=2, last=3)
    state = {key: p.detach().half() for key, p in params.items()}
    buffers = {
        "token_embedding": torch.randn(9, 77, 64).half(),
        "tokenized_prompts": torch.ones(9, 77).long(),
    }
    save(tmp_path / "upstream", FOLDER, state | buffers)
    trainer = build(NAME, data, tmp_path, weights, *options(2, 3, ADAPTER_SCALE=0.3))
    trainer.load_model(str(tmp_path / "upstream"), epoch=5)
    image, _ = batch(weights, trainer.num_classes)
    expected = {key: p.float() for key, p in state.items()}
    assert_logits(
        trainer,
        image,
        mma_plain.logits(PlainCLIP(weights), expected, class_names(trainer), image, 0.3),
    )


@pytest.mark.parametrize(
    ("first", "last", "settings", "line"),
    [
        (2, 5, {}, "ADAPTER_END 5"),
        (0, 4, {}, "ADAPTER_START 0"),
        (3, 2, {}, "ADAPTER_START 3"),
        (2, 4, {"ADAPTER_DIM": 0}, "ADAPTER_DIM 0"),
        (2, 4, {"ADAPTER_SCALE": 0.0}, "ADAPTER_SCALE 0.0"),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, first, last, settings, line):
    """The small CLIP has the blocks 1 to 4."""
    assert_refused(NAME, data, tmp_path, capsys, line, *options(first, last, **settings))
