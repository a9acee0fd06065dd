"""Names, files and tokens: OpenAI's API."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer as OpenClipTokenizer
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms as v1

import clip
from clip import clip as clip_module
from clip.model import build_model
from clip.simple_tokenizer import SimpleTokenizer
from dassl.utils.errors import Failure, UsageError
from reference.weights import openai_state_dict, save_torchscript


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
    assert (
        tokenizer.encoder["<|startoftext|>"] == 49406
        and tokenizer.encoder["<|endoftext|>"] == 49407
    )
    assert tokenizer.decoder[49407] == "<|endoftext|>"
    assert tokenizer.decode(tokenizer.encode("a red fox")).strip() == "a red fox"


def test_the_small_clip_loads_by_name():
    model, transform = clip.load("ViT-Tiny/8", device="cpu")
    assert "ViT-Tiny/8" in clip.available_models() and "ViT-B/16" in clip.available_models()
    assert (
        model.visual.input_resolution == 32
        and model.vocab_size == 49408
        and model.dtype == torch.float32
    )
    image = transform(Image.new("L", (80, 60)))
    assert image.shape == (3, 32, 32)
    with torch.no_grad():
        assert torch.isfinite(model.encode_image(image[None])).all()
        # words it has never seen have embeddings too, the same ones each time
        feature = model.encode_text(clip.tokenize("a photo of a zebra, obviously."))
        again = clip.load("ViT-Tiny/8", device="cpu")[0].encode_text(
            clip.tokenize("a photo of a zebra, obviously.")
        )
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


OF_MAPLE = {"vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}


def test_a_design_without_prompts_is_clip():
    """MaPLe's fork of CoOp gives one."""
    weights = openai_state_dict("tiny")
    model = build_model(weights, {"trainer": "CoOp"} | OF_MAPLE)
    assert model.state_dict().keys() == build_model(weights).state_dict().keys()
    assert type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.parametrize("key", [*OF_MAPLE, "maple_length"])
def test_a_design_with_prompts_inside_is_refused(key):
    """Else a PromptSRC from elsewhere would train half of its prompts and say nothing."""
    design = {"trainer": "IVLP"} | OF_MAPLE | {key: 4}
    with pytest.raises(UsageError, match=rf"IVLP wants .* prompts inside it \({key} 4\)"):
        build_model(openai_state_dict("tiny"), design)


def test_the_small_clip_is_unpacked_into_the_cache_once(tmp_path):
    url = clip_module._MODELS["ViT-Tiny/8"]
    path = clip_module._download(url)
    written = os.stat(path).st_mtime_ns
    assert Path(path).parent == tmp_path / "home/.cache/clip"
    assert clip_module._download(url) == path and os.stat(path).st_mtime_ns == written


def test_a_full_disk_while_unpacking_is_one_line(tmp_path):
    url = clip_module._MODELS["ViT-Tiny/8"]
    path = Path(clip_module._download(url, str(tmp_path)))
    path.unlink()
    path.with_name(path.name + ".tmp").symlink_to("/dev/full")
    with pytest.raises(Failure, match="No space left on device") as caught:
        clip_module._download(url, str(tmp_path))
    assert "\n" not in str(caught.value) and not path.exists()


def test_an_archive_loads_as_third_party_code_does(tmp_path, monkeypatch, server):
    save_torchscript(openai_state_dict("tiny", dtype=torch.float16), tmp_path / "made.pt")
    server.add_model(monkeypatch, "ViT-B/16", (tmp_path / "made.pt").read_bytes())
    monkeypatch.setenv("CLIP_MIRROR", server.address)
    path = clip_module._download(clip_module._MODELS["ViT-B/16"])
    model = clip_module.build_model(torch.jit.load(path, map_location="cpu").eval().state_dict())
    assert model.dtype == torch.float16 and model.visual.input_resolution == 32


def test_weights_of_the_users_serve_third_party_code_too(tmp_path, monkeypatch):
    save_file(openai_state_dict("tiny"), tmp_path / "mine.safetensors")
    monkeypatch.setenv("CLIP_WEIGHTS", str(tmp_path / "mine.safetensors"))
    path = clip_module._download(clip_module._MODELS["ViT-B/16"], str(tmp_path / "cache"))
    assert Path(path).parent == tmp_path / "cache"
    assert clip_module.build_model(torch.load(path)).visual.input_resolution == 32


def test_a_download_root_is_the_cache(tmp_path, monkeypatch, server):
    save_torchscript(openai_state_dict("tiny", dtype=torch.float16), tmp_path / "made.pt")
    server.add_model(monkeypatch, "ViT-B/32", (tmp_path / "made.pt").read_bytes())
    monkeypatch.setenv("CLIP_MIRROR", server.address)
    for _ in range(2):
        model, _ = clip.load("ViT-B/32", device="cpu", download_root=str(tmp_path / "here"))
        assert model.dtype == torch.float32
    assert (tmp_path / "here/ViT-B-32.pt").is_file() and len(server.requests) == 1


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(80, 61), (20, 300), (32, 32), (7, 9)])
def test_the_transform_is_openais(mode, size):
    noise = torch.randint(
        0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    image = Image.fromarray(noise.numpy()).convert(mode)
    openais = v1.Compose(
        [
            v1.Resize(32, interpolation=v1.InterpolationMode.BICUBIC),
            v1.CenterCrop(32),
            lambda image: image.convert("RGB"),
            v1.ToTensor(),
            v1.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    ours = clip.load("ViT-Tiny/8", device="cpu")[1]
    torch.testing.assert_close(ours(image), openais(image), rtol=0, atol=1e-6)


def test_importing_clip_imports_no_other_towers():
    others = ("open_clip", "torchvision", "timm", "safetensors")
    code = f"import sys, clip; print([m for m in {others} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
