"""Load OpenAI's models (and the small one bundled here) by name, and tokenize: OpenAI's API.

A name of `available_models()` is downloaded on first use, checked against its SHA-256 and kept in ~/.cache/clip.
"""

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dassl.utils.errors import Failure, UsageError
from dassl.utils.lock import locked

from .download import fetch
from .model import CLIP, build_model
from .simple_tokenizer import SimpleTokenizer

__all__ = ["available_models", "load", "tokenize"]

OPENAI = "https://openaipublic.azureedge.net/clip/models"
BUNDLED = Path(__file__).parent / "weights"
# The part of an address before the file's name is the file's SHA-256.
_MODELS = {
    "RN50": f"{OPENAI}/afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101": f"{OPENAI}/8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
    "RN50x4": f"{OPENAI}/7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd/RN50x4.pt",
    "RN50x16": f"{OPENAI}/52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa/RN50x16.pt",
    "RN50x64": f"{OPENAI}/be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c/RN50x64.pt",
    "ViT-B/32": f"{OPENAI}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    "ViT-B/16": f"{OPENAI}/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    "ViT-L/14": f"{OPENAI}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    "ViT-L/14@336px": f"{OPENAI}/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
    "ViT-Tiny/8": (BUNDLED / "vit_tiny_8.safetensors").as_uri(),
}
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

_tokenizer = SimpleTokenizer()


def available_models() -> list[str]:
    """Names that `load` takes."""
    return list(_MODELS)


def _download(url: str, root: str = os.path.expanduser("~/.cache/clip")) -> str:
    """The local file of an address of `_MODELS`: an archive for torch.jit.load, or a state dict for torch.load.

    Raises: Failure if it can neither be found nor downloaded, or is not what its SHA-256 says.
    """
    if url.startswith("file://"):
        return str(_unpack_bundled(Path(url.removeprefix("file://")), Path(root)))
    sha256, name = url.rsplit("/", 2)[1:]
    mirror = os.environ.get("CLIP_MIRROR")
    return str(fetch(url.replace(OPENAI, mirror.rstrip("/")) if mirror else url, Path(root) / name, sha256))


def _unpack_bundled(source: Path, root: Path) -> Path:
    """The small CLIP as a state dict file, since that is what code written for OpenAI's clip can read."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    target = root / f"{source.stem}-{digest[:12]}.pt"
    with locked(target):
        if not target.exists():
            part = target.with_suffix(".part")
            torch.save(read_state_dict(source), part)
            os.replace(part, target)
    return target


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file: safetensors, a state dict of torch.save, or one of OpenAI's TorchScript archives.

    A TorchScript archive is a program, so only OpenAI's own, known by their SHA-256, are opened.

    Raises: Failure naming the file and what is wrong with it.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return _restore_vocabulary(load_file(path))
        if _is_torchscript(path):
            _require_openai(path)
            return torch.jit.load(path, map_location="cpu").state_dict()
        state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Failure:
        raise
    except Exception as e:  # the three readers raise many kinds; the first line says what is wrong
        raise Failure(f"{path}: not readable as CLIP weights ({str(e).splitlines()[0]})") from e
    state_dict = state_dict.get("state_dict", state_dict)
    if "visual.conv1.weight" not in state_dict:
        raise Failure(f"{path}: holds no CLIP weights (there is no visual.conv1.weight)")
    return state_dict


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _require_openai(path: Path) -> None:
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if not any(digest in url for url in _MODELS.values()):
        raise Failure(f"{path}: a TorchScript archive whose SHA-256 is none of OpenAI's; give a state dict instead")


def _restore_vocabulary(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put back the embeddings of words that the small CLIP never saw: random ones, from a fixed seed."""
    if "token_embedding.ids" in state_dict:
        trained = state_dict["token_embedding.weight"]
        rows = torch.randn(len(_tokenizer.encoder.keys() - {"<|startoftext|>", "<|endoftext|>"}), trained.shape[1],
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
        rows = (rows * trained.float().std()).to(trained.dtype)
        rows[state_dict.pop("token_embedding.ids").long()] = trained
        state_dict["token_embedding.weight"] = rows
    return state_dict


def find_weights(name: str, weights: str = "") -> Path:
    """The file with the weights of a model.

    Args:
        name: one of `available_models()`, or the path of a file.
        weights: a file to take instead (or the environment's CLIP_WEIGHTS).
    """
    if weights := weights or os.environ.get("CLIP_WEIGHTS", ""):
        name = weights
    elif name in _MODELS:
        url = _MODELS[name]
        # The bundled file is read where it is; only code written for OpenAI's clip needs it unpacked.
        return Path(url.removeprefix("file://") if url.startswith("file://") else _download(url))
    if Path(name).is_file():
        return Path(name)
    if os.sep in name and Path(name).parent.is_dir() or weights:
        raise UsageError(f"no CLIP weights at {name}")
    raise UsageError(f"unknown CLIP model {name!r}: choose from {', '.join(_MODELS)}, or give a file")


def load(
    name: str, device: str | torch.device | None = None, jit: bool = False, download_root: str | None = None
) -> tuple[CLIP, object]:
    """A model by name or path, in eval mode, and the transform that makes its input of a PIL image.

    As OpenAI's: in the weights' own precision on CUDA, in float32 on a CPU.
    """
    from torchvision.transforms import v2

    if jit:
        raise UsageError("clip.load(jit=True) is not supported; the model is a plain module here")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = _download(_MODELS[name], download_root) if name in _MODELS and download_root else find_weights(name)
    model = build_model(read_state_dict(path)).to(device)
    if device.type == "cpu":
        model.float()
    size = model.visual.input_resolution
    preprocess = v2.Compose(
        [
            v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            v2.RGB(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(PIXEL_MEAN, PIXEL_STD),
        ]
    )
    return model, preprocess


def tokenize(texts: str | Sequence[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """Token ids (N, context_length), int64 on the CPU: start, the text, end, zeros.

    Raises: RuntimeError, as OpenAI's, for a text that does not fit, unless it is to be truncated.
    """
    texts = [texts] if isinstance(texts, str) else texts
    result = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(result, texts, strict=True):
        tokens = [_tokenizer.sot_token_id, *_tokenizer.encode(text), _tokenizer.eot_token_id]
        if len(tokens) > context_length:
            if not truncate:
                raise RuntimeError(f"Input {text} is too long for context length {context_length}")
            tokens = [*tokens[: context_length - 1], _tokenizer.eot_token_id]
        row[: len(tokens)] = torch.tensor(tokens)
    return result
