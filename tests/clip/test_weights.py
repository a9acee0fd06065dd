"""Files of weights: the formats that are read, and one line for each that is not."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import clip
from clip import weights as weights_module
from clip.download import sha256_of
from clip.weights import MODELS, OPENAI, build_model, find_weights, read_state_dict
from dassl.utils.errors import Failure, UsageError
from reference.weights import openai_state_dict, save_torchscript


def line_of(kind: type[Failure], call, *args, **kwargs) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


def save_old(state_dict, path):
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)


FORMATS = {
    "plain.pt": torch.save,
    "old.pth": save_old,
    "x.safetensors": save_file,
    "wrapped.pt": lambda w, path: torch.save({"epoch": 3, "state_dict": w}, path),
    "parallel.pt": lambda w, path: torch.save(
        {"state_dict": {f"module.{k}": v for k, v in w.items()}}, path
    ),
    "archive.pt": save_torchscript,
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, weights, tmp_path, monkeypatch):
    path = tmp_path / name
    FORMATS[name](weights, path)
    if name == "archive.pt":
        monkeypatch.setitem(MODELS, "RN50", f"{OPENAI}/{sha256_of(path)}/RN50.pt")
    read = read_state_dict(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], weights[key]) for key in weights)


def test_a_state_dict_is_mapped_and_the_model_uses_it_where_it_is(weights, tmp_path):
    torch.save(weights, tmp_path / "x.pt")
    read = read_state_dict(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in Path("/proc/self/maps").read_text()
    assert build_model(read).visual.proj.data_ptr() == read["visual.proj"].data_ptr()


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/clip-was-here",)


def cut(save):
    def save_and_cut(weights, path):
        save(weights, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return save_and_cut


BAD = {
    "empty.pt": (lambda w, path: path.touch(), "the file is empty"),
    "empty.safetensors": (lambda w, path: path.touch(), "the file is empty"),
    "page.pt": (
        lambda w, path: path.write_text("\n<!DOCTYPE html>\n<html>404</html>"),
        "it is a web page",
    ),
    "text.pt": (
        lambda w, path: path.write_text("weights of CLIP"),
        "it is no file of torch.save",
    ),
    "cut.pt": (cut(torch.save), "truncated or damaged, get it again"),
    "cut_old.pt": (cut(save_old), "truncated or damaged, get it again"),
    "cut.safetensors": (cut(save_file), "truncated or damaged, get it again"),
    "prompts.pt": (
        lambda w, path: torch.save(
            {"state_dict": {"prompt_learner.ctx": torch.zeros(2)}, "epoch": 5}, path
        ),
        "no CLIP weights under OpenAI's names or transformers' (there is no visual.conv1.weight)",
    ),
    "tensor.pt": (lambda w, path: torch.save(torch.zeros(2), path), "holds no CLIP weights"),
    "evil.pt": (
        lambda w, path: torch.save({"state_dict": Evil()}, path),
        "its pickle names posix.system and could run",
    ),
    "evil_old.pt": (
        lambda w, path: save_old(Evil(), path),
        "its pickle names posix.system and could run",
    ),
    "evil.pkl": (
        lambda w, path: path.write_bytes(pickle.dumps(Evil(), protocol=2)),
        "posix.system",
    ),
    "other.pt": (
        lambda w, path: torch.save(argparse.Namespace(), path),
        "its pickle names argparse.Namespace",
    ),
    "archive.pt": (save_torchscript, "a TorchScript archive whose SHA-256 is none of OpenAI's"),
    "missing.pt": (lambda w, path: None, "No such file"),
    "words.pt": (
        lambda w, path: torch.save(w | {"text_projection": "word"}, path),
        "text_projection is no tensor of",
    ),
    "complex.pt": (
        lambda w, path: torch.save({k: v * 1j for k, v in w.items()}, path),
        "is no tensor of real numbers",
    ),
    "meta.pt": (
        lambda w, path: torch.save({k: v.to("meta") for k, v in w.items()}, path),
        "is no tensor of real",
    ),
    "sparse.pt": (
        lambda w, path: torch.save({k: v.to_sparse() for k, v in w.items()}, path),
        "is no tensor of real",
    ),
    "scalars.pt": (
        lambda w, path: torch.save({k: torch.tensor(1.0) for k in w}, path),
        "than the 49408 of CLIP's",
    ),
    "list.pt": (lambda w, path: torch.save({"state_dict": [1]}, path), "holds no CLIP weights"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_weights_is_one_line(name, weights, tmp_path):
    save, what = BAD[name]
    save(weights, tmp_path / name)
    line = line_of(Failure, read_state_dict, tmp_path / name)
    assert line.startswith(f"{tmp_path / name}: ") and what in line and "weights_only" not in line
    assert not os.path.exists("/tmp/clip-was-here")


@pytest.mark.parametrize(
    "key", ["visual.conv1.weight", "text_projection", "token_embedding.weight"]
)
def test_weights_of_whole_numbers_are_one_line(key, weights):
    line = line_of(Failure, build_model, weights | {key: weights[key].int()})
    assert line == f"these weights make no CLIP: {key} has type torch.int32"


@pytest.mark.parametrize("shape", [(), (0,), (0, 3, 8, 8), (3, 3, 3)])
@pytest.mark.parametrize(
    "key", ["visual.conv1.weight", "visual.positional_embedding", "ln_final.weight"]
)
def test_weights_of_odd_shapes_are_one_line(key, shape, weights):
    line = line_of(Failure, build_model, weights | {key: torch.zeros(shape)})
    assert line.startswith("these weights make no CLIP: ")


def test_a_flipped_byte_in_the_bundled_clip(tmp_path, monkeypatch):
    """safetensors itself does not notice one."""
    flipped = tmp_path / "small.safetensors"
    content = bytearray(weights_module.SMALL.read_bytes())
    content[len(content) // 2] ^= 0x40
    flipped.write_bytes(content)
    read_state_dict(flipped)  # a file of the user's: its SHA-256 is in the record
    monkeypatch.setattr(weights_module, "SMALL", flipped)
    assert line_of(Failure, read_state_dict, flipped).startswith(
        f"{flipped}: not the file that this repository brings"
    )


def test_which_file_stands_for_a_model(tmp_path, monkeypatch):
    """Config before environment; the environment only instead of a download."""
    for i, name in enumerate(("config.pt", "environment.pt", "named.pt")):
        torch.save(openai_state_dict("tiny", seed=i), tmp_path / name)
    config, environment, named = (
        str(tmp_path / name) for name in ("config.pt", "environment.pt", "named.pt")
    )
    monkeypatch.setenv("CLIP_WEIGHTS", environment)
    assert str(find_weights("ViT-B/16", weights=config)) == config
    assert str(find_weights("ViT-Tiny/8", weights=config)) == config
    assert str(find_weights("ViT-B/16")) == environment
    assert str(find_weights(named)) == named
    assert find_weights("ViT-Tiny/8").name == "vit_tiny_8.safetensors"
    assert torch.equal(
        clip.load("ViT-B/16", "cpu")[0].visual.proj, read_state_dict(environment)["visual.proj"]
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(find_weights("~/named.pt")) == named


@pytest.mark.parametrize(
    "name, line",
    [
        (
            "ViT-B/17",
            "unknown CLIP model 'ViT-B/17': did you mean ViT-B/16? choose from RN50, RN101,",
        ),
        ("vitb32", "unknown CLIP model 'vitb32': did you mean ViT-B/32? choose from"),
        ("BERT", "unknown CLIP model 'BERT': choose from"),
        ("", "unknown CLIP model '': choose from"),
        ("/no/such/file", "no CLIP weights at /no/such/file; give a file or"),
        ("no/such/file.pt", "no CLIP weights at no/such/file.pt; give a file or"),
        ("/tmp", "no CLIP weights at /tmp (a folder); give a file or"),
    ],
)
def test_an_unknown_model_is_one_line(name, line):
    assert line_of(UsageError, find_weights, name).startswith(line)


def test_a_given_file_that_is_missing_is_one_line(monkeypatch):
    assert "no CLIP weights at mine" in line_of(
        UsageError, find_weights, "ViT-B/16", weights="mine"
    )
    monkeypatch.setenv("CLIP_WEIGHTS", "theirs")
    assert "no CLIP weights at theirs" in line_of(UsageError, find_weights, "ViT-B/16")
