"""Checkpoint files: either whole or not there, and read without running anything they hold."""

import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler, swa_utils

from dassl.files import regular

from .errors import Failure
from .tools import atomic_write, mkdir_if_missing

BEST = "model-best.pth.tar"


class DamagedFile(Failure):
    """A file that is truncated or no checkpoint at all."""


class _Inert:
    """Takes the place of an object of upstream's that we have no use for."""


# Upstream's warm-up pickles its successor scheduler, which holds the optimizer: PyTorch's or
# Dassl's own.
_OPTIM = [
    kind
    for module in (torch.optim, lr_scheduler, swa_utils)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, (Optimizer, lr_scheduler.LRScheduler))
]
_DASSL = ("radam.RAdam", "radam.PlainRAdam", "radam.AdamW", "lr_scheduler.ConstantWarmupScheduler",
          "lr_scheduler.LinearWarmupScheduler")  # fmt: skip
# Nothing else is let in.
_STAND_INS = [
    *((_Inert, f"{kind.__module__}.{kind.__qualname__}") for kind in _OPTIM),
    *((_Inert, f"dassl.optim.{name}") for name in _DASSL),
    (lambda *args: OrderedDict(), "collections.defaultdict"),
    (dict, "builtins.dict"),
]


def epoch_file(epoch: int) -> str:
    """Name of the file that holds the state after `epoch` epochs."""
    return f"model.pth.tar-{epoch}"


def save_checkpoint(
    state: dict, save_dir: str, is_best: bool = False, model_name: str = ""
) -> None:
    """Writes `state` atomically as model.pth.tar-<epoch>, and that name into the text file
    `checkpoint`.

    With `is_best` also as model-best.pth.tar; with `model_name` only under that name. Raises
    Failure if it cannot be written; what was there before is then intact.
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
    """Reads a checkpoint to the CPU. Nothing in it is run: tensors and plain data are all that is
    taken in.

    Raises DamagedFile (a Failure) if it is truncated or altered, Failure if it is missing, holds
    something else or names any other class.
    """
    try:
        file = open(regular(fpath), "rb")  # noqa: SIM115
    except OSError as error:
        raise Failure(f"Cannot read the checkpoint {fpath}: {error.strerror}") from error
    try:
        with file, torch.serialization.safe_globals(_STAND_INS):
            if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip():
                raise ValueError("wrong checksum, which torch.load does not look at")
            file.seek(0)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        refused = isinstance(error, pickle.UnpicklingError) and re.search(
            r"GLOBAL (\S+)", str(error)
        )
        if refused:
            line = f"Refused to load {fpath}: it names {refused[1]}"
            raise Failure(
                f"{line}, which could run code and has no place in a checkpoint"
            ) from error
        raise DamagedFile(f"{fpath} is truncated, damaged or no checkpoint") from error
    if not isinstance(checkpoint, dict):
        raise Failure(
            f"{fpath} is no checkpoint of a training run: it holds a {type(checkpoint).__name__}, not a dict"
        )
    return checkpoint


def weights_of(checkpoint: dict, source: str) -> Mapping[str, Any]:
    """A checkpoint's state_dict; raises Failure if it has none."""
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise Failure(
            f"{source} is no checkpoint of a training run: it has no state_dict, of names and tensors"
        )
    return weights


def resumable(fdir: str) -> list[str]:
    """The files training can go on from: the one that the folder's `checkpoint` names, then older
    ones."""
    if not os.path.isdir(fdir):
        return []
    epochs = [
        int(found[1])
        for name in os.listdir(fdir)
        if (found := re.fullmatch(r"model\.pth\.tar-(\d+)", name))
    ]
    files = [epoch_file(epoch) for epoch in sorted(epochs, reverse=True)]
    pointer = os.path.join(fdir, "checkpoint")
    named = Path(pointer).read_text(errors="replace").strip() if os.path.isfile(pointer) else ""
    return files[files.index(named) :] if named in files else files


def newest_whole(fdirs: list[str]) -> list[dict]:
    """The checkpoints of the newest epoch that is whole in every folder, in the order of `fdirs`.

    Says which damaged files it passes over; raises Failure if no epoch is left.
    """
    for name in resumable(fdirs[0]):
        try:
            if all(name in resumable(fdir) for fdir in fdirs):
                found = [load_checkpoint(os.path.join(fdir, name)) for fdir in fdirs]
                if not all(
                    type(epoch := checkpoint.get("epoch")) is int and epoch > 0
                    for checkpoint in found
                ):
                    raise Failure(
                        f"{fdirs[0]}/{name} is no checkpoint of a training run: its epoch is no number"
                    )
                return found
        except DamagedFile as error:
            print(f"{error}: going back to the epoch before")
    raise Failure(
        f"There is no whole checkpoint in {fdirs[0]}. Remove the folder to train from scratch"
    )


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> None:
    """Loads `state_dict`, cast to the model's dtypes, if it holds exactly the keys and shapes of
    `expected`.

    Raises Failure naming the first key that is wrong and both shapes; the model is then unchanged.
    """
    for key in [*expected, *state_dict]:
        value = state_dict.get(key)
        if key not in state_dict:
            problem = f"it lacks {key}, shape {tuple(expected[key].shape)}"
        elif not isinstance(value, Tensor) or value.is_meta:
            problem = f"{key} is no tensor"
        elif key not in expected:
            problem = f"the model has no {key}, shape {tuple(value.shape)}"
        elif value.shape != expected[key].shape:
            shapes = tuple(value.shape), tuple(expected[key].shape)
            problem = f"{key} has shape {shapes[0]} in the file, {shapes[1]} in the model"
        elif (
            value.is_floating_point() != expected[key].is_floating_point()
            or value.layout != torch.strided
        ):
            problem = (
                f"{key} has type {value.dtype} in the file, {expected[key].dtype} in the model"
            )
        elif not torch.isfinite(value).all():
            raise Failure(
                f"{key} in {source} is NaN or infinite: take the file of another epoch or run"
            )
        else:
            continue
        raise Failure(f"{source} is of another method, architecture or config: {problem}")
    model.load_state_dict(dict(state_dict), strict=False)


def load_optim(checkpoint: dict, optimizer: Any, scheduler: Any, source: str) -> None:
    """Takes optimizer and scheduler (or None), just built, to where a checkpoint's were.

    The file says what has been gathered (momentum, …) and how many steps the scheduler has behind
    it; rates and all other settings are the present ones. So with another number of epochs or
    another rate a training goes on with the schedule of that, and with the same ones as if it had
    never stopped.

    Raises Failure if the file's state is not theirs.
    """
    name = "scheduler"
    try:
        kept = {"params", "lr"}
        if scheduler is not None and (state := checkpoint.get(name)) is not None:
            plain = isinstance(scheduler, lr_scheduler.LRScheduler)
            if plain and not isinstance(
                scheduler, lr_scheduler.ReduceLROnPlateau
            ):  # which has to be told of losses
                _catch_up(scheduler, _steps(state))
                kept = {"params"}
            else:
                scheduler.load_state_dict(state)
        name = "optimizer"
        if optimizer is not None and (state := checkpoint.get(name)) is not None:
            for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
                if _kind(saved) != _kind(own):
                    raise ValueError("another optimizer's")
                saved |= {key: value for key, value in own.items() if key not in kept}
            optimizer.load_state_dict(state)
            for p, gathered in optimizer.state.items():
                like_p = [
                    gathered[key] for key in _LIKE_PARAMETERS if gathered.get(key) is not None
                ]
                if any(value.shape != p.shape for value in like_p):
                    raise ValueError("another model's")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        line = f"Training cannot go on from {source}, as the state of its {name} is of another program or config"
        raise Failure(f"{line}. Its weights can still be tested (--eval-only)") from error


_LIKE_PARAMETERS = (
    "momentum_buffer",
    "exp_avg",
    "exp_avg_sq",
    "square_avg",
)  # in the parameters' shapes


def _kind(group: dict) -> list:
    """What tells optimizers' parameter groups apart that keep different states."""
    return [*(key in group for key in ("betas", "momentum", "alpha")), bool(group.get("amsgrad"))]


def _steps(state: dict) -> int:
    """How often a scheduler had been stepped; a warm-up hands its steps on to its successor."""
    if not isinstance(state, dict):
        raise TypeError("no plain state of a scheduler")
    steps = state["_step_count"] - 1 + (_steps(state["successor"]) if "successor" in state else 0)
    if not 0 <= steps <= 10**6:
        raise ValueError("no number of epochs")
    return steps


def _catch_up(scheduler: lr_scheduler.LRScheduler, steps: int) -> None:
    with warnings.catch_warnings(action="ignore"):  # the optimizer's steps were another process's
        for _ in range(steps):
            scheduler.step()


def resume_from_checkpoint(
    fdir: str, model: nn.Module, optimizer: Any = None, scheduler: Any = None
) -> int:
    """Loads the newest whole checkpoint in a folder and returns the number of epochs it has behind
    it."""
    [checkpoint] = newest_whole([fdir])
    load_weights(model, weights_of(checkpoint, fdir), model.state_dict(), fdir)
    load_optim(checkpoint, optimizer, scheduler, fdir)
    return checkpoint["epoch"]
