"""Checkpoint files: whole or not there, and read without running their content."""

import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler, swa_utils

from dassl.files import BEST, epoch_file, regular, resumable

from .errors import Failure
from .tools import atomic_write, mkdir_if_missing


class DamagedFile(Failure):
    """A file that is truncated or no checkpoint at all; `what` says so without advice."""

    def __init__(self, path: str):
        self.what = f"{path} is truncated, damaged or no checkpoint"
        super().__init__(f"{self.what}. Copy it again, take another epoch's, or train again")


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
# What optimizers keep in the parameters' shapes.
_LIKE_PARAMETERS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "square_avg")


def save_checkpoint(
    state: dict, save_dir: str, is_best: bool = False, model_name: str = ""
) -> None:
    """Writes `state` as model.pth.tar-<epoch>, and that name into `checkpoint`.

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
    """Reads tensors and plain data to the CPU; nothing in the file is run.

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
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused and isinstance(error, pickle.UnpicklingError):
            line = f"Refused to load {fpath}: it names {refused[1]}, which could run code"
            raise Failure(f"{line} and has no place in a checkpoint") from error
        raise DamagedFile(fpath) from error
    if not isinstance(checkpoint, dict):
        line = f"{fpath} is no checkpoint of a training run: it holds"
        raise Failure(f"{line} a {type(checkpoint).__name__}, not a dict")
    return checkpoint


def weights_of(checkpoint: dict, source: str) -> Mapping[str, Any]:
    """A checkpoint's state_dict; raises Failure if it has none."""
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        line = f"{source} is no checkpoint of a training run: it has no state_dict"
        raise Failure(f"{line}, of names and tensors")
    return weights


def newest_whole(folders: list[str]) -> list[dict]:
    """The checkpoints of the newest epoch that is whole in every folder.

    Says which damaged files it passes over; raises Failure if no epoch is left.
    """
    first = folders[0]
    for name in resumable(first):
        if not all(name in resumable(folder) for folder in folders):
            continue
        try:
            found = [load_checkpoint(os.path.join(folder, name)) for folder in folders]
        except DamagedFile as error:
            print(f"{error.what}: going back to the epoch before")
            continue
        if not all(type(state.get("epoch")) is int and state["epoch"] > 0 for state in found):
            line = f"{first}/{name} is no checkpoint of a training run: its epoch is no number"
            raise Failure(line)
        return found
    line = f"There is no whole checkpoint in {first}. Remove the folder to train from scratch"
    raise Failure(line)


def load_weights(
    model: nn.Module, state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> None:
    """Loads `state_dict`, cast to the model's dtypes, if it is as `expected`.

    Raises Failure naming the first key that is wrong and both shapes; the model is then unchanged.
    """
    for key in [*expected, *state_dict]:
        if problem := _misfit(key, state_dict, expected):
            line = f"{source} is of another method, architecture or config: {problem}"
            raise Failure(line)
        if not torch.isfinite(state_dict[key]).all():
            line = f"{key} in {source} is NaN or infinite: take the file of another epoch or run"
            raise Failure(line)
    model.load_state_dict(dict(state_dict), strict=False)


def _misfit(key: str, state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Why a file's tensor is not the one expected; "" if it is."""
    if key not in state_dict:
        return f"it lacks {key}, shape {tuple(expected[key].shape)}"
    value = state_dict[key]
    if not isinstance(value, Tensor) or value.is_meta:
        return f"{key} is no tensor"
    if key not in expected:
        return f"the model has no {key}, shape {tuple(value.shape)}"
    own = expected[key]
    if value.shape != own.shape:
        shapes = tuple(value.shape), tuple(own.shape)
        return f"{key} has shape {shapes[0]} in the file, {shapes[1]} in the model"
    if value.is_floating_point() != own.is_floating_point() or value.layout != torch.strided:
        return f"{key} has type {value.dtype} in the file, {own.dtype} in the model"
    return ""


def load_pretrained_weights(
    model: nn.Module,
    weight_path: str,
    arrange: Callable[[Mapping[str, Tensor], dict], Mapping[str, Tensor]] | None = None,
) -> None:
    """Loads a file's weights that fit by name and shape; raises Failure if none do.

    `arrange(weights, checkpoint)`, if given, gives them as the model has them.
    """
    checkpoint = load_checkpoint(weight_path)
    weights = weights_of({"state_dict": checkpoint} | checkpoint, weight_path)
    weights = {k.removeprefix("module."): v for k, v in weights.items()}
    weights = arrange(weights, checkpoint) if arrange else weights
    own = model.state_dict()

    def fits(key: str, value: object) -> bool:
        return key in own and getattr(value, "shape", None) == own[key].shape

    fitting = {k: v for k, v in weights.items() if fits(k, v)}
    if not fitting:
        raise Failure(f"No weight in {weight_path} fits the model by name and shape")
    load_weights(model, fitting, {k: own[k] for k in fitting}, weight_path)
    print(f"Loaded pretrained weights from {weight_path}")
    if left_out := sorted(weights.keys() - fitting.keys()):
        print(f"Left out, as the model has no such name or another shape: {left_out}")


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
        sets_rates = False
        if scheduler is not None and (state := checkpoint.get(name)) is not None:
            sets_rates = _load_scheduler(scheduler, state)
        name = "optimizer"
        if optimizer is not None and (state := checkpoint.get(name)) is not None:
            _load_optimizer(optimizer, state, kept={"params"} if sets_rates else {"params", "lr"})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        line = f"Training cannot go on from {source}, as the state of its {name} is of another"
        line = f"{line} program or config. Its weights can still be tested (--eval-only)"
        raise Failure(line) from error


def _load_scheduler(scheduler: Any, state: dict) -> bool:
    """Steps as often as the saved one was; returns whether it sets the rates."""
    told = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)  # of losses, which are gone
    counts = vars(scheduler).get("_step_count") == 1  # some of PyTorch's do not
    if told or not counts or not isinstance(scheduler, lr_scheduler.LRScheduler):
        scheduler.load_state_dict(state)
        return False
    steps = _steps(state)
    with warnings.catch_warnings(action="ignore"):  # the optimizer's steps were another process's
        for _ in range(steps):
            scheduler.step()
    return True


def _steps(state: dict) -> int:
    """How often a scheduler had been stepped; a warm-up's successor too."""
    if not isinstance(state, dict):
        raise TypeError("no plain state of a scheduler")
    steps = state["_step_count"] - 1 + (_steps(state["successor"]) if "successor" in state else 0)
    if not 0 <= steps <= 10**6:
        raise ValueError("no number of epochs")
    return steps


def _load_optimizer(optimizer: Optimizer, state: dict, kept: set[str]) -> None:
    """Loads what was gathered; of the settings, only those in `kept`."""
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        if _kind(saved) != _kind(own):
            raise ValueError("another optimizer's")
        saved |= {key: value for key, value in own.items() if key not in kept}
    optimizer.load_state_dict(state)
    for p, gathered in optimizer.state.items():
        like_p = [gathered[k] for k in _LIKE_PARAMETERS if gathered.get(k) is not None]
        if any(value.shape != p.shape for value in like_p):
            raise ValueError("another model's")


def _kind(group: dict) -> list:
    """What tells optimizers' parameter groups apart that keep different states."""
    return [*(key in group for key in ("betas", "momentum", "alpha")), bool(group.get("amsgrad"))]


def resume_from_checkpoint(
    fdir: str, model: nn.Module, optimizer: Any = None, scheduler: Any = None
) -> int:
    """Loads a folder's newest whole checkpoint; returns the epochs done."""
    [checkpoint] = newest_whole([fdir])
    load_weights(model, weights_of(checkpoint, fdir), model.state_dict(), fdir)
    load_optim(checkpoint, optimizer, scheduler, fdir)
    return checkpoint["epoch"]
