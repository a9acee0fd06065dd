"""CLIPs that transformers writes are what transformers computes. Skipped where it is missing."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import clip
from clip.huggingface import activation_of
from clip.model import CLIP
from clip.shared_prefix import Suffixes, encode_prompts
from clip.weights import SMALL, read_state_dict
from dassl.utils.errors import Failure
from tests.clip.hf_names import under_their_names

transformers = pytest.importorskip("transformers", reason="transformers, the oracle, is missing")

TEXTS = ["a photo of a dog.", "cat", "a much longer text, about 3 red circles on a blue field"]


def their_model(weights: dict[str, Tensor], activation: str = "quick_gelu", **text: object):
    """transformers' CLIPModel of these weights of OpenAI's names, in float32."""
    theirs = {key: tensor.float() for key, tensor in under_their_names(weights).items()}
    conv = weights["visual.conv1.weight"]
    positions, words = weights["visual.positional_embedding"], weights["positional_embedding"]

    def tower(name: str, width: int, **more: object) -> dict:
        layers = {key.split(".")[3] for key in theirs if key.startswith(f"{name}.encoder.layers.")}
        sizes = {"hidden_size": width, "intermediate_size": 4 * width}
        heads = {"num_hidden_layers": len(layers), "num_attention_heads": width // 64}
        return sizes | heads | {"hidden_act": activation} | more

    config = transformers.CLIPConfig(
        text_config=tower("text_model", words.shape[1], **text),
        vision_config=tower(
            "vision_model",
            len(conv),
            patch_size=conv.shape[-1],
            image_size=conv.shape[-1] * round((len(positions) - 1) ** 0.5),
        ),
        projection_dim=weights["text_projection"].shape[1],
    )
    with torch.device("meta"):
        model = transformers.CLIPModel(config)
    for tower, tokens in ((model.text_model, 77), (model.vision_model, len(positions))):
        tower.embeddings.position_ids = torch.arange(tokens)[None]  # a buffer that no file has
    model.load_state_dict(theirs, assign=True)
    return model.eval()


def save(model: torch.nn.Module, folder: Path, kind: str) -> None:
    """As transformers writes it; `bin` as its versions below 5 do."""
    model.save_pretrained(folder)
    if kind == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")


def features_of(model: torch.nn.Module, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """transformers' or ours, of length one: (B, D) and (N, D)."""
    if isinstance(model, CLIP):
        features = model.encode_image(image), model.encode_text(text)
    else:
        output = model(input_ids=text, pixel_values=image)
        features = output.image_embeds, output.text_embeds
    return tuple(normalize(f, dim=-1) for f in features)


def assert_same(ours: CLIP, theirs: torch.nn.Module, images: int = 2) -> None:
    size = ours.visual.input_resolution
    image, text = torch.randn(images, 3, size, size), clip.tokenize(TEXTS)
    with torch.no_grad():
        pairs = zip(features_of(ours, image, text), features_of(theirs, image, text), strict=True)
        for mine, exact in pairs:
            torch.testing.assert_close(mine, exact, atol=1e-5, rtol=0)
            assert (exact[0] - exact[1:]).abs().max() > 1e-2  # features that differ
    assert ours.logit_scale == theirs.logit_scale


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_small_clip(kind, activation, tmp_path):
    theirs = their_model(read_state_dict(SMALL), activation)
    save(theirs, tmp_path, kind)
    assert_same(clip.load(str(tmp_path), "cpu")[0], theirs)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_random_vit_b16(kind, vit_b16, tmp_path):
    theirs = their_model(vit_b16)
    save(theirs, tmp_path, kind)
    [file] = tmp_path.glob("*model*")
    assert_same(clip.load(str(file), "cpu")[0], theirs)
    file.unlink()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [2, 49407])
def test_the_text_ends_where_transformers_ends_it(eos, activation, weights, tmp_path):
    """Old config.json have an eos_token_id of 2, with which the largest id is meant."""
    theirs = their_model(weights, activation, eos_token_id=eos)
    save(theirs, tmp_path, "safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["eos_token_id"] == eos
    assert_same(clip.load(str(tmp_path), "cpu")[0], theirs)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_gradient_of_a_prompt_and_of_an_image(activation, weights, tmp_path):
    """Theirs is that of the words' embeddings, ours of vectors in their place."""
    theirs = their_model(weights, activation).requires_grad_(False)
    save(theirs, tmp_path, "safetensors")
    ours = clip.load(str(tmp_path), "cpu")[0].requires_grad_(False)
    image = torch.randn(2, 3, 32, 32)
    text = clip.tokenize("one two three four five")  # seven tokens, each once
    mine, exact = image.clone().requires_grad_(), image.clone().requires_grad_()
    embedding = theirs.text_model.embeddings.token_embedding.weight.requires_grad_()
    there = theirs.get_text_features(text).pooler_output
    seen = theirs.get_image_features(exact).pooler_output
    (there * there.detach().roll(1)).sum().backward()
    (seen * seen.detach().roll(1)).sum().backward()

    tokens = ours.token_embedding(text[0, :7])
    prompt = tokens[None, :5].clone().requires_grad_()
    here = encode_prompts(ours, prompt, tokens[5:], Suffixes([2]))[0]
    saw = ours.encode_image(mine)
    (here * here.detach().roll(1)).sum().backward()
    (saw * saw.detach().roll(1)).sum().backward()
    for a, b in (
        (here, there),
        (saw, seen),
        (prompt.grad[0], embedding.grad[text[0, :5]]),
        (mine.grad, exact.grad),
    ):
        assert (a - b).norm() < 1e-5 * b.norm()


def test_other_heads_are_refused(weights, tmp_path):
    """What the weights do not show: with a head of 128 channels the features are others."""
    model = their_model(weights)
    model.config.vision_config.num_attention_heads = 1
    save(model, tmp_path, "safetensors")
    with pytest.raises(Failure, match="vision_config has 128 channels in 1 heads"):
        clip.load(str(tmp_path), "cpu")


SIZES = {"hidden_size": 64, "intermediate_size": 64}
SIZES |= {"num_hidden_layers": 1, "num_attention_heads": 1}
OTHERS = {
    "CLIPVisionModel": ("CLIPVisionConfig", SIZES, "text tower; give|image tower; give"),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", SIZES, "a text tower; give"),
    "CLIPTextModel": ("CLIPTextConfig", SIZES, "image tower; give"),
    "CLIPTextModelWithProjection": ("CLIPTextConfig", SIZES, "an image tower; give"),
    "SiglipModel": ("SiglipConfig", {"text_config": SIZES, "vision_config": SIZES}, "is a SigLIP"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_their_other_models_are_one_line(name, tmp_path):
    config, sizes, line = OTHERS[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes))
    model.save_pretrained(tmp_path)
    with pytest.raises(Failure, match=line) as caught:
        clip.load(str(tmp_path), "cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(Failure, match=f"model_type is {model.config.model_type}, and only clip"):
        activation_of(tmp_path / "model.safetensors")
