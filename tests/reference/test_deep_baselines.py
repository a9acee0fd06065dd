"""The oracles of PromptSRC, TCP and MMA checked: by MaPLe's, by hand, by torch's and open_clip's.
No project code."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reference import coop_plain, kgcoop_plain, maple_plain, mma_plain, promptsrc_plain, tcp_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import gradients, tokenise
from reference.weights import openai_state_dict

NAMES = [
    "striped_red hexagon",
    "cat",
    "7 crane (bird)",
    "a name of many more words than the others",
]
LABELS = torch.tensor([0, 3, 2])


@pytest.fixture(scope="module")
def clip() -> PlainCLIP:
    return PlainCLIP(openai_state_dict("tiny", dtype=torch.float64))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(
        3, 3, 32, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )


def sentences(clip: PlainCLIP, template: str) -> Tensor:
    """CLIP's features of the classes under a template, by open_clip's tokenizer, not normalised."""
    return clip.encode_text(
        open_clip.tokenize([template.format(name.replace("_", " ")) for name in NAMES])
    )


def assert_all_trained(loss: Tensor, params: dict[str, Tensor]) -> None:
    for key, g in gradients(loss, params).items():
        assert g is not None and g.norm() > 1e-6, key


# PromptSRC


def test_promptsrc_is_maple_with_vectors_of_its_own(clip, images):
    """MaPLe's visual prompts, computed, given to PromptSRC as parameters."""
    maple = maple_plain.random_prompts(clip, n_ctx=3)
    prompts = {
        "prompt_learner.ctx": maple["ctx"],
        "image_encoder.VPT": maple_plain.mapper(maple, maple["ctx"]),
    }
    for n, vectors in maple_plain.deep_text_prompts(maple).items():
        prompts[promptsrc_plain.TEXT_BLOCK.format(n)] = vectors
    for n, vectors in maple_plain.deep_visual_prompts(maple).items():
        prompts[promptsrc_plain.IMAGE_BLOCK.format(n)] = vectors
    expected = maple_plain.maple_forward(clip, maple, NAMES, images)
    torch.testing.assert_close(
        promptsrc_plain.logits(clip, prompts, NAMES, images), expected.logits
    )


def test_promptsrc_without_its_vectors_is_clip(clip, images):
    prompts = {"prompt_learner.ctx": clip.embed(torch.tensor(tokenise("a photo")))}
    prompts["image_encoder.VPT"] = torch.zeros(
        0, clip.visual.class_embedding.shape[0], dtype=torch.float64
    )
    text = promptsrc_plain.text_features(clip, prompts, NAMES, frozen_words="of a")
    torch.testing.assert_close(text, sentences(clip, "a photo of a {}."))
    torch.testing.assert_close(
        promptsrc_plain.image_features(clip, prompts, images), clip.encode_image(images)
    )


def test_promptsrcs_teacher_is_the_mean_of_whole_sentences(clip):
    assert len(promptsrc_plain.TEMPLATES) == 60
    assert promptsrc_plain.TEMPLATES[0]("X") == "a bad photo of a X."
    assert promptsrc_plain.TEMPLATES[-1]("X") == "itap of the X."
    mean = sum(sentences(clip, template("{}")) for template in promptsrc_plain.TEMPLATES)
    torch.testing.assert_close(
        promptsrc_plain.teacher_features(clip, NAMES), functional.normalize(mean, dim=-1)
    )


def test_promptsrcs_loss_is_of_torchs_parts(clip, images):
    prompts = promptsrc_plain.random_prompts(clip)
    text = functional.normalize(promptsrc_plain.text_features(clip, prompts, NAMES), dim=-1)
    image = functional.normalize(promptsrc_plain.image_features(clip, prompts, images), dim=-1)
    frozen = functional.normalize(clip.encode_image(images), dim=-1)
    teacher = promptsrc_plain.teacher_features(clip, NAMES)
    ours, zero_shot = clip.logits(image, text), clip.logits(frozen, teacher)
    log_p, log_q = zero_shot.log_softmax(-1), ours.log_softmax(-1)
    parts = [
        functional.cross_entropy(ours, LABELS),
        7 * functional.l1_loss(text, teacher),
        3 * functional.l1_loss(image, frozen),
        functional.kl_div(log_q, log_p, reduction="sum", log_target=True) / ours.numel(),
    ]
    assert min(parts) > 0.01
    loss = promptsrc_plain.loss(clip, prompts, NAMES, images, LABELS, text_weight=7, image_weight=3)
    torch.testing.assert_close(loss, sum(parts))
    assert_all_trained(loss, prompts)


def test_promptsrcs_vectors_stand_in_their_own_tower(clip, images):
    prompts = promptsrc_plain.random_prompts(clip)
    text = promptsrc_plain.text_features(clip, prompts, NAMES)
    image = promptsrc_plain.image_features(clip, prompts, images)
    of_text = {key for key in prompts if key.startswith(("prompt_learner", "text_encoder"))}
    for features, own in ((text, of_text), (image, prompts.keys() - of_text)):
        assert {
            key for key, g in gradients(features.sum(), prompts).items() if g is not None
        } == own


def test_the_gaussian_average_by_hand():
    side = math.exp(-0.5)
    expected = [side / (1 + 2 * side), 1 / (1 + 2 * side), side / (1 + 2 * side)]
    assert promptsrc_plain.gaussian_weights(3, mean=2, std=1) == pytest.approx(expected)
    far = promptsrc_plain.gaussian_weights(20, mean=15, std=1)  # the published one
    assert (
        sum(far) == pytest.approx(1)
        and far.index(max(far)) == 14
        and far[13] == pytest.approx(0.242, abs=1e-3)
    )
    epochs = [{"p": torch.tensor([1.0])}, {"p": torch.tensor([2.0])}, {"p": torch.tensor([6.0])}]
    by_hand = expected[0] * 1 + expected[1] * 2 + expected[2] * 6
    assert promptsrc_plain.average(epochs, mean=2, std=1)["p"].item() == pytest.approx(by_hand)


# TCP


def test_tcps_meta_net_is_its_layers_in_torch(clip):
    prompts = tcp_plain.random_prompts(clip)
    width, embed_dim = clip.token_embedding.weight.shape[1], clip.text_projection.shape[1]
    net = torch.nn.Sequential()
    net.add_module("linear1", torch.nn.Linear(embed_dim, embed_dim // 4))
    net.add_module("linear2", torch.nn.Linear(embed_dim // 4, 4 * width))
    net = net.double()
    net.load_state_dict(
        {key.removeprefix("meta_net."): p for key, p in prompts.items() if key != "ctx"}
    )
    teachers = functional.normalize(kgcoop_plain.teacher_features(clip, NAMES), dim=-1)
    hidden = net.linear1(teachers)
    expected = net.linear2(hidden / (1 + (-1.702 * hidden).exp())).reshape(len(NAMES), 4, width)
    ours = torch.stack([tcp_plain.class_tokens(prompts, teacher) for teacher in teachers])
    torch.testing.assert_close(ours, expected)
    assert (ours[0] - ours[1]).norm() > 0.1 * ours[0].norm()  # it tells classes apart


def test_tcp_at_the_first_block_is_a_sentence_of_class_tokens(clip):
    """There the tokens stand in place of the word embeddings with their positions."""
    prompts = tcp_plain.random_prompts(clip)
    teachers = functional.normalize(sentences(clip, "a {}."), dim=-1)
    tokens = torch.stack([tcp_plain.class_tokens(prompts, teacher) for teacher in teachers])
    as_words = {
        "ctx": tokens - clip.positional_embedding[1:5]
    }  # (C, 4, W): class-specific contexts
    ours = tcp_plain.text_features(clip, prompts, NAMES, layer=0, template="a {}.")
    torch.testing.assert_close(ours, coop_plain.text_features(clip, as_words, NAMES))


def test_tcp_with_a_constant_meta_net_is_a_deep_prompt(clip):
    prompts = tcp_plain.random_prompts(clip)
    prompts["meta_net.linear2.weight"] = torch.zeros_like(prompts["meta_net.linear2.weight"])
    deep = {"prompt_learner.ctx": prompts["ctx"]}
    deep[promptsrc_plain.TEXT_BLOCK.format(2)] = prompts["meta_net.linear2.bias"].reshape(4, -1)
    expected = promptsrc_plain.text_features(clip, deep, NAMES)
    torch.testing.assert_close(tcp_plain.text_features(clip, prompts, NAMES, layer=2), expected)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("{}, a type of pet.", "a photo of a {}, a type of pet."),
        ("person doing {}.", "a photo of a person doing {}."),
        ("{} texture.", "a photo of a {} texture."),
    ],
)
def test_tcps_words_around_the_name(clip, words, sentence):
    """A block that does not exist: nothing is replaced, and a sentence that CLIP reads is left."""
    prompts = tcp_plain.random_prompts(clip)
    prompts["ctx"] = clip.embed(torch.tensor(tokenise("a photo of a")))
    ours = tcp_plain.text_features(clip, prompts, NAMES, layer=3, words=words)
    torch.testing.assert_close(ours, sentences(clip, sentence))


def test_tcps_loss_is_of_torchs_parts(clip, images):
    prompts = tcp_plain.random_prompts(clip)
    text = tcp_plain.text_features(clip, prompts, NAMES, layer=1)
    cosine = functional.cosine_similarity(text, sentences(clip, "a photo of a {}."))
    expected = functional.cross_entropy(
        clip.logits(clip.encode_image(images), text), LABELS
    ) + 8 * (1 - cosine.mean())
    loss = tcp_plain.loss(clip, prompts, NAMES, images, LABELS, layer=1)
    torch.testing.assert_close(loss, expected)
    assert_all_trained(loss, prompts)


# MMA


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by k."""

    @staticmethod
    def forward(ctx, x: Tensor, k: float) -> Tensor:
        ctx.k = k
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.k, None


@pytest.mark.parametrize("scale", [0.001, 0.3])
def test_mmas_gradients_are_those_of_scaling_layers(clip, images, scale):
    """Times scale where the adapter reads (before or after ln_1, linear backwards, is the same), 1
    / scale behind."""
    params = mma_plain.random_params(clip, first=1)
    plain = {tower: mma_plain.adapter(params, tower, scale) for tower in ("text", "visual")}

    def scaled(tower):
        return lambda i, h: ScaleGradient.apply(
            plain[tower](i, ScaleGradient.apply(h, scale)), 1 / scale
        )

    words = [mma_plain.CTX + " " + name.replace("_", " ") + "." for name in NAMES]
    tokens = open_clip.tokenize(words)
    text = clip.text_tower(clip.embed(tokens), tokens.argmax(-1), adapt=scaled("text"))
    image = clip.vision_tower(images, adapt=scaled("visual"))
    literal = functional.cross_entropy(clip.logits(image, text), LABELS)
    loss = mma_plain.loss(clip, params, NAMES, images, LABELS, scale)
    torch.testing.assert_close(loss, literal)
    ours, expected = mma_plain.gradients(loss, params, scale), gradients(literal, params)
    for key in params:
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-8, atol=1e-12)
    assert_all_trained(loss / scale, params)


def test_mma_without_a_way_up_is_clip(clip, images):
    params = mma_plain.random_params(clip)
    before = mma_plain.logits(clip, params, NAMES, images, scale=0.5)
    for key in params:
        params[key] = torch.zeros_like(params[key]) if ".up." in key else params[key]
    expected = clip.logits(clip.encode_image(images), sentences(clip, "a photo of a {}."))
    torch.testing.assert_close(mma_plain.logits(clip, params, NAMES, images, scale=0.5), expected)
    assert (before - expected).abs().max() > 0.1


def test_mmas_adapter_is_its_layers_in_torch(clip):
    params = mma_plain.random_params(clip, first=2, last=2)
    width = clip.visual.class_embedding.shape[0]
    layers = [torch.nn.Linear(*sizes) for sizes in ((width, 32), (32, 32), (32, width))]
    names = ("visual_adapter.2.down.0", "shared_adapter.2.0", "visual_adapter.2.up")
    down, shared, up = (layer.double() for layer in layers)
    for layer, name in zip((down, shared, up), names, strict=True):
        layer.load_state_dict({"weight": params[f"{name}.weight"], "bias": params[f"{name}.bias"]})
    x = torch.randn(2, 5, width, dtype=torch.float64)
    adapt = mma_plain.adapter(params, "visual", 0.25)
    torch.testing.assert_close(adapt(1, x), 0.25 * up(shared(down(x).relu()).relu()))
    assert not adapt(0, x).any() and not adapt(2, x).any()


def test_mma_reads_ln_1_and_adds_behind_the_mlp(clip, images):
    """By a forward hook on one block of a tower that knows no adapters."""
    params = mma_plain.random_params(clip, first=2, last=2)
    adapt = mma_plain.adapter(params, "visual", 0.5)
    block = clip.visual.transformer.resblocks[1]
    with block.register_forward_hook(
        lambda block, given, out: out + adapt(1, block.ln_1(given[0]))
    ):
        expected = clip.encode_image(images)
    torch.testing.assert_close(clip.vision_tower(images, adapt=adapt), expected)


def test_mmas_middle_layer_is_shared_by_the_towers(clip, images):
    params = mma_plain.random_params(clip)
    text = mma_plain.text_features(clip, params, NAMES)
    image = clip.vision_tower(images, adapt=mma_plain.adapter(params, "visual", 0.001))
    for features, own in ((text, "text"), (image, "visual")):
        used = {
            key.split("_")[0]
            for key, g in gradients(features.sum(), params).items()
            if g is not None
        }
        assert used == {own, "shared"}
