"""The towers against open_clip and the plain references, on the same random weights."""

from dataclasses import replace

import pytest
import torch

from clip import load, tokenize
from clip.download import sha256_of
from clip.shared_prefix import Suffixes, encode_prompt_tokens, encode_prompts, prompt_tokens
from clip.weights import MODELS, OPENAI, build_model, convert_weights
from reference.clip_open import build_open_clip
from reference.clip_plain import PlainCLIP
from reference.weights import ARCHS, openai_state_dict, save_torchscript

from .resnets import rn50_state_dict

TEXTS = ["a photo of a dog.", "Aérospatiale SA-330 helicopter, in the sky!", "x"]


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference of two rows, relative to the row's length."""
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


@pytest.mark.parametrize("arch", ["ViT-B/16", "ViT-B/32", "ViT-L/14", "RN50"])
def test_features_are_open_clips(arch, tmp_path, monkeypatch):
    """From a state dict in single precision, and from an archive of OpenAI's in half."""
    # The ViT-L/14's width with fewer of its blocks: this takes seconds as it is.
    for other in ("ViT-B/32", "ViT-L/14"):  # of ViT-B/32 too, which has ViT-B/16's
        monkeypatch.setitem(ARCHS, other, replace(ARCHS[other], vision_layers=3, text_layers=2))
    state_dict = rn50_state_dict() if arch == "RN50" else openai_state_dict(arch)
    tokens, image = (
        tokenize(TEXTS),
        torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)),
    )
    theirs = build_open_clip(state_dict)
    ours = build_model(state_dict)
    with torch.no_grad():
        assert (
            ours.visual.input_resolution == 224
            and ours.visual.output_dim == state_dict["text_projection"].shape[1]
        )
        assert error(ours.encode_image(image), theirs.encode_image(image)) < 1e-5
        assert error(ours.encode_text(tokens), theirs.encode_text(tokens)) < 1e-5
        del ours

        state_dict = as_in_archives(state_dict)
        save_torchscript(state_dict, tmp_path / "archive.pt")
        url = f"{OPENAI}/{sha256_of(tmp_path / 'archive.pt')}/archive.pt"
        monkeypatch.setitem(MODELS, arch, url)
        ours = load(arch, device="cpu", download_root=str(tmp_path))[0]
        (tmp_path / "archive.pt").unlink()  # pytest would keep hundreds of MB
        theirs.load_state_dict({k: w for k, w in state_dict.items() if k in theirs.state_dict()})
        assert ours.dtype == torch.float32
        assert error(ours.encode_image(image), theirs.encode_image(image)) < 1e-5
        assert error(ours.encode_text(tokens), theirs.encode_text(tokens)) < 1e-5


def as_in_archives(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In the types of OpenAI's archives: half, but for norms, embeddings and the temperature."""
    kept = ("ln_", "bn", "downsample.1", "embedding", "logit_scale")
    return {
        key: w if any(name in key for name in kept) or not w.is_floating_point() else w.half()
        for key, w in state_dict.items()
    }


def test_logits_are_temperature_times_cosine(weights, clip64):
    plain, image = PlainCLIP(weights, torch.float64), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    per_image, per_text = clip64(image, tokenize(TEXTS))
    expected = plain.logits(plain.encode_image(image), plain.encode_text(tokenize(TEXTS)))
    torch.testing.assert_close(per_image, expected)
    torch.testing.assert_close(per_text, expected.t())


def test_prefix_and_suffixes_are_the_whole_prompts(clip64, weights):
    """Two prefixes and deep prompts, against every class whole in nn.MultiheadAttention."""
    plain = PlainCLIP(weights, torch.float64)
    generator = torch.Generator().manual_seed(0)
    tokens = tokenize(
        ["a photo of a dog.", "a photo of a very small striped cat.", "a photo of it"]
    )
    embedded = clip64.token_embedding(tokens)
    p, where = 4, slice(2, 4)
    eot = tokens.argmax(-1)
    suffix = torch.cat([row[p : last + 1] for row, last in zip(embedded, eot, strict=True)])
    prefixes = torch.stack(
        [embedded[0, :p], torch.randn(p, 64, generator=generator, dtype=torch.float64)]
    )
    deep = {
        i: (where, torch.randn(1, 1, 2, 64, generator=generator, dtype=torch.float64))
        for i in (1, 2)
    }
    features = encode_prompts(clip64, prefixes, suffix, Suffixes((eot - p + 1).tolist()), deep)
    for prefix, ours in zip(prefixes, features, strict=True):
        whole = torch.cat([prefix.expand(3, -1, -1), embedded[:, p:]], dim=1)
        theirs = plain.text_tower(whole, eot, {i: (2, v[0, 0]) for i, (_, v) in deep.items()})
        torch.testing.assert_close(ours, theirs)


def appearing(*shape: int) -> dict[int, torch.Tensor]:
    """Vectors for the inputs of two blocks of the small CLIP's three."""
    generator = torch.Generator().manual_seed(0)
    return {i: torch.randn(*shape, generator=generator, dtype=torch.float64) for i in (1, 2)}


def test_prompts_that_appear_behind_sos_from_a_block_on(clip64, weights):
    """Two groups of them, against every class whole, the causal mask as long as the sequence."""
    plain, k = PlainCLIP(weights, torch.float64), 3
    tokens = tokenize(["a photo of a dog.", "a photo of a very small striped cat."])
    embedded, eot = clip64.token_embedding(tokens), tokens.argmax(-1)
    rest = [row[5 : last + 1] for row, last in zip(embedded, eot, strict=True)]
    prefix, suffix, suffixes = embedded[:1, :5], torch.cat(rest), Suffixes((eot - 4).tolist())
    vectors = appearing(2, 1, k, 64)
    deep = {1: (slice(1, 1), vectors[1]), 2: (slice(1, 1 + k), vectors[2])}
    with torch.no_grad():
        reached = prompt_tokens(clip64, prefix, suffix, suffixes, block=1)
    ours = encode_prompt_tokens(clip64, reached, 5, suffixes, 1, deep)
    torch.testing.assert_close(ours, encode_prompts(clip64, prefix, suffix, suffixes, deep))
    for group in range(2):
        x = embedded + plain.positional_embedding
        for i, block in enumerate(plain.transformer.resblocks):
            if i in vectors:
                new = vectors[i][group].expand(2, -1, -1)
                x = torch.cat([x[:, :1], new, x[:, 1 if i == 1 else 1 + k :]], dim=1)
            mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=x.dtype).triu(1)
            x = block(x, mask)
        x = plain.ln_final(x)[torch.arange(2), eot + k] @ plain.text_projection
        torch.testing.assert_close(ours[group], x)


def test_prompts_that_appear_beside_the_image_and_are_read(clip64, weights):
    """Right behind the class token in the reference: their place is nothing they are told."""
    plain, k = PlainCLIP(weights, torch.float64).visual, 3
    vectors, image = appearing(1, k, 128), torch.randn(9, 3, 32, 32, dtype=torch.float64)
    reached = clip64.image_tokens(image, block=1)
    ours = clip64.encode_image_tokens(reached, 1, vectors, read_prompts=True)
    x = plain.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([plain.class_embedding.expand(9, 1, -1), x], 1) + plain.positional_embedding
    x = plain.ln_pre(x)
    for i, block in enumerate(plain.transformer.resblocks):
        if i in vectors:
            rest = x[:, 1 if i == 1 else 1 + k :]
            x = torch.cat([x[:, :1], vectors[i].expand(9, -1, -1), rest], dim=1)
        x = block(x, mask=None)
    torch.testing.assert_close(ours, plain.ln_post(x)[:, : 1 + k])
    with torch.no_grad():  # some images at a time
        torch.testing.assert_close(
            ours, clip64.encode_image_tokens(reached, 1, vectors, read_prompts=True)
        )
        plainly = clip64.encode_image_tokens(clip64.image_tokens(image, block=2), 2)
        torch.testing.assert_close(plainly[:, 0] @ plain.proj, clip64.encode_image(image))


def test_a_function_makes_prompts_of_those_before(clip64):
    """What it is given is what the block before made of them, in both towers."""
    image, vectors = torch.randn(2, 3, 32, 32, dtype=torch.float64), appearing(1, 3, 128)
    first, given = {1: vectors[1]}, clip64.encode_image(image, deep=vectors)
    kept = clip64.encode_image(image, deep=first | {2: lambda old: old})
    assert torch.equal(kept, clip64.encode_image(image, deep=first))
    assert not torch.equal(kept, given)

    vectors, where = appearing(1, 1, 3, 64), slice(1, 4)
    prompts = torch.randn(2, 5, 64).double(), torch.randn(8, 64).double(), Suffixes([5, 3])
    first = {1: (slice(1, 1), vectors[1])}
    given = encode_prompts(clip64, *prompts, first | {2: (where, vectors[2])})
    kept = encode_prompts(clip64, *prompts, first | {2: (where, lambda old: old)})
    assert torch.equal(kept, encode_prompts(clip64, *prompts, first))
    assert not torch.equal(kept, given)


def test_a_prompt_too_long_for_the_tower_is_refused(clip64):
    with pytest.raises(ValueError, match="78 tokens; the text tower takes 77"):
        encode_prompts(clip64, torch.zeros(1, 70, 64), torch.zeros(8, 64), Suffixes([8]))


def test_adapters_are_added_after_each_block_from_its_normalised_input(clip64):
    """An adapter that returns its input adds ln_1(block's input) to every block's output."""
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    seen = []

    def adapter(i):
        def adapt(h):
            seen.append(i)
            return h

        return adapt

    x = clip64.visual.conv1(image).flatten(2).transpose(1, 2)
    x = (
        torch.cat([clip64.visual.class_embedding.expand(2, 1, -1), x], 1)
        + clip64.visual.positional_embedding
    )
    x = clip64.visual.ln_pre(x)
    for block in clip64.visual.transformer.resblocks:
        x = block(x) + block.ln_1(x)
    expected = clip64.visual.ln_post(x[:, 0]) @ clip64.visual.proj
    torch.testing.assert_close(
        clip64.encode_image(image, adapt={i: adapter(i) for i in range(3)}), expected
    )
    assert seen == [0, 1, 2]


def test_transformers_take_length_first_as_openais(clip64):
    """Code written for OpenAI's clip runs the text tower itself, (L, N, W)."""
    tokens = tokenize(TEXTS)
    x = clip64.token_embedding(tokens) + clip64.positional_embedding
    x = clip64.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
    x = clip64.ln_final(x)[torch.arange(3), tokens.argmax(dim=-1)] @ clip64.text_projection
    torch.testing.assert_close(x, clip64.encode_text(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_model_computes_in_the_types_of_its_file(tmp_path, dtype):
    state_dict = openai_state_dict("tiny", dtype=dtype)
    save_torchscript(state_dict, tmp_path / "x.pt")
    model = build_model(torch.jit.load(tmp_path / "x.pt").state_dict())
    assert model.dtype == dtype
    assert model.transformer.resblocks[0].ln_1.weight.dtype == torch.float32
    assert not model.training
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(weight.float(), state_dict[key].float(), rtol=0, atol=0)


def test_half_precision_stays_near(weights):
    image, tokens = torch.randn(2, 3, 32, 32), tokenize(TEXTS)
    full, half = build_model(weights), build_model(weights)
    convert_weights(half, torch.bfloat16)
    assert (
        half.visual.conv1.weight.dtype
        == half.text_projection.dtype
        == half.visual.proj.dtype
        == torch.bfloat16
    )
    with torch.no_grad():
        for a, b in (
            (full.encode_image(image), half.encode_image(image)),
            (full.encode_text(tokens), half.encode_text(tokens)),
        ):
            assert b.dtype == torch.bfloat16
            assert error(b.float(), a) < 0.05
