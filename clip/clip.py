"""Load OpenAI's models (and the small one bundled here) by name, and tokenize: OpenAI's API.

A name of `available_models()` is downloaded on first use, checked against its SHA-256 and kept in
~/.cache/clip.
"""

import difflib
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from dassl.utils import atomic_write, expand_user
from dassl.utils.errors import Failure, UsageError
from dassl.utils.lock import locked

from .download import fetch, sha256_of
from .model import CLIP, build_model
from .simple_tokenizer import SimpleTokenizer

__all__ = ["available_models", "load", "tokenize"]

OPENAI = "https://openaipublic.azureedge.net/clip/models"
HTTP = ("http://", "https://")
CACHE = "~/.cache/clip"
BUNDLED = Path(__file__).parent / "weights"
SMALL = BUNDLED / "vit_tiny_8.safetensors"
SMALL_SHA256 = "6e0f71d027dc9f7e589be54f789b1dc8fce7adbd7ab83719078709573857d305"  # safetensors has no checksums
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
    "ViT-Tiny/8": f"file://{SMALL}",
}
# What every CLIP has: a prompt learner's checkpoint, say, has not.
REQUIRED = (
    "visual.conv1.weight",
    "token_embedding.weight",
    "positional_embedding",
    "ln_final.weight",
    "text_projection",
)
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

_tokenizer = SimpleTokenizer()


def available_models() -> list[str]:
    """Names that `load` takes."""
    return list(_MODELS)


def _download(url: str, root: str | None = None) -> str:
    """OpenAI's: the local file of an address of `_MODELS`, for code that opens it with
    torch.jit.load or torch.load.

    Raises: as `find_weights`.
    """
    path = find_weights(url, root=root or CACHE)
    if path.suffix != ".safetensors":
        return str(path)
    # Such code does not read safetensors: the small CLIP is unpacked as a state dict.
    target = Path(expand_user(root or CACHE)) / f"{path.stem}-{sha256_of(path)[:12]}.pt"
    if not target.exists():
        with locked(target), atomic_write(target) as f:
            torch.save(read_state_dict(path), f)
    return str(target)


def find_weights(name: str, weights: str = "", mirror: str = "", root: str = CACHE) -> Path:
    """The file with the weights of a model, downloaded if need be. One that is in root is found
    without the network.

    Args:
        name: one of `available_models()`, or the path or http(s) address of a file.
        weights: a path or address to take instead. The environment's CLIP_WEIGHTS stands in for
            what would be downloaded only: not for a path, nor for the small CLIP, which is bundled.
        mirror: the address to take the place of OpenAI's, up to the SHA-256 (else the environment's
            CLIP_MIRROR).
        root: folder of the downloads.

    Raises: UsageError for a name, path or address that is none; Failure if a download fails.
    """
    source = source_of(name, weights)
    if isinstance(source, Path):
        return source
    return _fetch(source, mirror or os.environ.get("CLIP_MIRROR", ""), Path(expand_user(root)))


def source_of(name: str, weights: str = "") -> Path | str:
    """The file, or the address to download, of a model; arguments and UsageErrors are
    `find_weights`'s."""
    source = weights or _MODELS.get(name, name)
    if not weights and source.startswith(HTTP):
        source = os.environ.get("CLIP_WEIGHTS") or source
    if source.startswith(HTTP):
        return source
    path = Path(expand_user(source.removeprefix("file://")))
    if path.is_file():
        return path
    if source != name or path.suffix or path.is_absolute():
        folder = " (a folder)" if path.is_dir() else ""
        raise UsageError(f"no CLIP weights at {path}{folder}; give a file or the name of a model")
    by_lower = {known.lower(): known for known in _MODELS}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[nearest[0]]}? " if nearest else ""
    raise UsageError(
        f"unknown CLIP model {name!r}: {hint}choose from {', '.join(_MODELS)}, or give a file"
    )


def _fetch(url: str, mirror: str, root: Path) -> Path:
    if mirror and not mirror.startswith(HTTP):
        raise UsageError(f"CLIP mirror {mirror!r}: not an http:// or https:// address")
    sha256, file = url.partition("?")[0].rsplit("/", 2)[1:]
    if not re.fullmatch(
        "[0-9a-f]{64}", sha256
    ):  # an address of the user's, whose file may be called as OpenAI's
        sha256, file = "", f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{quote(file)[-100:]}"
    if mirror and url.startswith(OPENAI):
        url = mirror.rstrip("/") + url.removeprefix(OPENAI)
    return fetch(url, root / file, sha256)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file: safetensors, a state dict of torch.save, or one of OpenAI's
    TorchScript archives.

    A state dict may lie in {"state_dict": ...} and its keys begin with "module."; it is mapped into
    memory, not read, where its format allows. A TorchScript archive is a program, so only OpenAI's
    own, known by their SHA-256, are opened.

    Raises: Failure naming the file and what is wrong with it.
    """
    path = Path(path)
    if path == SMALL and sha256_of(path) != SMALL_SHA256:
        raise Failure(
            f"{path}: not the file that this repository brings (its SHA-256 is wrong); get it again"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state_dict = _restore_vocabulary(load_file(path))
        elif _is_torchscript(path):
            _require_openai(path)
            with warnings.catch_warnings(
                action="ignore"
            ):  # torch deprecates the format; OpenAI's files stay in it
                state_dict = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            # Files of before torch 1.6 are no zip archives and cannot be mapped.
            mmap = zipfile.is_zipfile(path)
            state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Failure:
        raise
    except Exception as e:  # the three readers raise many kinds
        raise Failure(f"{path}: not readable as CLIP weights: {_why_unreadable(path, e)}") from e
    if isinstance(state_dict, dict):
        state_dict = state_dict.get("state_dict", state_dict)
    keys = (
        {str(key).removeprefix("module."): key for key in state_dict}
        if isinstance(state_dict, dict)
        else {}
    )
    if missing := [key for key in REQUIRED if key not in keys]:
        raise Failure(
            f"{path}: holds no CLIP weights under OpenAI's names (there is no {missing[0]})"
        )
    weights = {key: state_dict[original] for key, original in keys.items()}
    if wrong := [key for key, value in weights.items() if not _is_plain(value)]:
        raise Failure(f"{path}: {wrong[0]} is no tensor of real numbers")
    if weights["token_embedding.weight"].shape[:1] < (words := _tokenizer.eot_token_id + 1,):
        raise Failure(
            f"{path}: token_embedding.weight has fewer rows than the {words} of CLIP's vocabulary"
        )
    return weights


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of real numbers, all there."""
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not (value.is_complex() or value.is_meta)


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with open(path, "rb") as f:
        start = f.read(64).lstrip()
    if not start:
        return "the file is empty; get it again"
    if start.startswith(b"<"):
        return "it is a web page; get the file itself"
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return f"refused, since its pickle names {named[1]} and could run code; weights hold tensors only"
    if isinstance(error, pickle.UnpicklingError):  # its text advises to turn the safety off
        return "it is no file of torch.save"
    return f"truncated or damaged, get it again ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _require_openai(path: Path) -> None:
    if not any(f"/{sha256_of(path)}/" in url for url in _MODELS.values()):
        raise Failure(
            f"{path}: a TorchScript archive whose SHA-256 is none of OpenAI's; give a state dict instead"
        )


def _restore_vocabulary(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put back the embeddings of words that the small CLIP never saw: random ones, from a fixed
    seed."""
    if "token_embedding.ids" in state_dict:
        trained = state_dict["token_embedding.weight"]
        rows = torch.randn(len(_tokenizer.encoder.keys() - {"<|startoftext|>", "<|endoftext|>"}), trained.shape[1],
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
        rows = (rows * trained.float().std()).to(trained.dtype)
        rows[state_dict.pop("token_embedding.ids").long()] = trained
        state_dict["token_embedding.weight"] = rows
    return state_dict


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
) -> tuple[CLIP, object]:
    """A model by name or path, in eval mode, and the transform that makes its input of a PIL image.

    As OpenAI's: in the weights' own precision on CUDA, in float32 on a CPU.

    Raises: as `find_weights` and `read_state_dict`.
    """
    from torchvision.transforms import v2

    if jit:
        raise UsageError("clip.load(jit=True) is not supported; the model is a plain module here")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = build_model(read_state_dict(find_weights(name, root=download_root or CACHE))).to(device)
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


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
) -> Tensor:
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
