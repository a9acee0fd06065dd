"""A trainer's models: saved, loaded, resumed, and old files cleared away."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dassl.files import BEST, EPOCHS, SCALARS, epoch_file, model_to_load, resumable
from dassl.utils import (
    Failure,
    atomic_write,
    check_availability,
    load_checkpoint,
    mkdir_if_missing,
    ranks,
    save_checkpoint,
    tolist_if_not,
    write_json,
)
from dassl.utils.checkpoint import load_optim, load_weights, newest_whole, weights_of

from .record import read_epochs

NOT_FINITE = (
    "Choose a lower OPTIM.LR or a wider PREC, and another --output-dir for it; after its first "
    "epoch a run can be gone on from there, with --resume and its folder"
)

Names = str | list[str] | None  # of models; None: all


class Checkpoints:
    """Named models, optimizers and schedulers; files are in <folder>/<name>/."""

    # Beginnings of names: buffers made from the classes, neither loaded nor missed.
    derived_buffers: tuple[str, ...] = ()
    # The saved tensors that have a row for each class, which bind a model to its classes: () if
    # there are none, None if the method does not say.
    class_rows: tuple[str, ...] | None = None

    def __init__(self):
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        # what load_model has loaded: folder, epoch asked for, files
        self.loaded: dict[str, Any] | None = None
        self.trained: Mapping[str, Any] = {}  # what the loaded file says of itself, see describe

    def register_model(
        self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None
    ) -> None:
        """Makes a model known for modes, steps and checkpoints."""
        assert name not in self._models, f"a model {name} is registered already"
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """The names given, or all; raises UsageError for one not registered."""
        if names is None:
            return list(self._models)
        for name in tolist_if_not(names):
            check_availability(name, self._models, "model")
        return tolist_if_not(names)

    # -- what a trainer may replace

    def describe(self) -> dict[str, Any]:
        """What a file says of its model, in plain data; with "classnames", the present ones."""
        return {}

    def weights_to_save(self, name: str) -> Mapping[str, Tensor]:
        """What a checkpoint of model `name` holds, and must hold to be loaded."""
        return self._models[name].state_dict()

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Drops what a file has beyond `weights_to_save`, or renames it."""
        return state_dict

    def state_to_resume(self) -> dict[str, Any]:
        """What else a resumed run needs: tensors and plain data."""
        return {}

    def resume_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state_to_resume` gave."""

    def more_to_save(self) -> dict[str, Any]:
        """What else a file holds, for tests and resumed runs alike: tensors and plain data."""
        return {}

    def load_more(self, checkpoint: dict[str, Any], source: str) -> None:
        """Takes that back, when the weights are loaded; `source` names the file."""

    def check_goes_on(self, checkpoint: Mapping[str, Any], source: str) -> None:
        """Raises Failure if the training that saved a checkpoint is not this one."""
        classes, images = about_of(checkpoint).get("classnames"), checkpoint.get("images")
        was = ""
        if classes and classes != self.describe().get("classnames"):
            was = "its classes were others, or in another order"
        elif images and self._train_images() not in (images, ""):
            was = "the images it was trained on were others"
        if was:
            line = f"Training cannot go on from {source}: {was}. Give it its data as they were"
            raise Failure(f"{line}, or another --output-dir (OUTPUT)")

    # -- files of any folder

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None,
        model_name: str = "",
    ) -> None:  # fmt: skip
        """Writes a checkpoint of every model after epoch `epoch` (from 0).

        Of several processes the first does. Raises Failure if it cannot be written, or rather than
        save a NaN.
        """
        for model in self._models.values():
            for key, p in model.named_parameters():
                if p.requires_grad and not torch.isfinite(p).all():
                    line = f"Epoch {epoch + 1} left {key} NaN or infinite, so it is not saved"
                    raise Failure(f"{line}. {NOT_FINITE}")
        if not ranks.first():
            return
        about = self.describe()
        for name in self._models:
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self.weights_to_save(name),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                "about": about,
                "images": self._train_images(),
            } | self.more_to_save()
            if extra := self.state_to_resume():
                state["trainer"] = extra
            folder = os.path.join(directory, name)
            save_checkpoint(state, folder, is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Loads a folder's newest whole checkpoints; returns the epochs done."""
        names = self.get_model_names()
        folders = [os.path.join(directory, name) for name in names]
        if not names or not all(resumable(folder) for folder in folders):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        checkpoints = newest_whole(folders)
        for name, folder, checkpoint in zip(names, folders, checkpoints, strict=True):
            self.check_goes_on(checkpoint, folder)
            self.load_checkpoint(name, checkpoint, folder)
            load_optim(checkpoint, self._optims[name], self._scheds[name], folder)
        try:
            self.resume_state(checkpoints[0].get("trainer", {}))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            line = f"Training cannot go on from {folders[0]}, as its trainer's state"
            raise Failure(f"{line} is of another program or config") from error
        print(f"Epochs done: {checkpoints[0]['epoch']}")
        return checkpoints[0]["epoch"]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Loads the weights after `epoch` epochs (None: the best ones, else the newest).

        Raises Failure, naming the path or the first wrong key, if a file is missing, damaged or
        does not fit.
        """
        if not directory:
            print("Note: no model is loaded, as no folder to load from is given")
            return
        files = {}
        for name in self._models:
            file = _file_to_load(os.path.join(directory, name), epoch)
            path = os.path.join(directory, name, file)
            checkpoint = load_checkpoint(path)
            self.load_checkpoint(name, checkpoint, path)
            about = ", ".join(f"{key}={checkpoint.get(key)}" for key in ("epoch", "val_result"))
            print(f"Load {path} to {name} ({about})")
            with open(path, "rb") as opened:
                files[name] = file, hashlib.file_digest(opened, "sha256").hexdigest()
        self.loaded = {"folder": directory, "epoch": epoch, "files": files}

    def load_checkpoint(self, name: str, checkpoint: dict, source: str) -> None:
        """Loads what `save_model` wrote of model `name`; `source` says where it is from.

        Raises Failure, naming the source, if it does not fit.
        """
        self.trained = about_of(checkpoint)
        state_dict = self.clean_state_dict(name, weights_of(checkpoint, source))
        state_dict = self._without_derived(state_dict)
        state_dict = self.rows_of_own_classes(state_dict, self.trained, source)
        expected = self._without_derived(self.weights_to_save(name))
        load_weights(self._models[name], state_dict, expected, source)
        self.load_more(checkpoint, source)

    def rows_of_own_classes(
        self, state_dict: Mapping[str, Tensor], trained: Mapping[str, Any], source: str
    ) -> Mapping[str, Tensor]:
        """A file's tensors, those with a row for each class in the order of the present classes.

        `trained` is what the file says of itself. Raises Failure if there are classes that it has
        no rows for.
        """
        theirs = trained.get("classnames")
        if self.class_rows == () or (self.class_rows or theirs) is None:
            return state_dict
        ours = self.describe().get("classnames")
        if theirs == ours:
            return state_dict
        if self.class_rows is None or theirs is None:
            print(f"Note: {unknown_classes(source, theirs)}")
            return state_dict
        rows = rows_of(theirs, ours, source)
        return {
            key: value[rows] if key in self.class_rows and _has_rows(value, len(theirs)) else value
            for key, value in state_dict.items()
        }

    def _train_images(self) -> str:
        """What tells the training images from others; "" if nothing does, as where chance picks."""
        by_chance = getattr(self, "cfg", None) is not None and self.cfg.SEED < 0
        return "" if by_chance else getattr(getattr(self, "dm", None), "train_images", "")

    def _without_derived(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        buffers = self.derived_buffers
        return {k: v for k, v in weights.items() if not k.rpartition(".")[2].startswith(buffers)}

    # -- a run's: with SimpleTrainer's cfg, output_dir and epochs

    def _resume(self) -> None:
        """Resumes from the output folder or cfg.RESUME; sets start_epoch and best_result."""
        names, own, resumed = self.get_model_names(), self.output_dir, self.cfg.RESUME
        begun = any(resumable(os.path.join(own, name)) for name in names)
        source = own if begun or not resumed else resumed
        if begun and resumed not in ("", own):
            print(f"Note: {own} has checkpoints of its own, which count, not those of {resumed}")
        self.start_epoch = self.resume_model_if_exist(source)
        if resumed and not self.start_epoch:
            line = f"There is nothing to resume in {source}"
            raise Failure(f"{line}: it holds no checkpoint of {', '.join(names)}")
        if self.start_epoch > self.max_epoch:
            line = f"{source} has {self.start_epoch} epochs behind it, more than OPTIM.MAX_EPOCH"
            raise Failure(
                f"{line} {self.max_epoch}: give at least as many, or another --output-dir"
            )
        least, most = -ranks.greatest(-self.start_epoch), ranks.greatest(self.start_epoch)
        if least != most:
            line = f"Of {source} some processes see {least} epochs done, others {most}"
            raise Failure(f"{line}: it must be a folder that all machines share")
        if source != own and ranks.first():
            self._take_over(source)
        ranks.wait()
        if self.start_epoch and self.start_epoch == self.max_epoch:
            self.epoch = self.max_epoch - 1
            if ranks.first():  # a kill may have come between the last file and this
                self._remove_rolling()
        if self.start_epoch and self.cfg.TEST.FINAL_MODEL == "best_val":
            self._read_best_result()

    def _take_over(self, source: str) -> None:
        """Copies what was resumed elsewhere into the output folder, over an earlier start's."""
        best = self.get_model_names() if self.cfg.TEST.FINAL_MODEL == "best_val" else ()
        for name in (*(os.path.join(name, BEST) for name in best), SCALARS):
            there, here = (os.path.join(folder, name) for folder in (source, self.output_dir))
            if os.path.isfile(there):
                mkdir_if_missing(os.path.dirname(here))
                with open(there, "rb") as file, atomic_write(here) as copy:
                    copy.write(file.read())
            elif name == SCALARS and os.path.isfile(here):
                os.remove(here)
        write_json(read_epochs(source), os.path.join(self.output_dir, EPOCHS))
        self.save_model(self.start_epoch - 1, self.output_dir)

    def _read_best_result(self) -> None:
        best = os.path.join(self.output_dir, self.get_model_names()[0], BEST)
        if not os.path.isfile(best):
            line = f"Note: no best model of the first {self.start_epoch} epochs was kept"
            print(f"{line}; the later ones are compared")
            return
        self.best_result = load_checkpoint(best).get("val_result")
        if not isinstance(self.best_result, (int, float)):
            line = f"{best} does not say how good it was on the validation set"
            raise Failure(f"{line}: remove it to choose anew")

    def _remove_rolling(self) -> None:
        """Keeps the last two checkpoints in training (one may be damaged), then the last.

        Those at multiples of CHECKPOINT_FREQ stay.
        """
        if not ranks.first():
            return
        done, freq = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        for epoch in (done - 2, done - 1) if done == self.max_epoch else (done - 2,):
            if freq > 0 and epoch % freq == 0:
                continue
            for name in self.get_model_names():
                path = os.path.join(self.output_dir, name, epoch_file(epoch))
                if os.path.isfile(path):
                    os.remove(path)


def about_of(checkpoint: Mapping) -> Mapping[str, Any]:
    """What a checkpoint says of its model; nothing if it is an old one, or of other code."""
    about = checkpoint.get("about")
    return about if isinstance(about, Mapping) else {}


def unknown_classes(source: str, theirs: list[str] | None) -> str:
    """What is to be said of a model that is perhaps bound to other classes than the present."""
    if theirs is None:
        return f"{source} does not name its classes; they are taken to be these, in this order"
    line = f"{source} was trained on other classes ({theirs[0]}, …) than it is used for"
    return f"{line}, and its trainer does not say (class_rows) whether it is bound to them"


def rows_of(theirs: list[str], ours: list[str], source: str) -> list[int]:
    """Where each of our classes is among theirs; raises Failure if one is not, or twice."""
    bound = f"{source} is bound to the {len(theirs)} classes it was trained on ({theirs[0]}, …)"
    for name in ours:
        if name not in theirs:
            raise Failure(f"{bound}: it knows no {name!r}")
        if theirs.count(name) > 1:
            raise Failure(f"{bound}, of which two are called {name!r}: keep their order")
    return [theirs.index(name) for name in ours]


def _has_rows(value: object, count: int) -> bool:
    """Whether it is a tensor of that many; what is not is refused when it is loaded."""
    return isinstance(value, Tensor) and value.shape[:1] == (count,)


def _file_to_load(folder: str, epoch: int | None) -> str:
    """The file of an epoch, or the best or newest; raises Failure without one."""
    file = epoch_file(epoch) if epoch is not None else model_to_load(folder) or BEST
    if os.path.isfile(path := os.path.join(folder, file)):
        return file
    if not (have := resumable(folder)):
        line = f"No model in {folder}: train it first, or load from another folder (--model-dir)"
        raise Failure(line)
    listed = ", ".join(f"{name} (--load-epoch {name.split('-')[1]})" for name in have)
    raise Failure(f"No model at {path}. The folder holds {listed}")
