"""CoOp's prompts, loss and gradient against the plain reference, and its files."""

import pytest
import torch
import yaml

from reference import coop_plain, kgcoop_plain, maple_plain
from reference.clip_plain import PlainCLIP
from tests.runs import REPO, run
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

RANDOM = (
    "TRAINER.COOP.CTX_INIT",
    "",
    "TRAINER.COOP.N_CTX",
    "5",
)  # odd, so that the halves of "middle" differ


def check(trainer, weights, position="end", attributes=()):
    """A fresh trainer's loss, gradients and logits."""
    shake(trainer.model.learner)
    image, label = batch(weights, trainer.num_classes)
    plain, prompts, names = PlainCLIP(weights), parameters(trainer), class_names(trainer)
    assert prompts.keys() == (ATP_LEARNED.keys() if attributes else {"ctx"})
    expected = coop_plain.logits(plain, prompts, names, image, position, attributes)
    assert_loss(trainer, image, label, torch.nn.functional.cross_entropy(expected, label), prompts)
    assert_logits(trainer, image, expected)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", ["False", "True"])
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, position, csc):
    uneven_names(monkeypatch)
    opts = ("TRAINER.COOP.CLASS_TOKEN_POSITION", position, "TRAINER.COOP.CSC", csc)
    trainer = build("CoOp", data, tmp_path, weights, *RANDOM, *opts)
    assert trainer.model.learner.ctx.shape == ((16, 5, 64) if csc == "True" else (5, 64))
    check(trainer, weights, position)


def test_on_vit_b16(tmp_path, vit_b16):
    """The size in use; few classes."""
    check(build("CoOp", tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path)), vit_b16)


@pytest.mark.parametrize(("n_ctx", "lines"), [("4", 0), ("16", 1)])
def test_starting_from_words_is_the_hand_crafted_prompt(
    data, tmp_path, weights, capsys, n_ctx, lines
):
    """As upstream, words win over N_CTX; a line says so where the two differ."""
    trainer = build("CoOp", data, tmp_path, weights, "TRAINER.COOP.N_CTX", n_ctx)
    assert capsys.readouterr().out.count("The context has CTX_INIT's 4 tokens, not N_CTX ") == lines
    assert trainer.model.learner.ctx.shape == (4, 64)
    image, _ = batch(weights, trainer.num_classes)
    plain = PlainCLIP(weights)
    text = kgcoop_plain.teacher_features(plain, class_names(trainer), "a photo of a {}.")
    assert_logits(trainer, image, plain.logits(plain.encode_image(image), text))


def test_our_configs_say_how_many_words_they_have():
    """So that their runs print no such line, and record the length in use."""
    for config in (REPO / "configs" / "trainers").glob("*/*.yaml"):
        nodes = yaml.safe_load(config.read_text()).get("TRAINER", {})
        node = nodes.get("COOP") or nodes.get("COCOOP") or {}
        if node.get("CTX_INIT"):
            assert node.get("N_CTX") == len(node["CTX_INIT"].split()), config


def test_each_class_starts_at_vectors_of_its_own(data, tmp_path, weights):
    """N(0, 0.02²) over the classes, over the vectors and over the width."""
    ctx = build(
        "CoOp", data, tmp_path, weights, *RANDOM, "TRAINER.COOP.CSC", "True"
    ).model.learner.ctx
    assert ctx.mean().abs() < 0.001
    for dim in range(3):
        assert ctx.var(dim).mean().sqrt().item() == pytest.approx(0.02, rel=0.1)


def test_upstreams_file_loads(data, tmp_path, weights):
    """Keys without prefix, half precision, token buffers of other classes; after a test with other
    vectors."""
    shapes = {"ctx": (5, 64), "token_prefix": (9, 1, 64), "token_suffix": (9, 71, 64)}
    state = upstream_file(tmp_path / "upstream", shapes)
    trainer = build("CoOp", data, tmp_path, weights, *RANDOM)
    image, _ = batch(weights, trainer.num_classes)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        trainer.model_inference(image)
        trainer.load_model(str(tmp_path / "upstream"), epoch=50)
    assert torch.equal(trainer.model.learner.ctx, state["ctx"])
    assert_logits(
        trainer, image, coop_plain.logits(PlainCLIP(weights), state, class_names(trainer), image)
    )


CSC = ("TRAINER.COOP.CSC", "True")


@pytest.mark.parametrize(
    ("line", "opts"),
    [
        ("choose from end, middle, front", ("TRAINER.COOP.CLASS_TOKEN_POSITION", "back")),
        ("set CTX_INIT '' (random) to give each class its own", CSC),
        ("there is nothing for new classes", (*CSC, *RANDOM, "DATASET.SUBSAMPLE_CLASSES", "new")),
    ],
)
def test_settings_that_do_not_fit(data, tmp_path, capsys, line, opts):
    assert_refused("CoOp", data, tmp_path, capsys, line, *opts)


# With ATPrompt's attributes

OWN = (
    "TRAINER.ATPROMPT.ATT_NUM",
    "2",
    "TRAINER.ATPROMPT.ATT1_TEXT",
    "playfulness",
    "TRAINER.ATPROMPT.ATT2_TEXT",
    "color",
)
ATP_LEARNED = {"ctx": (2, 64), "ctx_att1": (2, 64), "ctx_att2": (2, 64), "ctx_att3": (2, 64)}


@pytest.mark.parametrize("opts", [(), (*OWN, "TRAINER.ATPROMPT.N_ATT2", "1")])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", ["False", "True"])
def test_atp_equals_the_reference(data, tmp_path, weights, monkeypatch, opts, position, csc):
    uneven_names(monkeypatch)
    settings = (
        "TRAINER.COOP.CLASS_TOKEN_POSITION",
        position,
        "TRAINER.COOP.CSC",
        csc,
        "TRAINER.COOP.N_CTX",
        "5",
    )
    trainer = build("CoOp_ATP", data, tmp_path, weights, *opts, *settings)
    check(trainer, weights, position, ("playfulness", "color") if opts else ("color", "shape"))


def test_atp_on_vit_b16(tmp_path, vit_b16):
    """The size in use; few classes."""
    check(
        build("CoOp_ATP", tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path)),
        vit_b16,
        attributes=("color", "shape"),
    )


def test_coop_takes_attributes_as_an_option(data, tmp_path, weights):
    trainer = build("CoOp", data, tmp_path, weights, "TRAINER.ATPROMPT.USE_ATPROMPT", "True")
    check(trainer, weights, attributes=("color", "shape"))


def test_atp_sliced_as_upstream(data, tmp_path, weights):
    trainer = build(
        "CoOp_ATP", data, tmp_path, weights, *OWN, "TRAINER.ATPROMPT.UPSTREAM_SLICING", "True"
    )
    shake(trainer.model.learner)
    image, _ = batch(weights, trainer.num_classes)
    plain, prompts = PlainCLIP(weights), parameters(trainer)
    both = [
        maple_plain.text_features(
            plain, prompts, class_names(trainer), ("playfulness", "color"), upstream_slicing=cut
        )
        for cut in (True, False)
    ]
    assert (both[0] - both[1]).norm() > 0.01 * both[0].norm()
    assert_logits(trainer, image, plain.logits(plain.encode_image(image), both[0]))


def test_atp_starts_at_random(data, tmp_path, weights):
    many = ("TRAINER.COOP.N_CTX", "20", "TRAINER.ATPROMPT.N_ATT3", "20")
    learner = build("CoOp_ATP", data, tmp_path, weights, *many).model.learner
    assert learner.ctx.std().item() == pytest.approx(0.02, rel=0.1)
    assert learner.ctx_att3.std().item() == pytest.approx(0.01, rel=0.1)


def test_upstreams_atp_file_loads(data, tmp_path, weights):
    """Half precision; token buffers of other classes."""
    pieces = ("token_prefix", "token_middle1", "token_middle2", "token_middle3", "token_suffix")
    state = upstream_file(tmp_path / "upstream", ATP_LEARNED | dict.fromkeys(pieces, (9, 5, 64)))
    trainer = build("CoOp_ATP", data, tmp_path, weights)
    image, _ = batch(weights, trainer.num_classes)
    trainer.load_model(str(tmp_path / "upstream"), epoch=50)
    names = class_names(trainer)
    expected = coop_plain.logits(
        PlainCLIP(weights), state, names, image, attributes=("color", "shape")
    )
    assert_logits(trainer, image, expected)


def test_a_missing_attribute_is_refused(data, tmp_path, capsys):
    none = ("TRAINER.ATPROMPT.ATT_NUM", "2", "TRAINER.ATPROMPT.ATT1_TEXT", "color")
    assert_refused("CoOp_ATP", data, tmp_path, capsys, "ATT2_TEXT", *none)


@pytest.mark.parametrize("option", [("CSC", "True"), ("CLASS_TOKEN_POSITION", "front")])
def test_upstreams_slicing_goes_with_its_own_prompts_only(data, tmp_path, capsys, option):
    slicing = ("TRAINER.ATPROMPT.UPSTREAM_SLICING", "True")
    assert (
        run("CoOp_ATP", data, tmp_path / "x", *slicing, f"TRAINER.COOP.{option[0]}", option[1]) == 2
    )
    assert "UPSTREAM_SLICING: upstream has a shared context" in capsys.readouterr().err
