"""CLIP's weights: which file a name stands for, what it holds, and the model made of it.

OpenAI's files are downloaded on first use, checked and kept in ~/.cache/clip. A small CLIP
is bundled, in the folder weights/.
"""

import difflib
import hashlib
import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from dassl.utils import expand_user
from dassl.utils.errors import Failure, UsageError

from .download import HINT, fetch, sha256_of
from .huggingface import FILES, GELU, QUICK_GELU, file_of, is_transformers, to_openai
from .model import CLIP, MLP, Attention

HTTP = ("http://", "https://")
CACHE = "~/.cache/clip"
BUNDLED = Path(__file__).parent / "weights"
SMALL = BUNDLED / "vit_tiny_8.safetensors"
# safetensors has no checksum of its own.
SMALL_SHA256 = "6e0f71d027dc9f7e589be54f789b1dc8fce7adbd7ab83719078709573857d305"
OPENAI = "https://openaipublic.azureedge.net/clip/models"
OPENAI_SHA256 = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
# {name: address}; the part before the file's name is its SHA-256.
MODELS = {
    name: f"{OPENAI}/{sha256}/{re.sub('[/@]', '-', name)}.pt"
    for name, sha256 in OPENAI_SHA256.items()
}
MODELS["ViT-Tiny/8"] = f"file://{SMALL}"
VOCABULARY = 49408  # tokens
# What every CLIP has: a prompt learner's checkpoint, say, has not.
REQUIRED = ("visual.conv1.weight", "token_embedding.weight", "positional_embedding")
REQUIRED += ("ln_final.weight", "text_projection")


def find_weights(name: str, weights: str = "", mirror: str = "", root: str = CACHE) -> Path:
    """The file with a model's weights, downloaded unless it is in root already.

    Args:
        name: one of `available_models()`, or the path or http(s) address of a file, or a folder
            with transformers' model.safetensors or pytorch_model.bin.
        weights: a path or address to take instead. The environment's CLIP_WEIGHTS is taken
            only instead of a download: not of a path, nor of the bundled CLIP.
        mirror: address instead of OpenAI's, up to the SHA-256 (else CLIP_MIRROR's).
        root: folder of the downloads.

    Raises: UsageError for a name, path or address that is none; Failure for a download.
    """
    source = source_of(name, weights)
    if isinstance(source, Path):
        return source
    mirror = mirror or os.environ.get("CLIP_MIRROR", "")
    if mirror and not mirror.startswith(HTTP):
        raise UsageError(f"CLIP mirror {mirror!r}: not an http:// or https:// address")
    sha256, file = source.partition("?")[0].rsplit("/", 2)[1:]
    if not re.fullmatch("[0-9a-f]{64}", sha256):  # the user's: not to be taken for OpenAI's
        digest = hashlib.sha256(source.encode()).hexdigest()
        sha256, file = "", f"{digest[:12]}-{quote(file)[-100:]}"
    if mirror and source.startswith(OPENAI):
        source = mirror.rstrip("/") + source.removeprefix(OPENAI)
    hint = "give MODEL.BACKBONE.WEIGHTS a file of yours" if weights else HINT
    return fetch(source, Path(expand_user(root)) / file, sha256, hint)


def source_of(name: str, weights: str = "") -> Path | str:
    """The file, or the address to download, of a model; see `find_weights`."""
    source = weights or MODELS.get(name, name)
    if not weights and source.startswith(HTTP):
        source = os.environ.get("CLIP_WEIGHTS") or source
    if source.startswith(HTTP):
        return source
    path = file_of(Path(expand_user(source.removeprefix("file://"))))
    if path.is_file():
        return path
    if source != name or path.suffix or path.is_absolute():
        what = f"{path} (a folder)" if path.is_dir() else path
        folder = f", or a folder with {' or '.join(FILES)}" if path.is_dir() else ""
        raise UsageError(f"no CLIP weights at {what}; give a file or the name of a model{folder}")
    by_lower = {known.lower(): known for known in MODELS}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[nearest[0]]}? " if nearest else ""
    hint += f"choose from {', '.join(MODELS)}, or give a file"
    raise UsageError(f"unknown CLIP model {name!r}: {hint}")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file: safetensors, torch.save's, or OpenAI's TorchScript archives.

    A state dict may be below "state_dict" and its keys begin with "module."; names of
    transformers' become OpenAI's. It is mapped into memory, not read, where its format allows. A
    TorchScript archive is a program, so only OpenAI's own, known by their SHA-256, are opened.

    Raises: Failure naming the file and what is wrong with it.
    """
    path = Path(path)
    if path == SMALL and sha256_of(path) != SMALL_SHA256:
        line = f"{path}: not the file that this repository brings"
        raise Failure(f"{line} (its SHA-256 is wrong); get it again")
    try:
        content = _read(path)
    except Failure:
        raise
    except Exception as e:  # the three readers raise many kinds
        why = _why_unreadable(path, e)
        raise Failure(f"{path}: not readable as CLIP weights: {why}") from e
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    items = content.items() if isinstance(content, dict) else ()
    weights = {str(key).removeprefix("module."): value for key, value in items}
    theirs = is_transformers(weights)
    lacks = next((key for key in REQUIRED if key not in weights), "")
    if lacks and not theirs:
        line = f"{path}: holds no CLIP weights under OpenAI's names or transformers'"
        raise Failure(f"{line} (there is no {lacks})")
    if wrong := [key for key, value in weights.items() if not _is_plain(value)]:
        raise Failure(f"{path}: {wrong[0]} is no tensor of real numbers")
    if theirs:
        try:
            weights = to_openai(weights)
        except Failure as e:
            raise Failure(f"{path}: {e}") from e
    if weights["token_embedding.weight"].shape[:1] < (VOCABULARY,):
        rows = f"fewer rows than the {VOCABULARY} of CLIP's vocabulary"
        raise Failure(f"{path}: token_embedding.weight has {rows}")
    return weights


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # few need it

        return _restore_vocabulary(load_file(path))
    is_zip = zipfile.is_zipfile(path)
    if is_zip and _is_torchscript(path):
        if not any(f"/{sha256_of(path)}/" in url for url in MODELS.values()):
            what = "a TorchScript archive whose SHA-256 is none of OpenAI's"
            raise Failure(f"{path}: {what}; give a state dict instead")
        # torch deprecates the format; OpenAI's files stay in it.
        with warnings.catch_warnings(action="ignore"):
            return torch.jit.load(path, map_location="cpu").state_dict()
    # Files of before torch 1.6 are no zip archives and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _restore_vocabulary(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives words that the small CLIP never saw random embeddings, from a fixed seed."""
    if "token_embedding.ids" in state_dict:
        trained = state_dict["token_embedding.weight"]
        rng = torch.Generator().manual_seed(0)
        rows = torch.randn(VOCABULARY, trained.shape[1], generator=rng)
        rows = (rows * trained.float().std()).to(trained.dtype)
        rows[state_dict.pop("token_embedding.ids").long()] = trained
        state_dict["token_embedding.weight"] = rows
    return state_dict


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of real numbers, all there."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not (value.is_complex() or value.is_meta)


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with open(path, "rb") as f:
        start = f.read(64).lstrip()
    if not start:
        return "the file is empty; get it again"
    if start.startswith(b"<"):
        return "it is a web page; get the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "it only stands for the file; get that with `git lfs pull` in its folder"
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        why = f"its pickle names {named[1]} and could run code"
        return f"refused, since {why}; weights hold tensors only"
    if isinstance(error, pickle.UnpicklingError):  # whose advice is to turn the safety off
        return "it is no file of torch.save"
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"truncated or damaged, get it again ({why})"


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Casts what OpenAI keeps in half precision: all but norms, embeddings and temperature.

    Those become float32.
    """
    model.float()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | Attention):
            module.to(dtype)
        for name in ("text_projection", "proj"):
            if isinstance(weight := getattr(module, name, None), nn.Parameter):
                weight.data = weight.data.to(dtype)


def build_model(
    state_dict: Mapping[str, Tensor], activation: str | Mapping[str, Any] = QUICK_GELU
) -> CLIP:
    """The CLIP whose weights these are, in eval mode, sizes read from the weights.

    activation: one of huggingface.ACTIVATIONS, which weights do not tell. MaPLe's descendants give
    their `design_details` here, which must ask for nothing that this CLIP does not have.

    It computes in the type of `visual.conv1.weight`: half for OpenAI's archives. Tensors of
    the right type are used as they are, not copied.

    Raises: Failure for weights that make no CLIP; UsageError for prompts learned inside it.
    """
    if isinstance(activation, Mapping):
        check_design(activation)
        activation = QUICK_GELU
    # Numbers that OpenAI's archives have beside the weights.
    sizes = ("input_resolution", "context_length", "vocab_size")
    weights = {key: w for key, w in state_dict.items() if key not in sizes}
    try:
        with torch.device("meta"):
            model = CLIP(**_sizes(weights))
        for key, own in model.state_dict().items():
            given = weights.get(key, own)
            if own.is_floating_point() and not given.is_floating_point():
                raise Failure(f"these weights make no CLIP: {key} has type {given.dtype}")
        model.load_state_dict(weights, assign=True)
    except KeyError as e:
        raise Failure(f"these weights make no CLIP: there is no {e.args[0]}") from e
    except (RuntimeError, IndexError, ArithmeticError, ValueError) as e:  # impossible sizes
        why = " ".join(str(e).split())[:300]
        raise Failure(f"these weights make no CLIP: {why}") from e
    for module in model.modules():
        if isinstance(module, MLP) and activation == GELU:
            module.gelu = nn.GELU()
    convert_weights(model, weights["visual.conv1.weight"].dtype)
    return model.eval()


def check_design(details: Mapping[str, Any]) -> None:
    """Raises UsageError for MaPLe's `design_details` of a CLIP with prompts of its own."""
    asked = [f"{key} {value}" for key, value in details.items() if key != "trainer" and value]
    if asked:
        line = f"{details.get('trainer')} wants a CLIP with learned prompts inside it"
        line = f"{line} ({', '.join(asked)}), which clip/ here is not"
        raise UsageError(f"{line}: use its own clip package, or a trainer of trainers/")


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """CLIP's arguments. Raises: KeyError for missing weights, others for odd shapes."""

    def count(prefix: str) -> int:
        """How many blocks there are, as "prefix0.…", "prefix1.…"."""
        names = (key.removeprefix(prefix) for key in weights if key.startswith(prefix))
        return len({name.split(".")[0] for name in names})

    def side(positions: Tensor) -> int:
        """Patches on a side of the image; the class token has a position too."""
        return math.isqrt(positions.shape[0] - 1)

    conv1 = weights["visual.conv1.weight"]
    if "visual.proj" in weights:
        patch = conv1.shape[-1]
        vision = {
            "image_resolution": side(weights["visual.positional_embedding"]) * patch,
            "vision_layers": count("visual.transformer.resblocks."),
            "vision_width": conv1.shape[0],
            "vision_patch_size": patch,
        }
    else:
        positions = weights["visual.attnpool.positional_embedding"]
        vision = {
            "image_resolution": side(positions) * 32,
            "vision_layers": tuple(count(f"visual.layer{i}.") for i in (1, 2, 3, 4)),
            "vision_width": weights["visual.layer1.0.conv1.weight"].shape[0],
            "vision_patch_size": None,
        }
    width = weights["ln_final.weight"].shape[0]
    return vision | {
        "embed_dim": weights["text_projection"].shape[1],
        "context_length": weights["positional_embedding"].shape[0],
        "vocab_size": weights["token_embedding.weight"].shape[0],
        "transformer_width": width,
        "transformer_heads": width // 64,
        "transformer_layers": count("transformer.resblocks."),
    }
