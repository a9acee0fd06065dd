"""The models that a trainer has registered, and their checkpoints: saved, loaded, resumed and
cleared away."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dassl.utils import (
    Failure,
    atomic_write,
    check_availability,
    load_checkpoint,
    mkdir_if_missing,
    save_checkpoint,
    tolist_if_not,
    write_json,
)
from dassl.utils.checkpoint import (
    BEST,
    epoch_file,
    load_optim,
    load_weights,
    newest_whole,
    resumable,
    weights_of,
)

from .record import EPOCHS, read_epochs

NOT_FINITE = (
    "Choose a lower OPTIM.LR or a wider PREC, and another --output-dir for it; after its first epoch a run can be "
    "gone on from there, with --resume and its folder"
)
# Buffers of prompt learners that follow from the class names, so they say nothing about what was
# learned.
DERIVED_BUFFERS = ("token_prefix", "token_suffix", "token_middle")


class Checkpoints:
    """Named models with their optimizers and schedulers, and the files of them in
    <folder>/<name>/."""

    def __init__(self):
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self.loaded: dict[str, Any] | None = (
            None  # what load_model has loaded: folder, epoch asked for, files
        )

    def register_model(
        self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None
    ) -> None:
        """Makes a model known for modes, steps and checkpoints; its files go to
        <output-dir>/<name>/."""
        assert name not in self._models, f"a model {name} is registered already"
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        if names is None:
            return list(self._models)
        for name in tolist_if_not(names):
            check_availability(name, self._models, "model")
        return tolist_if_not(names)

    def weights_to_save(self, name: str) -> Mapping[str, Tensor]:
        """What a checkpoint of model `name` holds, and so what one must hold to be loaded."""
        return self._models[name].state_dict()

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Drops or renames what a file holds beyond `weights_to_save`, e.g. upstream's frozen
        weights."""
        return state_dict

    def state_to_resume(self) -> dict[str, Any]:
        """What a resumed run needs beyond models, optimizers and schedulers: tensors and plain
        data."""
        return {}

    def resume_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state_to_resume` gave."""

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Writes a checkpoint of every model after epoch `epoch` (from 0).

        Raises Failure if it cannot be written, or rather than save a NaN.
        """
        for model in self._models.values():
            for key, p in model.named_parameters():
                if p.requires_grad and not torch.isfinite(p).all():
                    line = f"Epoch {epoch + 1} left {key} NaN or infinite, so it is not saved"
                    raise Failure(f"{line}. {NOT_FINITE}")
        for name in self._models:
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self.weights_to_save(name),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
            }
            if extra := self.state_to_resume():
                state["trainer"] = extra
            save_checkpoint(
                state, os.path.join(directory, name), is_best=is_best, model_name=model_name
            )

    def resume_model_if_exist(self, directory: str) -> int:
        """Loads the newest whole checkpoints in `directory`; returns the epochs done, 0 if none is
        there."""
        names = self.get_model_names()
        folders = [os.path.join(directory, name) for name in names]
        if not names or not all(resumable(folder) for folder in folders):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        checkpoints = newest_whole(folders)
        for name, folder, checkpoint in zip(names, folders, checkpoints, strict=True):
            self._load(name, checkpoint, folder)
            load_optim(checkpoint, self._optims[name], self._scheds[name], folder)
        try:
            self.resume_state(checkpoints[0].get("trainer", {}))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            line = f"Training cannot go on from {folders[0]}, as its trainer's state is of another program or config"
            raise Failure(line) from error
        print(f"Epochs done: {checkpoints[0]['epoch']}")
        return checkpoints[0]["epoch"]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Loads the weights saved after `epoch` epochs (None: the best ones, else the newest) into
        every model.

        Raises Failure, naming the path or the first wrong key, if a file is missing, damaged or
        does not fit.
        """
        if not directory:
            print("Note: no model is loaded, as no folder to load from is given")
            return
        files = {}
        for name in self._models:
            folder = os.path.join(directory, name)
            have = resumable(folder)
            file = epoch_file(epoch) if epoch is not None else next(iter(have), BEST)
            if epoch is None and os.path.isfile(os.path.join(folder, BEST)):
                file = BEST
            path = os.path.join(folder, file)
            if not os.path.isfile(path):
                if not have:
                    raise Failure(
                        f"No model in {folder}: train it first, or load from another folder (--model-dir)"
                    )
                listed = ", ".join(f"{f} (--load-epoch {f.split('-')[1]})" for f in have)
                raise Failure(f"No model at {path}. The folder holds {listed}")
            checkpoint = load_checkpoint(path)
            self._load(name, checkpoint, path)
            about = ", ".join(f"{key}={checkpoint.get(key)}" for key in ("epoch", "val_result"))
            print(f"Load {path} to {name} ({about})")
            with open(path, "rb") as opened:
                files[name] = file, hashlib.file_digest(opened, "sha256").hexdigest()
        self.loaded = {"folder": directory, "epoch": epoch, "files": files}

    def _load(self, name: str, checkpoint: dict, source: str) -> None:
        def learned(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                k: v
                for k, v in weights.items()
                if not k.rpartition(".")[2].startswith(DERIVED_BUFFERS)
            }

        state_dict = learned(self.clean_state_dict(name, weights_of(checkpoint, source)))
        load_weights(self._models[name], state_dict, learned(self.weights_to_save(name)), source)

    # -- a run's: with SimpleTrainer's cfg, output_dir and epochs

    def _resume(self) -> None:
        """From what the output folder holds, or else from cfg.RESUME: sets start_epoch, and
        best_result."""
        names = self.get_model_names()
        begun = any(resumable(os.path.join(self.output_dir, name)) for name in names)
        source = self.output_dir if begun or not self.cfg.RESUME else self.cfg.RESUME
        if begun and self.cfg.RESUME not in ("", self.output_dir):
            print(
                f"Note: {self.output_dir} has checkpoints of its own, which count, not those of {self.cfg.RESUME}"
            )
        self.start_epoch = self.resume_model_if_exist(source)
        if self.cfg.RESUME and not self.start_epoch:
            raise Failure(
                f"There is nothing to resume in {source}: it holds no checkpoint of {', '.join(names)}"
            )
        if self.start_epoch > self.max_epoch:
            line = f"{source} has {self.start_epoch} epochs behind it, more than OPTIM.MAX_EPOCH {self.max_epoch}"
            raise Failure(f"{line}: give at least as many, or another --output-dir")
        if source != self.output_dir:
            self._take_over(source)
        if self.start_epoch and self.cfg.TEST.FINAL_MODEL == "best_val":
            self._read_best_result()

    def _take_over(self, source: str) -> None:
        """Gives the output folder what was resumed elsewhere, so that it can be resumed and tested
        by itself."""
        for name in self.get_model_names() if self.cfg.TEST.FINAL_MODEL == "best_val" else ():
            best = os.path.join(source, name, BEST)
            if os.path.isfile(best):
                mkdir_if_missing(os.path.join(self.output_dir, name))
                with (
                    open(best, "rb") as file,
                    atomic_write(os.path.join(self.output_dir, name, BEST)) as copy,
                ):
                    copy.write(file.read())
        write_json(read_epochs(source), os.path.join(self.output_dir, EPOCHS))
        self.save_model(self.start_epoch - 1, self.output_dir)

    def _read_best_result(self) -> None:
        best = os.path.join(self.output_dir, self.get_model_names()[0], BEST)
        if not os.path.isfile(best):
            print(
                f"Note: no best model of the first {self.start_epoch} epochs was kept; the later ones are compared"
            )
            return
        self.best_result = load_checkpoint(best).get("val_result")
        if not isinstance(self.best_result, (int, float)):
            raise Failure(
                f"{best} does not say how good it was on the validation set: remove it to choose anew"
            )

    def _remove_rolling(self) -> None:
        """Keeps the last two checkpoints while training, so that one may be damaged, then only the
        last.

        Those at multiples of CHECKPOINT_FREQ stay.
        """
        done, freq = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        for epoch in (done - 2, done - 1) if done == self.max_epoch else (done - 2,):
            if freq > 0 and epoch % freq == 0:
                continue
            for name in self.get_model_names():
                path = os.path.join(self.output_dir, name, epoch_file(epoch))
                if os.path.isfile(path):
                    os.remove(path)
