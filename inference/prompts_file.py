"""prompts.safetensors: what a method has learned, and what it says of itself, in one file.

Each tensor is named by its way in the checkpoints: model, "state_dict", key, with "/" between. The
file's metadata has the model's self-description (SimpleTrainer.describe) as JSON in "about".
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dassl.engine import TrainerBase
from dassl.files import regular
from dassl.utils import Failure, atomic_write

PROMPTS = "prompts.safetensors"


def save_prompts(trainer: TrainerBase, path: str | os.PathLike) -> None:
    """Writes what the trainer's checkpoints hold of its models, bit for bit; no optimizer.

    Raises: Failure if the file cannot be written.
    """
    more = trainer.more_to_save()
    models = {
        name: {"state_dict": trainer.weights_to_save(name)} | more
        for name in trainer.get_model_names()
    }
    # Copies: safetensors refuses tensors that share memory.
    tensors = {way: tensor.detach().cpu().clone() for way, tensor in flat(models)}
    about = json.dumps(portable(trainer.describe()), ensure_ascii=False)
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={"format": "pt", "about": about}))


def portable(about: Mapping[str, Any]) -> dict[str, Any]:
    """A self-description for other machines: of CLIP's file only its name."""
    if not about.get("clip"):
        return dict(about)
    clip = about["clip"] | {"file": os.path.basename(about["clip"]["file"])}
    return about | {"clip": clip}


def read_prompts(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, dict]]:
    """What `save_prompts` wrote: the self-description, and {model: checkpoint} for the trainer.

    Raises: Failure if the file cannot be read or is another's.
    """
    try:
        regular(Path(path)).stat()  # safetensors says less of a file that is not there
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "null"))
            tensors = {way: file.get_tensor(way) for way in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise Failure(f"{path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        line = f"{path} is truncated, damaged or no safetensors file"
        raise Failure(f"{line}: export it again") from error
    if not isinstance(about, dict):
        line = f"{path} does not say what it is"
        raise Failure(f'{line} (no "about" in its metadata), so it was not exported here')
    return about, {name: {**model, "about": about} for name, model in nested(tensors).items()}


def flat(tree: Mapping | list, way: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts and lists, each with the way to it."""
    for key, inner in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        if isinstance(inner, Tensor):
            yield f"{way}{key}", inner
        else:
            yield from flat(inner, f"{way}{key}/")


def nested(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The dicts and lists that `flat` was given: dicts called 0, 1, … were a list."""
    tree: dict[str, Any] = {}
    for way, tensor in tensors.items():
        *folders, key = way.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[key] = tensor

    def lists(node: object) -> object:
        if not isinstance(node, dict):
            return node
        inner = {key: lists(value) for key, value in node.items()}
        if inner and all(k.isdecimal() and isinstance(v, dict) for k, v in inner.items()):
            return [inner[str(i)] for i in range(len(inner))]
        return inner

    return lists(tree)
