"""OpenAI's API: load a model by name, and tokenize."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dassl.utils import atomic_write, expand_user
from dassl.utils.errors import UsageError
from dassl.utils.lock import locked

from .download import sha256_of
from .huggingface import QUICK_GELU, activation_of
from .model import CLIP
from .simple_tokenizer import SimpleTokenizer

# Trainers of the family use _MODELS and build_model from here, as in OpenAI's clip.clip.
from .weights import CACHE, build_model, find_weights, read_state_dict
from .weights import MODELS as _MODELS

__all__ = ["available_models", "load", "tokenize"]

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

_tokenizer = SimpleTokenizer()


def available_models() -> list[str]:
    """Names that `load` takes."""
    return list(_MODELS)


def _download(url: str, root: str | None = None) -> str:
    """The local file of an address of `_MODELS`, as CoOp's trainers ask for it.

    Raises: as `find_weights`.
    """
    root = root or CACHE
    path = find_weights(url, root=root)
    if (activation := activation_of(path)) != QUICK_GELU:
        line = f"{path}: its activation is {activation}, and who asks for the file"
        raise UsageError(f"{line} computes QuickGELU; take clip.load")
    if path.suffix not in (".safetensors", ".bin"):
        return str(path)
    # They open it with torch.jit.load, else torch.load, and want OpenAI's names: the small CLIP,
    # say, is unpacked for that.
    target = Path(expand_user(root)) / f"{path.stem}-{sha256_of(path)[:12]}.pt"
    if not target.exists():
        with locked(target), atomic_write(target) as f:
            torch.save(read_state_dict(path), f)
    return str(target)


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
    activation: str = "",
) -> tuple[CLIP, object]:
    """A model by name or path, in eval mode, and its transform of PIL images.

    As OpenAI's: in the weights' own precision on CUDA, in float32 on a CPU.

    activation: see `activation_of`, of which it is `given`.

    Raises: as `find_weights`, `activation_of` and `read_state_dict`.
    """
    from torchvision.transforms import v2  # slow to import

    if jit:
        raise UsageError("clip.load(jit=True) is not supported; the model is a plain module")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    file = find_weights(name, root=download_root or CACHE)
    model = build_model(read_state_dict(file), activation_of(file, activation)).to(device)
    if device.type == "cpu":
        model.float()
    size = model.visual.input_resolution
    steps = [
        v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
        v2.CenterCrop(size),
        v2.RGB(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(PIXEL_MEAN, PIXEL_STD),
    ]
    return model, v2.Compose(steps)


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
) -> Tensor:
    """Token ids (N, context_length), int64 on the CPU: start, the text, end, zeros.

    Raises: RuntimeError, as OpenAI's, for a text that is too long, unless truncated.
    """
    texts = [texts] if isinstance(texts, str) else texts
    eot = _tokenizer.eot_token_id
    result = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(result, texts, strict=True):
        tokens = [_tokenizer.sot_token_id, *_tokenizer.encode(text), eot]
        if len(tokens) > context_length:
            if not truncate:
                raise RuntimeError(f"Input {text} is too long for context length {context_length}")
            tokens = [*tokens[: context_length - 1], eot]
        row[: len(tokens)] = torch.tensor(tokens)
    return result
