"""CoCoOp's loss and gradients against the plain reference, with and without attributes, and its
files."""

import pytest
import torch

from reference import cocoop_plain
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
from trainers import draws

ATTRIBUTES = {"CoCoOp": (), "CoCoOp_ATP": ("color", "shape")}
META_NET = {
    "linear1.weight": (4, 64),
    "linear1.bias": (4,),
    "linear2.weight": (64, 4),
    "linear2.bias": (64,),
}
METHODS = pytest.mark.parametrize("method", ["CoCoOp", "CoCoOp_ATP"])


def shapes(method: str) -> dict[str, tuple[int, ...]]:
    """Of what is learned, on the tiny CLIP."""
    n_ctx = 2 if method == "CoCoOp_ATP" else 4
    attributes = {f"ctx_att{k}": (2, 64) for k in (1, 2, 3)} if method == "CoCoOp_ATP" else {}
    return {
        "ctx": (n_ctx, 64),
        **attributes,
        **{f"meta_net.{name}": shape for name, shape in META_NET.items()},
    }


def check(trainer, weights, image, label, attributes):
    """A fresh trainer's loss, gradients and logits, its meta-net shaken until the bias is as large
    as ctx."""
    shake(trainer.model.learner)
    shake(trainer.model.learner.meta_net, 0.5)
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    with torch.no_grad():
        features = [torch.nn.functional.normalize(f, dim=0) for f in plain.encode_image(image)]
        first, second = (cocoop_plain.bias(prompts, f) for f in features[:2])
    assert (first - second).norm() > 0.05 * first.norm() > 0.01 * prompts["ctx"][0].norm()
    expected = cocoop_plain.logits(plain, prompts, names, image, attributes)
    assert_loss(trainer, image, label, torch.nn.functional.cross_entropy(expected, label), prompts)
    assert_logits(trainer, image, expected)


@METHODS
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, method):
    uneven_names(monkeypatch)
    trainer = build(method, data, tmp_path, weights)
    assert {n: tuple(p.shape) for n, p in trainer.model.learner.named_parameters()} == shapes(
        method
    )
    check(trainer, weights, *batch(weights, trainer.num_classes), ATTRIBUTES[method])


def test_with_ones_own_attribute_of_two_tokens(data, tmp_path, weights):
    own = (
        "TRAINER.ATPROMPT.ATT_NUM",
        "1",
        "TRAINER.ATPROMPT.ATT1_TEXT",
        "playfulness",
        "TRAINER.ATPROMPT.N_ATT1",
        "3",
    )
    trainer = build("CoCoOp_ATP", data, tmp_path, weights, *own)
    check(trainer, weights, *batch(weights, trainer.num_classes), ("playfulness",))


@METHODS
def test_on_vit_b16(tmp_path, vit_b16, method):
    """The size in use; few classes."""
    trainer = build(method, tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path))
    check(trainer, vit_b16, *batch(vit_b16, trainer.num_classes), ATTRIBUTES[method])


@METHODS
def test_a_batch_is_its_images_one_by_one(data, tmp_path, weights, monkeypatch, method):
    """In evaluation in as many chunks as MOST_PROMPTS asks for, the last of which may be
    smaller."""
    trainer = build(method, data, tmp_path, weights)
    shake(trainer.model.learner)
    shake(trainer.model.learner.meta_net, 0.5)
    image, label = batch(weights, trainer.num_classes)
    with torch.no_grad():
        alone = [trainer.loss(image[i : i + 1], label[i : i + 1])[0] for i in range(3)]
        torch.testing.assert_close(
            trainer.loss(image, label)[0], torch.stack(alone).mean(), rtol=1e-5, atol=0
        )
        trainer.set_model_mode("eval")
        rows = torch.cat([trainer.model_inference(image[i : i + 1]) for i in range(3)])
    texts, parts = trainer.model.learner.conditional_text_features, []
    monkeypatch.setattr(
        trainer.model.learner,
        "conditional_text_features",
        lambda clip_model, some: (parts.append(len(some)), texts(clip_model, some))[1],
    )
    monkeypatch.setattr(draws, "MOST_PROMPTS", 3 * trainer.num_classes - 1)
    assert_logits(trainer, image, rows)
    assert parts == [2, 1]


def test_starts_from_a_photo_of_a(data, tmp_path, weights):
    trainer = build("CoCoOp", data, tmp_path, weights)
    words = weights["token_embedding.weight"][[320, 1125, 539, 320]]  # a photo of a
    assert torch.equal(trainer.model.learner.ctx.data, words)


@METHODS
def test_upstreams_file_loads(data, tmp_path, weights, method):
    """Half precision; token buffers of other classes."""
    pieces = ["token_prefix", "token_suffix"]
    pieces += [f"token_middle{k}" for k in (1, 2, 3)] if method == "CoCoOp_ATP" else []
    state = upstream_file(tmp_path / "upstream", shapes(method) | dict.fromkeys(pieces, (9, 5, 64)))
    trainer = build(method, data, tmp_path, weights)
    image, _ = batch(weights, trainer.num_classes)
    trainer.load_model(str(tmp_path / "upstream"), epoch=50)
    expected = cocoop_plain.logits(
        PlainCLIP(weights), state, class_names(trainer), image, ATTRIBUTES[method]
    )
    assert_logits(trainer, image, expected)


@pytest.mark.parametrize(
    ("line", "opts"),
    [
        ("N_CTX 0", ("TRAINER.COCOOP.CTX_INIT", "", "TRAINER.COCOOP.N_CTX", "0")),
        ("TRAINER.COOP.CSC and CLASS_TOKEN_POSITION: CoCoOp's", ("TRAINER.COOP.CSC", "True")),
        (
            "TRAINER.COOP.CSC and CLASS_TOKEN_POSITION: CoCoOp's",
            ("TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"),
        ),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, line, opts):
    assert_refused("CoCoOp", data, tmp_path, capsys, line, *opts)
