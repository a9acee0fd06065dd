"""The oracles checked: by open_clip, by hand-written numbers, by finite differences."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn

import reference
from reference.clip_open import build_open_clip
from reference.clip_plain import PlainCLIP
from reference.maple_plain import (
    EOT,
    Prompts,
    as_leaves,
    class_prompt,
    class_prompt_upstream_slicing,
    gradients,
    image_features,
    maple_forward,
    mapper,
    placeholder_sentence,
    prompts_from_checkpoint,
    random_prompts,
    text_features,
    tokenise,
)
from reference.optim_plain import lr_at_epoch, sgd_step, train
from reference.p2c_plain import (
    auxiliary_loss,
    mixture_moments,
    mixture_noise,
    p2c_loss,
    schedule_value,
    sigma_at_epoch,
)
from reference.weights import ARCHS, openai_state_dict, save_torchscript

NAMES = ["striped red hexagon", "blue_circle", "vizsla", "7 crane (bird)"]
ATTRIBUTES = ["color", "playfulness"]  # one token, two tokens


def images(arch: str, count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    size = ARCHS[arch].image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7)).to(dtype)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="module")
def tiny_weights() -> dict[str, Tensor]:
    return openai_state_dict("tiny", dtype=torch.float64)


@pytest.fixture(scope="module")
def clip(tiny_weights: dict[str, Tensor]) -> PlainCLIP:
    return PlainCLIP(tiny_weights)


# The oracle shares no code with what it checks


def test_imports_nothing_of_the_project() -> None:
    standard = {
        "__future__",
        "ast",
        "collections",
        "dataclasses",
        "itertools",
        "math",
        "pathlib",
        "typing",
        "warnings",
    }
    allowed = standard | {"open_clip", "pytest", "reference", "torch"}
    for file in (
        *Path(__file__).parent.glob("*.py"),
        *Path(reference.__file__).parent.glob("*.py"),
    ):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file.name
            if isinstance(node, ast.ImportFrom):
                assert node.level == 1 or (
                    node.level == 0 and node.module.split(".")[0] in allowed
                ), file.name


# Weights


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_torchscript_archive(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = openai_state_dict("tiny", seed=3, dtype=dtype)
    assert not torch.equal(
        weights["text_projection"], openai_state_dict("tiny", 4, dtype)["text_projection"]
    )
    save_torchscript(weights, tmp_path / "clip.pt")
    loaded = torch.jit.load(tmp_path / "clip.pt", map_location="cpu").state_dict()
    assert loaded.keys() == weights.keys()
    for key, value in weights.items():
        assert loaded[key].dtype == value.dtype and torch.equal(loaded[key], value), key


def test_no_weight_is_trivial(tiny_weights: dict[str, Tensor]) -> None:
    for key, value in tiny_weights.items():
        if value.ndim > 0:
            assert value.std() > 0, key
        elif value.is_floating_point():
            assert value.exp() not in (1, 100), key


# CLIP


@pytest.mark.parametrize("arch", ["tiny", "ViT-B/32", "ViT-B/16"])
def test_plain_clip_equals_open_clip(
    arch: str, vit_b16: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_blocks = replace(ARCHS["ViT-B/32"], vision_layers=3, text_layers=2)
    monkeypatch.setitem(ARCHS, "ViT-B/32", few_blocks)
    weights = vit_b16 if arch == "ViT-B/16" else openai_state_dict(arch)
    tokens = open_clip.tokenize(["a photo of a striped red hexagon.", "a vizsla"])
    with torch.no_grad():
        ours, theirs = PlainCLIP(weights), build_open_clip(weights)
        text, image = ours.encode_text(tokens), ours.encode_image(images(arch))
        assert relative_error(text, theirs.encode_text(tokens)) < 1e-5
        assert relative_error(image, theirs.encode_image(images(arch))) < 1e-5
        if arch == "tiny":
            logits, _ = theirs.get_logits(images(arch), tokens)
            assert relative_error(ours.logits(image, text), logits) < 1e-5


def test_features_tell_inputs_apart(clip: PlainCLIP) -> None:
    """Nearly equal features would hide mistakes in a comparison."""
    text = nn.functional.normalize(
        clip.encode_text(open_clip.tokenize([f"a photo of a {n}." for n in NAMES]))
    )
    image = nn.functional.normalize(clip.encode_image(images("tiny", 4, torch.float64)))
    for features in (text, image):
        assert (features @ features.T - torch.eye(4, dtype=torch.float64)).max() < 0.97


# Text prompts


def prompts_of_words(clip: PlainCLIP, **words: str) -> Prompts:
    """Prompt parameters that are embeddings of real words, so that plain CLIP can say the same
    sentence."""
    prompts = random_prompts(clip, depth=1)
    for key, text in words.items():
        prompts[key] = clip.embed(torch.tensor(tokenise(text)))
    return prompts


def test_maple_with_word_prompts_is_plain_clip(
    clip: PlainCLIP, tiny_weights: dict[str, Tensor]
) -> None:
    sentences = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    theirs = build_open_clip(tiny_weights, torch.float64).encode_text(open_clip.tokenize(sentences))
    ours = text_features(clip, prompts_of_words(clip, ctx="a photo"), NAMES, frozen_words="of a")
    assert relative_error(ours, theirs) < 1e-12


def test_attributes_with_word_prompts_are_plain_clip(
    clip: PlainCLIP, tiny_weights: dict[str, Tensor]
) -> None:
    prompts = prompts_of_words(clip, ctx_att1="big old", ctx_att2="new bad odd", ctx="a photo")
    sentences = [
        f"big old color new bad odd playfulness a photo {n.replace('_', ' ')}." for n in NAMES
    ]
    theirs = build_open_clip(tiny_weights, torch.float64).encode_text(open_clip.tokenize(sentences))
    assert relative_error(text_features(clip, prompts, NAMES, ATTRIBUTES), theirs) < 1e-12


def test_pieces_tokenise_like_the_sentence(clip: PlainCLIP) -> None:
    prompts = random_prompts(clip)
    name = "striped_red_hexagon"
    assert (
        placeholder_sentence(prompts, name, ["color", "shape"])
        == "X X color X X shape X X striped red hexagon."
    )
    spaced = "X X color X X shape X X striped red hexagon ."
    assert tokenise(spaced) == tokenise(spaced.replace(" .", "."))
    # With every learnable vector set to the embedding of "X", the prompt must be the sentence.
    x = clip.embed(torch.tensor(tokenise("X X")))
    spoken = {**prompts, "ctx": x, "ctx_att1": x, "ctx_att2": x}
    for classname in [*NAMES, name, *open_clip.IMAGENET_CLASSNAMES]:
        for attributes, frozen in ((["color", "shape"], ""), (ATTRIBUTES, ""), ([], "of a")):
            built = class_prompt(clip, spoken, classname, attributes, frozen)
            ids = open_clip.tokenize(placeholder_sentence(prompts, classname, attributes, frozen))[
                0
            ]
            assert torch.equal(built.embeddings, clip.embed(ids)), classname
            assert built.eot == ids.tolist().index(EOT)


def test_layout_of_a_prompt(clip: PlainCLIP) -> None:
    prompts = random_prompts(clip, n_ctx=3)
    built = class_prompt(clip, prompts, "blue_circle", ["color", "shape"])
    sos_att1_color_att2_shape = 1 + 2 + 1 + 2 + 1
    assert built.ctx_start == sos_att1_color_att2_shape
    assert torch.equal(built.embeddings[1:3], prompts["ctx_att1"])
    assert torch.equal(built.embeddings[4:6], prompts["ctx_att2"])
    assert torch.equal(built.embeddings[7:10], prompts["ctx"])
    assert built.eot == 7 + 3 + len(["blue", "circle", "."])
    assert built.embeddings.shape == (77, 64)


def test_upstream_slicing(clip: PlainCLIP) -> None:
    """One-token words: the same prompt. OxfordPets: att1 "play" att2 "x" ctx "x" name ."""
    prompts = random_prompts(clip)
    same, eot, start = class_prompt_upstream_slicing(clip, prompts, "vizsla", ["color", "shape"])
    right = class_prompt(clip, prompts, "vizsla", ["color", "shape"])
    assert torch.equal(same, right.embeddings) and (eot, start) == (right.eot, right.ctx_start)

    x = clip.embed(torch.tensor(tokenise("x")))
    play = clip.embed(torch.tensor(tokenise("playfulness")[:1]))
    name = clip.embed(torch.tensor([*tokenise("vizsla."), EOT]))
    built = class_prompt_upstream_slicing(clip, prompts, "vizsla", ["playfulness", "energy"])
    said = torch.cat([prompts["ctx_att1"], play, prompts["ctx_att2"], x, prompts["ctx"], x, name])
    assert torch.equal(built.embeddings[1 : 1 + len(said)], said)
    assert built.eot == len(said)
    assert built.ctx_start == 1 + 2 + 1 + 2 + 1


def test_too_long_a_name_is_an_error(clip: PlainCLIP) -> None:
    for build in (class_prompt, class_prompt_upstream_slicing):
        with pytest.raises(ValueError, match="77"):
            build(clip, random_prompts(clip), "very " * 80)


# Deep and visual prompts, once more by hooks on open_clip


def replace_tokens(start: int | None, prompts: Tensor) -> Callable:
    """Pre-hook of an open_clip block: put prompts at start ..., or at the end (start None)."""

    def hook(_: nn.Module, args: tuple) -> tuple:
        x = args[0].clone()
        begin = x.shape[1] - len(prompts) if start is None else start
        x[:, begin : begin + len(prompts)] = prompts
        return (x, *args[1:])

    return hook


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("hidden_scale", [None, 2])
def test_maple_equals_open_clip_with_hooks(
    clip: PlainCLIP, tiny_weights: dict[str, Tensor], depth: int, hidden_scale: int | None
) -> None:
    prompts = random_prompts(clip, depth=depth, hidden_scale=hidden_scale)
    pictures, labels = images("tiny", dtype=torch.float64), torch.tensor([1, 3])
    ours = maple_forward(clip, prompts, NAMES, pictures, labels, ["color", "shape"])

    model = build_open_clip(tiny_weights, torch.float64)
    sentences = [placeholder_sentence(prompts, name, ["color", "shape"]) for name in NAMES]

    def write_prompts(_: nn.Module, __: tuple, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        embedded[:, 1:3], embedded[:, 4:6] = prompts["ctx_att1"], prompts["ctx_att2"]
        embedded[:, 7:9] = prompts["ctx"]
        return embedded

    if hidden_scale is None:
        f = nn.functional.linear(prompts["ctx"], prompts["proj.weight"], prompts["proj.bias"])
    else:
        hidden = nn.functional.linear(
            prompts["ctx"], prompts["proj.fc1.weight"], prompts["proj.fc1.bias"]
        )
        hidden = nn.functional.gelu(hidden)
        f = nn.functional.linear(hidden, prompts["proj.fc2.weight"], prompts["proj.fc2.bias"])

    model.token_embedding.register_forward_hook(write_prompts)
    model.visual.ln_pre.register_forward_pre_hook(
        lambda _, args: (torch.cat([args[0], f[None].expand(len(pictures), -1, -1)], dim=1),)
    )
    for n in range(depth - 1):
        text = prompts[f"compound_prompts_text.{n}"]
        w, b = (prompts[f"compound_prompt_projections.{n}.{part}"] for part in ("weight", "bias"))
        model.transformer.resblocks[n + 1].register_forward_pre_hook(replace_tokens(7, text))
        model.visual.transformer.resblocks[n + 1].register_forward_pre_hook(
            replace_tokens(None, nn.functional.linear(text, w, b))
        )
    logits, _ = model.get_logits(pictures, open_clip.tokenize(sentences))
    assert relative_error(ours.logits, logits) < 1e-11

    theirs = gradients(nn.functional.cross_entropy(logits, labels), prompts)
    for name, grad in gradients(ours.loss, prompts).items():
        if name == "ctx_att3":
            assert grad is None and theirs[name] is None
        else:
            assert grad.norm() > 1e-6 and relative_error(grad, theirs[name]) < 1e-9, name


def test_other_classes_do_not_matter(clip: PlainCLIP) -> None:
    prompts = random_prompts(clip)
    all_names = text_features(clip, prompts, NAMES, ATTRIBUTES)
    alone = text_features(clip, prompts, NAMES[2:3], ATTRIBUTES)
    assert relative_error(alone, all_names[2:3]) < 1e-12


# P2C


def given_noise(prompts: Prompts, scale: float = 0.015) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(11)
    names = ("ctx", "ctx_att1", "ctx_att2")
    return {
        n: torch.randn(prompts[n].shape, generator=rng, dtype=prompts[n].dtype) * scale
        for n in names
    }


def test_p2c_loss_by_finite_differences(clip: PlainCLIP) -> None:
    """Every gradient, the stop-gradient target held at its value."""
    prompts = random_prompts(clip, hidden_scale=2)
    noise = given_noise(prompts)
    eta = torch.randn(2, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    target = mapper(prompts, prompts["ctx"]).detach()
    pictures, labels = images("tiny", dtype=torch.float64), torch.tensor([0, 2])

    def whole_loss(p: Prompts) -> float:
        cls = p2c_loss(clip, p, NAMES, pictures, labels, ATTRIBUTES, noise).cls
        aux = ((mapper(p, p["ctx"] + eta) - target) ** 2).mean()
        return (cls + 0.3 * aux).item()

    loss = p2c_loss(clip, prompts, NAMES, pictures, labels, ATTRIBUTES, noise, eta, lam=0.3)
    assert loss.loss.item() == pytest.approx(whole_loss(prompts), abs=1e-12)
    for name, grad in gradients(loss.loss, prompts).items():
        if grad is None:
            assert name == "ctx_att3"
            continue
        direction = torch.randn(
            grad.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        direction /= direction.norm()
        step = 1e-5 * direction
        with torch.no_grad():
            up = whole_loss({**prompts, name: prompts[name] + step})
            down = whole_loss({**prompts, name: prompts[name] - step})
        slope = (grad * direction).sum().item()
        assert (up - down) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-6), name


def test_p2c_without_noise_is_maple(clip: PlainCLIP) -> None:
    prompts = random_prompts(clip, hidden_scale=2)
    pictures, labels = images("tiny", dtype=torch.float64), torch.tensor([0, 2])
    maple = maple_forward(clip, prompts, NAMES, pictures, labels, ATTRIBUTES)
    quiet = p2c_loss(clip, prompts, NAMES, pictures, labels, ATTRIBUTES, eta=torch.zeros(2, 64))
    assert quiet.loss == maple.loss and quiet.aux == 0
    assert all(g is None or not g.any() for g in gradients(quiet.aux, prompts).values())


def test_noise_reaches_text_only(clip: PlainCLIP) -> None:
    prompts = random_prompts(clip, hidden_scale=2)
    pictures, labels = images("tiny", dtype=torch.float64), torch.tensor([0, 2])
    clean = maple_forward(clip, prompts, NAMES, pictures, labels, ATTRIBUTES)
    for name, epsilon in given_noise(prompts).items():
        noisy = p2c_loss(clip, prompts, NAMES, pictures, labels, ATTRIBUTES, {name: epsilon})
        assert torch.equal(noisy.image_features, clean.image_features)
        moved = text_features(clip, {**prompts, name: prompts[name] + epsilon}, NAMES, ATTRIBUTES)
        assert torch.equal(noisy.text_features, moved)
        assert relative_error(noisy.text_features, clean.text_features) > 1e-4


def test_auxiliary_loss_of_a_linear_mapper(clip: PlainCLIP) -> None:
    """F linear: F(ctx + eta) - F(ctx) = W eta, so the value has a closed form, the same for every
    ctx."""
    prompts = random_prompts(clip)
    eta = torch.full((2, 64), 0.1, dtype=torch.float64)
    expected = ((eta @ prompts["proj.weight"].T) ** 2).mean()
    aux = auxiliary_loss(prompts, eta)
    assert aux.item() == pytest.approx(expected.item())
    # Were the target not stopped, bias and ctx would cancel and their gradients be zero.
    residual = eta @ prompts["proj.weight"].T  # (2, Wv)
    grads = gradients(aux, prompts)
    assert torch.allclose(grads["proj.bias"], 2 * residual.sum(0) / residual.numel())
    assert torch.allclose(grads["ctx"], 2 * residual @ prompts["proj.weight"] / residual.numel())
    assert torch.allclose(
        grads["proj.weight"], 2 * residual.T @ (prompts["ctx"] + eta) / residual.numel()
    )
    # And so it is where it is not stopped.
    free = gradients(auxiliary_loss(prompts, eta, stop_gradient=False), prompts)
    assert max(free["proj.bias"].abs().max(), free["ctx"].abs().max()) < 1e-12
    assert torch.allclose(free["proj.weight"], 2 * residual.T @ eta / residual.numel())


def test_auxiliary_loss_of_all_prompts(clip: PlainCLIP) -> None:
    """F applies to each vector by itself: the mean over all rows is that of the parts, weighed by
    their lengths."""
    prompts = random_prompts(clip, hidden_scale=2)
    names = ("ctx", "ctx_att1", "ctx_att2")
    lengths = [len(prompts[name]) for name in names]
    eta = torch.randn(
        sum(lengths), 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    parts = [
        auxiliary_loss(prompts, e, (n,)) for n, e in zip(names, eta.split(lengths), strict=True)
    ]
    weighed = sum(n * part for n, part in zip(lengths, parts, strict=True)) / sum(lengths)
    assert auxiliary_loss(prompts, eta, names).item() == pytest.approx(weighed.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.8, 0.6, 0.4, 0.2, 0]),
        ("cosine", [1, 0.9045, 0.6545, 0.3455, 0.0955, 0]),
        ("sigmoid", [1, 0.959, 0.734, 0.266, 0.041, 0]),
        ("sigmoid_rising", [0, 0.041, 0.266, 0.734, 0.959, 1]),
    ],
)
def test_schedules(name: str, values: list[float]) -> None:
    for p, value in zip([0, 0.2, 0.4, 0.6, 0.8, 1], values, strict=True):
        assert schedule_value(name, p) == pytest.approx(value, abs=5e-4)
    if name != "constant":
        assert schedule_value(name, 0.5) == pytest.approx(0.5)


def test_sigma_and_warm_up() -> None:
    assert [sigma_at_epoch("linear", t, 5, 0.015) for t in range(5)] == pytest.approx(
        [0.015, 0.012, 0.009, 0.006, 0.003]
    )
    assert [sigma_at_epoch("linear", t, 4, 1.0, 2) for t in range(4)] == [1, 1, 1, 0.5]
    assert [sigma_at_epoch("sigmoid_rising", t, 4, 1.0, 2) for t in range(4)] == pytest.approx(
        [1, 1, 0, 0.5]
    )
    with pytest.raises(ValueError, match="warm-up"):
        sigma_at_epoch("linear", 0, 2, 1.0, warmup_epochs=2)


def test_mixture() -> None:
    assert mixture_moments([-1, 0, 1], [0.5, 0.5, 0.5]) == pytest.approx((0, 0.25 + 2 / 3))
    assert mixture_moments([0, 4], [1, 2], [3, 1]) == pytest.approx((1, 0.75 * 1 + 0.25 * 20 - 1))
    rng = torch.Generator().manual_seed(0)
    component = (torch.rand(200_000, generator=rng) < 0.25).long()  # weights 3 : 1
    normal = torch.randn(200_000, generator=rng)
    raw = mixture_noise(component, normal, [0, 4], [1, 2], [3, 1], standardise=False)
    assert (raw.mean().item(), raw.var().item()) == pytest.approx((1, 4.75), abs=0.05)
    unit = mixture_noise(component, normal, [0, 4], [1, 2], [3, 1])
    assert (unit.mean().item(), unit.var().item()) == pytest.approx((0, 1), abs=0.02)


# Optimiser


def test_learning_rates() -> None:
    rates = [lr_at_epoch(e, 0.0035, 5) for e in range(5)]
    assert rates == pytest.approx([1e-5, 0.0035, 0.003166, 0.002291, 0.001209], abs=1e-6)
    assert [lr_at_epoch(e, 1.0, 2, warmup_epochs=0) for e in range(2)] == pytest.approx([1, 0.5])


def test_sgd_by_hand() -> None:
    params, momenta = sgd_step(
        {"w": torch.tensor(2.0)}, {"w": torch.tensor(1.0)}, {}, lr=0.1, weight_decay=0.5
    )
    assert params["w"].item() == pytest.approx(2 - 0.1 * 2)
    params, momenta = sgd_step(params, {"w": torch.tensor(1.0)}, momenta, lr=0.1, weight_decay=0.5)
    assert momenta["w"].item() == pytest.approx(0.9 * 2 + 1.9)
    assert params["w"].item() == pytest.approx(1.8 - 0.1 * 3.7)


def test_training_equals_torch_sgd(clip: PlainCLIP) -> None:
    start = random_prompts(clip, hidden_scale=2)
    pictures, labels = images("tiny", dtype=torch.float64), torch.tensor([0, 2])
    rates = [1e-5, 0.0035, 0.003166]

    def loss_of(p: Prompts) -> Tensor:
        return p2c_loss(
            clip, p, NAMES, pictures, labels, ATTRIBUTES, given_noise(p), torch.ones(2, 64)
        ).loss

    ours, losses = train(start, [(lr, loss_of) for lr in rates])
    theirs = as_leaves(start)
    optimizer = torch.optim.SGD(theirs.values(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    for lr, expected in zip(rates, losses, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = loss_of(theirs)
        loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected, rel=1e-12)
    for name in start:
        assert relative_error(ours[name], theirs[name]) < 1e-12, name
        assert torch.equal(ours[name], start[name]) == (name == "ctx_att3"), name


# Checkpoints


def test_prompts_from_checkpoint(clip: PlainCLIP) -> None:
    prompts = random_prompts(clip, hidden_scale=2)
    saved: dict[str, Tensor] = {f"prompt_learner.{key}": value for key, value in prompts.items()}
    saved |= {"prompt_learner.token_prefix": torch.zeros(3), "image_encoder.proj": torch.zeros(3)}
    for state in (saved, {**prompts, "token_suffix": torch.zeros(3)}):
        again = prompts_from_checkpoint(state)
        assert again.keys() == prompts.keys()
        assert all(torch.equal(again[key], prompts[key]) for key in prompts)


def test_vision_without_prompts_is_plain_clip(clip: PlainCLIP) -> None:
    """N_CTX 0: nothing appended. And with prompts the feature moves: they are attended to."""
    pictures = images("tiny", dtype=torch.float64)
    plain = clip.encode_image(pictures)
    nothing = torch.zeros(0, clip.visual.class_embedding.shape[0], dtype=torch.float64)
    assert relative_error(clip.vision_tower(pictures, nothing), plain) < 1e-12
    assert relative_error(image_features(clip, random_prompts(clip), pictures), plain) > 1e-3


def test_gelu_is_the_exact_one(clip: PlainCLIP) -> None:
    prompts = random_prompts(clip, hidden_scale=1)
    for layer in ("fc1", "fc2"):
        weight = prompts[f"proj.{layer}.weight"]
        prompts[f"proj.{layer}.weight"] = torch.eye(*weight.shape, dtype=torch.float64)
        prompts[f"proj.{layer}.bias"] = torch.zeros(len(weight), dtype=torch.float64)
    x = torch.full((1, 64), 1.5, dtype=torch.float64)
    normal_cdf = 0.5 * math.erfc(-1.5 / math.sqrt(2))
    assert mapper(prompts, x)[0, 0].item() == pytest.approx(1.5 * normal_cdf)
