"""The oracles of CoOp, CoCoOp, KgCoOp and ProGrad checked: by each other, by hand, by open_clip. No
project code."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reference import cocoop_plain, coop_plain, kgcoop_plain, maple_plain, prograd_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import gradients, random_prompts, tokenise
from reference.weights import openai_state_dict

NAMES = [
    "striped_red hexagon",
    "cat",
    "7 crane (bird)",
    "a name of many more words than the others",
]
ATTRIBUTES = ("color", "playfulness")  # one token, two tokens


@pytest.fixture(scope="module")
def clip() -> PlainCLIP:
    return PlainCLIP(openai_state_dict("tiny", dtype=torch.float64))


@pytest.fixture
def prompts(clip: PlainCLIP) -> dict[str, Tensor]:
    made = random_prompts(clip, n_ctx=4)
    return {key: value for key, value in made.items() if key.startswith("ctx")}


@pytest.fixture
def cocoop(clip: PlainCLIP, prompts: dict[str, Tensor]) -> dict[str, Tensor]:
    return prompts | cocoop_plain.random_meta_net(clip)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(
        3, 3, 32, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )


LABELS = torch.tensor([0, 3, 2])


@pytest.mark.parametrize("attributes", [(), ATTRIBUTES[:1], ATTRIBUTES])
def test_coop_is_maples_text_without_deep_prompts(clip, prompts, attributes):
    ours = coop_plain.text_features(clip, prompts, NAMES, attributes=attributes)
    torch.testing.assert_close(ours, maple_plain.text_features(clip, prompts, NAMES, attributes))
    unused = {key for key, g in gradients(ours.sum(), prompts).items() if g is None}
    assert unused == {f"ctx_att{k}" for k in range(len(attributes) + 1, 4)}


def test_learned_vectors_that_are_words_make_a_sentence(clip):
    """With word embeddings for vectors, the prompts with attributes are texts that CLIP reads."""
    words = {"ctx_att1": "a photo", "ctx_att2": "seen in", "ctx": "and of"}
    prompts = {key: clip.embed(torch.tensor(tokenise(text))) for key, text in words.items()}
    ours = coop_plain.text_features(clip, prompts, ["big_cat"], attributes=ATTRIBUTES)
    text = "a photo color seen in playfulness and of big cat."
    torch.testing.assert_close(ours, clip.encode_text(open_clip.tokenize([text])))


# CoCoOp


def test_cocoop_with_a_silent_meta_net_is_coop(clip, cocoop, images):
    for key in ("meta_net.linear2.weight", "meta_net.linear2.bias"):
        cocoop[key] = torch.zeros_like(cocoop[key])
    for attributes in ((), ATTRIBUTES):
        ours = cocoop_plain.logits(clip, cocoop, NAMES, images, attributes)
        torch.testing.assert_close(
            ours, coop_plain.logits(clip, cocoop, NAMES, images, attributes=attributes)
        )


def test_cocoops_meta_net_is_its_layers_in_torch(clip, cocoop):
    embed_dim, width = clip.text_projection.shape[1], clip.token_embedding.weight.shape[1]
    net = torch.nn.Sequential()
    net.add_module("linear1", torch.nn.Linear(embed_dim, embed_dim // 16))
    net.add_module("relu", torch.nn.ReLU())
    net.add_module("linear2", torch.nn.Linear(embed_dim // 16, width))
    net = net.double()
    net.load_state_dict(
        {
            key.removeprefix("meta_net."): v
            for key, v in cocoop.items()
            if key.startswith("meta_net.")
        }
    )
    features = functional.normalize(torch.randn(5, embed_dim, dtype=torch.float64), dim=-1)
    ours = torch.stack([cocoop_plain.bias(cocoop, feature) for feature in features])
    torch.testing.assert_close(ours, net(features))
    assert (ours[0] - ours[1]).norm() > 0.1 * ours[0].norm()  # it tells images apart


def test_cocoops_bias_reaches_ctx_alone(clip, cocoop, images):
    """A constant bias is the same as ctx moved by it; attribute vectors stay."""
    moved = dict(cocoop)
    moved["meta_net.linear2.weight"] = torch.zeros_like(cocoop["meta_net.linear2.weight"])
    ours = cocoop_plain.logits(clip, moved, NAMES, images, ATTRIBUTES)
    there = {**cocoop, "ctx": cocoop["ctx"] + cocoop["meta_net.linear2.bias"]}
    expected = coop_plain.logits(clip, there, NAMES, images, attributes=ATTRIBUTES)
    torch.testing.assert_close(ours, expected)
    assert (
        expected - coop_plain.logits(clip, cocoop, NAMES, images, attributes=ATTRIBUTES)
    ).abs().max() > 0.01


def test_cocoop_trains_all_it_has(clip, cocoop, images):
    g = gradients(cocoop_plain.loss(clip, cocoop, NAMES, images, LABELS, ATTRIBUTES), cocoop)
    assert {key for key, value in g.items() if value is None} == {"ctx_att3"}
    assert all(value.norm() > 0 for value in g.values() if value is not None)


def test_kgcoops_and_prograds_prompts_may_have_attributes(clip, prompts, images):
    expected = coop_plain.loss(clip, prompts, NAMES, images, LABELS, attributes=ATTRIBUTES)
    ours = kgcoop_plain.loss(
        clip, prompts, NAMES, images, LABELS, weight=0.0, attributes=ATTRIBUTES
    )
    torch.testing.assert_close(ours, expected)
    xe, kl = prograd_plain.losses(clip, prompts, NAMES, images, LABELS, attributes=ATTRIBUTES)
    torch.testing.assert_close(xe, expected)
    final = prograd_plain.final_gradients(xe, kl, prompts)
    assert {key for key, g in final.items() if g is None} == {"ctx_att3"}


# KgCoOp


def test_kgcoops_teacher_is_clip_on_the_template(clip):
    for template in ("a photo of a {}.", "{} texture."):
        tokens = open_clip.tokenize([template.format(name.replace("_", " ")) for name in NAMES])
        ours = kgcoop_plain.teacher_features(clip, NAMES, template)
        torch.testing.assert_close(ours, clip.encode_text(tokens))


def test_kgcoop_is_coop_where_the_prompts_are_the_teachers(clip, images):
    prompts = {"ctx": clip.embed(torch.tensor(tokenise("a photo of a")))}
    expected = coop_plain.loss(clip, prompts, NAMES, images, LABELS)
    torch.testing.assert_close(kgcoop_plain.loss(clip, prompts, NAMES, images, LABELS), expected)
    other = kgcoop_plain.loss(
        clip, prompts, NAMES, images, LABELS, weight=2.0, template="{} texture."
    )
    text = coop_plain.text_features(clip, prompts, NAMES)
    teacher = kgcoop_plain.teacher_features(clip, NAMES, "{} texture.")
    torch.testing.assert_close(
        other - expected, 2 * (1 - functional.cosine_similarity(text, teacher).mean())
    )
    assert other - expected > 0.01


def test_kgcoops_distance_by_hand():
    text = torch.tensor([[2.0, 0.0], [3.0, 3.0]])
    teacher = torch.tensor([[0.0, 5.0], [1.0, 0.0]])
    assert kgcoop_plain.distance(text, teacher).item() == pytest.approx(1 - (0 + 2**-0.5) / 2)


# ProGrad


def test_prograds_projection_by_hand():
    xe, kl = torch.tensor([[3.0, -2.0]]), torch.tensor([[0.0, 4.0]])
    assert prograd_plain.project(xe, kl).tolist() == [[3.0, 0.0]]
    assert prograd_plain.project(xe, kl, lam=0.5).tolist() == [[3.0, -1.0]]
    assert prograd_plain.project(xe, -kl).tolist() == xe.tolist()
    assert prograd_plain.project(xe, torch.zeros_like(kl)).tolist() == xe.tolist()


def test_prograd_projects_each_tensor_on_its_own():
    """Losses whose gradients agree in one tensor and conflict in the other; together they would
    agree."""
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    xe = 9 * a.sum() + b[0] - b[1]
    kl = a.sum() + 2 * b[1]
    final = prograd_plain.final_gradients(
        xe, kl, {"a": a, "b": b, "unused": torch.ones(1, requires_grad=True)}
    )
    assert (
        final["a"].tolist() == [9, 9] and final["b"].tolist() == [1, 0] and final["unused"] is None
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_prograds_loss_is_kl_but_for_a_constant(clip, prompts, images, temperature):
    xe, kl = prograd_plain.losses(clip, prompts, NAMES, images, LABELS, temperature)
    torch.testing.assert_close(xe, coop_plain.loss(clip, prompts, NAMES, images, LABELS))
    zero_shot = clip.logits(clip.encode_image(images), kgcoop_plain.teacher_features(clip, NAMES))
    ours = coop_plain.logits(clip, prompts, NAMES, images)
    p, q = (x.div(temperature).log_softmax(-1) for x in (zero_shot, ours))
    expected = functional.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2
    entropy = -(p.exp() * p).sum(-1).mean() * temperature**2
    torch.testing.assert_close(kl, expected + entropy)
    used = {"ctx": prompts["ctx"]}
    torch.testing.assert_close(gradients(kl, used)["ctx"], gradients(expected, used)["ctx"])


def test_prograd_has_no_gradient_to_conflict_at_the_teacher(clip, images):
    prompts = {"ctx": clip.embed(torch.tensor(tokenise("a photo of a"))).requires_grad_()}
    _, kl = prograd_plain.losses(clip, prompts, NAMES, images, LABELS)
    assert gradients(kl, prompts)["ctx"].norm() < 1e-10
