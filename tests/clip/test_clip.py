"""Names, files and tokens: OpenAI's API."""

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer as OpenClipTokenizer
from PIL import Image

import clip
from clip import clip as clip_module
from clip.model import build_model
from clip.simple_tokenizer import SimpleTokenizer
from tests.reference.weights import openai_state_dict


def test_tokens_are_open_clips():
    texts = ["A photo of a  Dog!", "striped red hexagon", "naïve café 北京 <b>&amp;</b>", ""]
    assert torch.equal(clip.tokenize(texts), OpenClipTokenizer()(texts))
    assert torch.equal(clip.tokenize("one text"), clip.tokenize(["one text"]))


def test_a_text_too_long_raises_or_is_cut():
    with pytest.raises(RuntimeError, match="too long for context length 77"):
        clip.tokenize("dog " * 80)
    cut = clip.tokenize("dog " * 80, truncate=True)
    assert cut.shape == (1, 77) and cut[0, -1] == 49407 and cut[0, 0] == 49406


def test_special_tokens_have_openais_names():
    tokenizer = SimpleTokenizer()
    assert tokenizer.encoder["<|startoftext|>"] == 49406 and tokenizer.encoder["<|endoftext|>"] == 49407
    assert tokenizer.decoder[49407] == "<|endoftext|>"
    assert tokenizer.decode(tokenizer.encode("a red fox")).strip() == "a red fox"


def test_the_small_clip_loads_by_name():
    model, transform = clip.load("ViT-Tiny/8", device="cpu")
    assert "ViT-Tiny/8" in clip.available_models() and "ViT-B/16" in clip.available_models()
    assert model.visual.input_resolution == 32 and model.vocab_size == 49408 and model.dtype == torch.float32
    image = transform(Image.new("L", (80, 60)))
    assert image.shape == (3, 32, 32)
    with torch.no_grad():
        assert torch.isfinite(model.encode_image(image[None])).all()
        # words it has never seen have embeddings too, the same ones each time
        feature = model.encode_text(clip.tokenize("a photo of a zebra, obviously."))
        again = clip.load("ViT-Tiny/8", device="cpu")[0].encode_text(clip.tokenize("a photo of a zebra, obviously."))
    assert torch.isfinite(feature).all() and torch.equal(feature, again)


def test_the_small_clip_loads_as_third_party_code_does(tmp_path):
    """CoOp's way: _download, then torch.jit.load, else torch.load, then build_model."""
    path = clip_module._download(clip_module._MODELS["ViT-Tiny/8"], str(tmp_path))
    with pytest.raises(RuntimeError):
        torch.jit.load(path)
    model = build_model(torch.load(path, map_location="cpu"))
    ours = clip.load("ViT-Tiny/8", device="cpu")[0]
    assert model.dtype == torch.float16
    assert torch.equal(model.token_embedding.weight, ours.token_embedding.weight)
    assert torch.equal(model.visual.proj.float(), ours.visual.proj)


def test_a_file_can_stand_for_a_model(tmp_path, monkeypatch):
    torch.save(openai_state_dict("tiny", seed=3), tmp_path / "mine.pt")
    model, _ = clip.load(str(tmp_path / "mine.pt"), device="cpu")
    monkeypatch.setenv("CLIP_WEIGHTS", str(tmp_path / "mine.pt"))
    other, _ = clip.load("ViT-B/16", device="cpu")
    assert torch.equal(model.visual.proj, other.visual.proj)


@pytest.mark.parametrize(
    "name, line",
    [
        ("ViT-B/17", "unknown CLIP model 'ViT-B/17': choose from RN50"),
        ("/tmp/there-is-no-such-file.pt", "no CLIP weights at /tmp/there-is-no-such-file.pt"),
    ],
)
def test_an_unknown_model_is_one_line(name, line):
    with pytest.raises(clip_module.UsageError, match=line):
        clip.load(name)


def test_files_that_are_no_weights_are_one_line(tmp_path):
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 nothing more")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    torch.save({"state_dict": {"ctx": torch.zeros(2)}}, tmp_path / "prompt.pt")
    for name, line in (
        ("cut.pt", "not readable as CLIP weights"),
        ("cut.safetensors", "not readable as CLIP weights"),
        ("prompt.pt", "holds no CLIP weights"),
    ):
        with pytest.raises(clip_module.Failure, match=line) as caught:
            clip_module.read_state_dict(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_only_openais_archives_are_run(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "other.pt")
    with pytest.raises(clip_module.Failure, match="TorchScript archive whose SHA-256 is none of OpenAI's"):
        clip_module.read_state_dict(tmp_path / "other.pt")
