"""Files of Hugging Face's transformers: translated, or one line. transformers is not needed."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import clip
from clip.huggingface import activation_of, is_transformers, to_openai
from clip.weights import MODELS, SMALL, build_model, find_weights, read_state_dict
from dassl.utils.errors import Failure, UsageError
from tests.clip.hf_names import SIZES, under_their_names


def line_of(kind: type[Failure], call, *args, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def ours(weights):
    return {key: tensor for key, tensor in weights.items() if key not in SIZES}


def position_ids(weights):
    """What files of before transformers 4.31 have beside the weights."""
    ids = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    return ids | weights


FORMATS = {
    "model.safetensors": save_file,
    "pytorch_model.bin": torch.save,
    "old.bin": lambda w, path: torch.save(position_ids(w), path),
    "parallel.pt": lambda w, path: torch.save(
        {"state_dict": {f"module.{key}": tensor for key, tensor in w.items()}}, path
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_their_names_become_openais(name, ours, tmp_path):
    FORMATS[name](under_their_names(ours), tmp_path / name)
    read = read_state_dict(tmp_path / name)
    assert read.keys() == ours.keys()
    assert all(torch.equal(read[key], ours[key]) for key in ours)
    assert all(tensor.is_contiguous() for tensor in read.values())


def test_names_as_transformers_writes_them(ours):
    """The keys of a CLIPModel with one block in each tower, as transformers 5.24 prints them."""
    block = [
        f"encoder.layers.0.{part}.{kind}"
        for part in (
            "self_attn.k_proj self_attn.v_proj self_attn.q_proj self_attn.out_proj layer_norm1 "
            "mlp.fc1 mlp.fc2 layer_norm2"
        ).split()
        for kind in ("weight", "bias")
    ]
    text = "embeddings.token_embedding.weight embeddings.position_embedding.weight"
    text = [*text.split(), "final_layer_norm.weight", "final_layer_norm.bias", *block]
    vision = (
        "embeddings.class_embedding embeddings.patch_embedding.weight "
        "embeddings.position_embedding.weight pre_layrnorm.weight pre_layrnorm.bias "
        "post_layernorm.weight post_layernorm.bias"
    )
    keys = {f"text_model.{key}" for key in text}
    keys |= {f"vision_model.{key}" for key in [*vision.split(), *block]}
    keys |= {"logit_scale", "visual_projection.weight", "text_projection.weight"}
    one = {key: tensor for key, tensor in ours.items() if not re.search(r"resblocks\.[12]", key)}
    assert under_their_names(one).keys() == keys
    assert is_transformers(keys) and not is_transformers(ours)


def test_a_file_in_half_precision_stays_so(ours, tmp_path):
    half = {key: tensor.half() for key, tensor in under_their_names(ours).items()}
    save_file(half, tmp_path / "model.safetensors")
    read = read_state_dict(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in read.values()} == {torch.float16}
    assert build_model(read).dtype == torch.float16
    assert clip.load(str(tmp_path), "cpu")[0].dtype == torch.float32


def without(word):
    return lambda w: {key: tensor for key, tensor in w.items() if word not in key}


SIGLIP = {"logit_bias": torch.zeros(1), "vision_model.head.probe": torch.zeros(1, 1, 128)}
BAD = {
    "one tensor is missing": (
        without("layers.1.self_attn.k_proj.bias"),
        "is no whole CLIPModel of transformers "
        "(there is no vision_model.encoder.layers.1.self_attn.k_proj.bias)",
    ),
    "a block is missing": (
        without("text_model.encoder.layers.1"),
        "(there is no text_model.encoder.layers.1.self_attn.q_proj.weight)",
    ),
    "no temperature": (without("logit_scale"), "(there is no logit_scale)"),
    "unknown": (
        lambda w: w | {"text_model.adapter.weight": torch.zeros(2)},
        "is no CLIPModel of transformers (which has no text_model.adapter.weight)",
    ),
    "images alone": (
        without("text_"),
        "has no text_model.… of a text tower; give the file of a whole",
    ),
    "texts alone": (without("vis"), "has no vision_model.… of an image tower; give the file of a"),
    "images alone, CLIPVisionModel": (
        lambda w: {
            key.removeprefix("vision_model."): tensor
            for key, tensor in w.items()
            if key.startswith("vision_model.")
        },
        "has no vision_model.… of an image tower; give the file of a whole CLIPModel",
    ),
    "SigLIP": (
        lambda w: without("class_embedding")(w) | SIGLIP,
        "is a SigLIP (there is a logit_bias), which cannot be computed here",
    ),
    "a word": (lambda w: w | {"logit_scale": "word"}, "logit_scale is no tensor of real numbers"),
    "odd shapes": (
        lambda w: w | {"vision_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(2)},
        "has tensors of odd shapes",
    ),
    "few words": (
        lambda w: w | {"text_model.embeddings.token_embedding.weight": torch.zeros(9, 64)},
        "token_embedding.weight has fewer rows than the 49408",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_clip_is_one_line(name, ours, tmp_path):
    damage, what = BAD[name]
    file = tmp_path / "pytorch_model.bin"
    torch.save(damage(under_their_names(ours)), file)
    line = line_of(Failure, read_state_dict, file)
    assert line.startswith(f"{file}: ") and what in line


def test_whole_numbers_and_other_sizes_are_one_line(ours):
    whole = under_their_names(ours)
    key = "vision_model.embeddings.patch_embedding.weight"
    line = line_of(Failure, build_model, to_openai(whole | {key: whole[key].int()}))
    assert line.endswith("visual.conv1.weight has type torch.int32")
    key = "text_model.encoder.layers.0.mlp.fc1.bias"
    assert "c_fc.bias" in line_of(Failure, build_model, to_openai(whole | {key: torch.ones(9)}))


def test_a_folder_has_the_file_that_transformers_takes(ours, tmp_path, monkeypatch):
    (tmp_path / "flax_model.msgpack").touch()
    line = line_of(UsageError, find_weights, str(tmp_path))
    assert line.startswith(f"no CLIP weights at {tmp_path} (a folder); give a file")
    assert line.endswith("a folder with model.safetensors or pytorch_model.bin")
    torch.save(under_their_names(ours), tmp_path / "pytorch_model.bin")
    assert find_weights("ViT-B/16", str(tmp_path)) == tmp_path / "pytorch_model.bin"
    save_file(under_their_names(ours), tmp_path / "model.safetensors")
    monkeypatch.setenv("CLIP_WEIGHTS", str(tmp_path))
    assert find_weights("ViT-B/16") == tmp_path / "model.safetensors"
    image = torch.randn(2, 3, 32, 32)
    expected = build_model(ours).encode_image(image)
    assert torch.equal(clip.load("ViT-B/16", "cpu")[0].encode_image(image), expected)
    assert torch.equal(clip.load(str(tmp_path), "cpu")[0].encode_image(image), expected)


@pytest.mark.parametrize(
    "name", ["model-00001-of-00002.safetensors", "pytorch_model.bin.index.json"]
)
def test_a_file_in_parts_is_one_line(name, tmp_path):
    (tmp_path / name).write_text("{}")
    for given in (tmp_path, tmp_path / name):
        line = line_of(UsageError, find_weights, str(given))
        assert line.startswith(f"{given}: weights in several files ({name}); write them as one")
        assert "save_pretrained" in line


def test_a_pointer_of_git_lfs_is_one_line(tmp_path):
    """What a clone has in the file's place where git-lfs is not installed."""
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:5\nsize 598641023\n")
    assert "get that with `git lfs pull`" in line_of(Failure, clip.load, str(tmp_path), "cpu")


def config(text=(), vision=(), **other) -> dict:
    return {
        "model_type": "clip",
        "text_config": {"hidden_size": 64, "num_attention_heads": 1} | dict(text),
        "vision_config": {"hidden_size": 128, "num_attention_heads": 2} | dict(vision),
    } | other


ACT, BOTH = {"hidden_act": "gelu"}, ({"hidden_act": "gelu"}, {"hidden_act": "gelu"})
SAYS = {
    "nothing": (config(), "quick_gelu"),
    "quick": (config({"hidden_act": "quick_gelu"}), "quick_gelu"),
    "gelu": (config(*BOTH), "gelu"),
    "ViT-B's, not named": ({"model_type": "clip"}, "quick_gelu"),
    "twice": (config(text_config_dict=ACT, vision_config_dict=ACT), "gelu"),
    "another program's": ({"hidden_act": "gelu"}, "quick_gelu"),
    "a list": ([1], "quick_gelu"),
}
SAYS_NO = {
    "two kinds": (config(ACT), "hidden_act is gelu for texts and quick_gelu for images"),
    "another": (
        config({"hidden_act": "silu"}, {"hidden_act": "silu"}),
        "hidden_act is silu for texts and silu for images; both must be quick_gelu or both gelu",
    ),
    "heads": (
        config(vision={"num_attention_heads": 1}),
        "vision_config has 128 channels in 1 heads; only heads of 64 can be computed here",
    ),
    "heads, not named": (config({"hidden_size": 768, "num_attention_heads": 8}), "text_config has"),
    "epsilon": (
        config({"layer_norm_eps": 1e-6}),
        "text_config has layer_norm_eps 1e-06; only 1e-05 can",
    ),
    "another model": (config(model_type="siglip"), "model_type is siglip, and only clip"),
    "words": (config(text_config="gelu"), "not as transformers writes it"),
}


@pytest.mark.parametrize("name", SAYS)
def test_a_config_beside_the_weights(name, tmp_path):
    about, activation = SAYS[name]
    (tmp_path / "config.json").write_text(json.dumps(about))
    file = tmp_path / "model.safetensors"
    assert activation_of(file) == activation
    assert activation_of(file, "gelu") == "gelu"
    assert activation_of(file, "quick_gelu") == "quick_gelu"


@pytest.mark.parametrize("name", SAYS_NO)
def test_a_config_of_what_is_not_computed_is_one_line(name, tmp_path):
    about, what = SAYS_NO[name]
    (tmp_path / "config.json").write_text(json.dumps(about))
    line = line_of(Failure, activation_of, tmp_path / "model.safetensors")
    assert line.startswith(f"{tmp_path}/config.json: ") and what in line


def test_a_switch_goes_before_the_config_but_not_before_its_sizes(tmp_path):
    beside = tmp_path / "config.json"
    beside.write_text(json.dumps(config(ACT)))
    assert activation_of(tmp_path / "x.pt", "gelu") == "gelu"
    beside.write_text(json.dumps(config({"num_attention_heads": 8})))
    assert "text_config" in line_of(Failure, activation_of, tmp_path / "x.pt", "gelu")
    line = line_of(UsageError, activation_of, tmp_path / "x.pt", "relu")
    assert line == "activation 'relu': choose from quick_gelu, gelu"


def test_a_damaged_config_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "is not valid JSON" in line_of(Failure, activation_of, tmp_path / "x.pt")


@pytest.mark.parametrize("said", ["by the config", "by a switch"])
def test_openais_names_with_gelu(said, ours, tmp_path):
    """As computed by the plain formula, in the same places."""
    save_file(ours, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config(*BOTH)))
    file = str(tmp_path / "open_clip_model.safetensors")
    quick = clip.load(file, "cpu", activation="quick_gelu")[0]
    if said == "by a switch":
        (tmp_path / "config.json").unlink()
    gelu = clip.load(file, "cpu", activation="gelu" if said == "by a switch" else "")[0]
    image, text = torch.randn(2, 3, 32, 32), clip.tokenize(["a dog", "a cat"])
    before = quick.encode_image(image), quick.encode_text(text)
    after = gelu.encode_image(image), gelu.encode_text(text)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(before, after, strict=True))
    for block in (*quick.visual.transformer.resblocks, *quick.transformer.resblocks):
        block.mlp.forward = lambda x, m=block.mlp: m.c_proj(
            (h := m.c_fc(x)) * (1 + torch.erf(h / 2**0.5)) / 2
        )
    plain = quick.encode_image(image), quick.encode_text(text)
    for a, b in zip(plain, after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_trainers_that_open_the_file_themselves(ours, tmp_path, monkeypatch):
    """As CoOp's do, with `_download` and torch.load: they get OpenAI's names."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLIP_WEIGHTS", str(tmp_path))
    torch.save(under_their_names(ours), tmp_path / "pytorch_model.bin")
    file = clip.clip._download(MODELS["ViT-B/16"])
    unpacked = torch.load(file, weights_only=True)
    assert unpacked.keys() == ours.keys() and Path(file).suffix == ".pt"
    (tmp_path / "config.json").write_text(json.dumps(config(*BOTH)))
    line = line_of(UsageError, clip.clip._download, MODELS["ViT-B/16"])
    assert "its activation is gelu" in line and "clip.load" in line


def test_the_bundled_clip_goes_there_and_back():
    small = read_state_dict(SMALL)
    back = to_openai(under_their_names(small))
    assert back.keys() == small.keys() and all(torch.equal(back[key], small[key]) for key in small)
