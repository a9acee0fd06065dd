"""Checkpoint files: either whole or not there, and read without running anything they hold."""

import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import Failure
from .tools import atomic_write, mkdir_if_missing

BEST = "model-best.pth.tar"


class DamagedFile(Failure):
    """A file that is truncated or no checkpoint at all."""


class _Inert:
    """Takes the place of an object of upstream's that we have no use for."""


# Upstream's warm-up pickles its successor scheduler, which holds the optimizer. Nothing else is let in.
_STAND_INS = [
    (_Inert, "torch.optim.lr_scheduler.CosineAnnealingLR"),
    (_Inert, "torch.optim.sgd.SGD"),
    (_Inert, "torch.optim.adam.Adam"),
    (lambda *args: OrderedDict(), "collections.defaultdict"),
    (dict, "builtins.dict"),
]


def epoch_file(epoch: int) -> str:
    """Name of the file that holds the state after `epoch` epochs."""
    return f"model.pth.tar-{epoch}"


def save_checkpoint(state: dict, save_dir: str, is_best: bool = False, model_name: str = "") -> None:
    """Writes `state` atomically as model.pth.tar-<epoch>, and that name into the text file `checkpoint`.

    With `is_best` also as model-best.pth.tar; with `model_name` only under that name. Raises Failure if it
    cannot be written; what was there before is then intact.
    """
    mkdir_if_missing(save_dir)
    newest = epoch_file(state["epoch"])
    for name in [model_name] if model_name else [newest, BEST] if is_best else [newest]:
        path = os.path.join(save_dir, name)
        with atomic_write(path) as file:
            torch.save(state, file)
        print(f"Checkpoint saved to {path}")
    if not model_name:
        with atomic_write(os.path.join(save_dir, "checkpoint"), "w") as file:
            file.write(newest + "\n")


def load_checkpoint(fpath: str) -> dict[str, Any]:
    """Reads a checkpoint to the CPU. Nothing in it is run: tensors and plain data are all that is taken in.

    Raises DamagedFile (a Failure) if it is truncated or altered, Failure if it is missing or names any other
    class.
    """
    try:
        file = open(fpath, "rb")  # noqa: SIM115
    except OSError as error:
        raise Failure(f"Cannot read the checkpoint {fpath}: {error.strerror}") from error
    try:
        with file, torch.serialization.safe_globals(_STAND_INS):
            if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip():
                raise ValueError("wrong checksum, which torch.load does not look at")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        refused = isinstance(error, pickle.UnpicklingError) and re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            line = f"Refused to load {fpath}: it names {refused[1]}"
            raise Failure(f"{line}, which could run code and has no place in a checkpoint") from error
        raise DamagedFile(f"{fpath} is truncated, damaged or no checkpoint") from error


def resumable(fdir: str) -> list[str]:
    """The files training can go on from: the one that the folder's `checkpoint` names, then older ones."""
    if not os.path.isdir(fdir):
        return []
    epochs = [int(found[1]) for name in os.listdir(fdir) if (found := re.fullmatch(r"model\.pth\.tar-(\d+)", name))]
    files = [epoch_file(epoch) for epoch in sorted(epochs, reverse=True)]
    pointer = os.path.join(fdir, "checkpoint")
    named = Path(pointer).read_text().strip() if os.path.isfile(pointer) else ""
    return files[files.index(named) :] if named in files else files


def newest_whole(fdirs: list[str]) -> list[dict]:
    """The checkpoints of the newest epoch that is whole in every folder, in the order of `fdirs`.

    Says which damaged files it passes over; raises Failure if no epoch is left.
    """
    for name in resumable(fdirs[0]):
        try:
            if all(name in resumable(fdir) for fdir in fdirs):
                return [load_checkpoint(os.path.join(fdir, name)) for fdir in fdirs]
        except DamagedFile as error:
            print(f"{error}: going back to the epoch before")
    raise Failure(f"There is no whole checkpoint in {fdirs[0]}. Remove the folder to train from scratch")


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> None:
    """Loads `state_dict`, cast to the model's dtypes, if it holds exactly the keys and shapes of `expected`.

    Raises Failure naming the first key that is wrong and both shapes; the model is then unchanged.
    """
    for key in [*expected, *state_dict]:
        if key not in state_dict:
            problem = f"it lacks {key}, shape {tuple(expected[key].shape)}"
        elif key not in expected:
            problem = f"the model has no {key}, shape {tuple(state_dict[key].shape)}"
        elif state_dict[key].shape != expected[key].shape:
            shapes = tuple(state_dict[key].shape), tuple(expected[key].shape)
            problem = f"{key} has shape {shapes[0]} in the file, {shapes[1]} in the model"
        else:
            continue
        raise Failure(f"{source} is of another method, architecture or config: {problem}")
    model.load_state_dict(dict(state_dict), strict=False)


def load_optim(checkpoint: dict, optimizer: Any, scheduler: Any, source: str) -> None:
    """Gives optimizer and scheduler (or None) their state back; raises Failure if it is not theirs."""
    try:
        if optimizer is not None and checkpoint.get("optimizer") is not None:
            # Which kernels compute a step is this run's choice, not the file's.
            for saved, own in zip(checkpoint["optimizer"]["param_groups"], optimizer.param_groups, strict=False):
                saved |= {key: own[key] for key in ("fused", "foreach") if key in own}
        for name, part in ("optimizer", optimizer), ("scheduler", scheduler):
            if part is not None and checkpoint.get(name) is not None:
                part.load_state_dict(checkpoint[name])
    except (ValueError, KeyError, TypeError) as error:
        line = f"Training cannot go on from {source}, as the state of its {name} is of another program or config"
        raise Failure(f"{line}. Its weights can still be tested (--eval-only)") from error


def resume_from_checkpoint(fdir: str, model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> int:
    """Loads the newest whole checkpoint in a folder and returns the number of epochs it has behind it."""
    [checkpoint] = newest_whole([fdir])
    load_weights(model, checkpoint["state_dict"], model.state_dict(), fdir)
    load_optim(checkpoint, optimizer, scheduler, fdir)
    return checkpoint["epoch"]
