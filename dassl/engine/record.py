"""What a run leaves for programs to read: results.json beside its log.txt.

Each epoch's loss and seconds are in epochs.json as soon as the epoch has ended, before its
checkpoint is saved, so a resumed run has those of all the epochs it has behind it. They are not in
the checkpoints: there two equal trainings would differ.
"""

import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dassl.utils import Failure, read_json, write_json
from dassl.utils.logger import Logger

if TYPE_CHECKING:
    from .trainer import SimpleTrainer

FORMAT = 1
RESULTS, EPOCHS = "results.json", "epochs.json"
PACKAGES = ("torchvision", "numpy", "scikit-learn", "scipy", "Pillow")
Epoch = dict[
    str, float | int | None
]  # loss (None: the trainer logs none of that name), seconds, images


class Recorder:
    """Told by a trainer what happens, it writes the run's files. Without a trainer it only takes
    the time."""

    def __init__(self, trainer: "SimpleTrainer | None" = None):
        self.trainer = trainer
        self.trained = self.in_training = False
        self.epochs: list[Epoch] = []
        self.loss: float | None = None  # the epoch's mean so far
        self.images = 0
        self.test_from = "images"  # or, kept by an earlier test, crops or features
        commit()  # now, not when the run has ended and somebody has committed more

    # -- training

    def training_begins(self, start_epoch: int) -> None:
        """Takes over the epochs that a resumed run has behind it; those nothing is known of are
        None."""
        self.trained = self.in_training = True
        self.epochs = []
        if start_epoch and self.trainer:
            self.epochs = read_epochs(self.trainer.cfg.OUTPUT_DIR)[:start_epoch]
        unknown: Epoch = {"loss": None, "seconds": None, "images": 0}
        self.epochs += [unknown] * (start_epoch - len(self.epochs))

    def epoch_begins(self) -> None:
        self.loss, self.images, self.start = None, 0, time.monotonic()

    def batch(self, parts: tuple) -> None:
        """Counts the images of what forward_backward is given; batches of another form count as
        none."""
        self.images += sum(
            len(p["label"]) for p in parts if isinstance(p, Mapping) and "label" in p
        )

    def epoch_ends(self) -> None:
        """To be called before the epoch's checkpoint is saved: what has a checkpoint has its
        numbers too."""
        self.epochs.append(
            {"loss": self.loss, "seconds": time.monotonic() - self.start, "images": self.images}
        )
        if self.trainer:
            write_json(self.epochs, os.path.join(self.trainer.cfg.OUTPUT_DIR, EPOCHS))

    def training_ends(self) -> None:
        self.in_training = False

    # -- the test

    def tested(
        self, metrics: dict[str, float], per_class: dict[str, float], seconds: float
    ) -> None:
        """Writes results.json, unless this was a validation during training.

        Where there is no output folder, no log was written either, and no record is. Raises Failure
        if it cannot be written.
        """
        if self.in_training or not self.trainer or not os.path.isdir(self.trainer.cfg.OUTPUT_DIR):
            return
        epochs = self.epochs if self.trained else read_epochs(self.trainer.cfg.OUTPUT_DIR)
        known = [e for e in epochs if e["seconds"]]
        train_seconds = sum(e["seconds"] for e in known)
        train_images = sum(e["images"] for e in known)
        result = {
            "metrics": metrics,
            "per_class": per_class,
            "loss": [e["loss"] for e in epochs],
            "epoch_seconds": [e["seconds"] for e in epochs],
            "train_seconds": train_seconds if known else None,
            "test_seconds": seconds,
            "test_from": self.test_from,
            "images_per_second": {
                "train": train_images / train_seconds if train_images else None,
                "test": metrics["total"] / seconds if self.test_from != "features" else None,
            },
        }
        write_json(
            self._about() | result | _end(), os.path.join(self.trainer.cfg.OUTPUT_DIR, RESULTS)
        )

    def _about(self) -> dict[str, Any]:
        """What was run, where, and with what."""
        cfg, models = self.trainer.cfg, self.trainer._models.values()
        learned = {
            id(p): p.numel() for model in models for p in model.parameters() if p.requires_grad
        }
        return {
            "format": FORMAT,
            "trainer": cfg.TRAINER.NAME,
            "dataset": cfg.DATASET.NAME,
            "seed": self.trainer.seed,
            "shots": cfg.DATASET.NUM_SHOTS,
            "subsample": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),
            "config": cfg,
            "command": shlex.join(["python", *sys.argv]),
            "log": os.path.basename(sys.stdout.file.name)
            if isinstance(sys.stdout, Logger)
            else None,
            **commit(),
            "versions": versions(),
            "machine": platform.platform(),
            "device": device_name(torch.device(self.trainer.device)),
            "eval_only": not self.trained,
            "model": self._model(),
            "parameters": sum(learned.values()),
        } | self.trainer.about()

    def _model(self) -> dict[str, Any] | None:
        """What an --eval-only run has loaded; its folder as seen from the run's, so that both may
        be moved."""
        loaded = self.trainer.loaded
        if self.trained or not loaded:
            return None
        return loaded | {"folder": os.path.relpath(loaded["folder"], self.trainer.cfg.OUTPUT_DIR)}


def _end() -> dict[str, Any]:
    return {
        "peak_memory_mb": {
            "process": peak_memory(),
            "gpu": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
        },
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_epochs(folder: str) -> list[Epoch]:
    """The epochs in a folder's epochs.json; none if it is not there or cannot be read, which stops
    no run."""
    try:
        epochs = read_json(os.path.join(folder, EPOCHS))
        return [
            {key: _number(epoch[key]) for key in ("loss", "seconds", "images")} for epoch in epochs
        ]
    except (Failure, LookupError, TypeError):
        return []


def _number(value: object) -> float | int | None:
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
        raise TypeError(f"{value!r} is no number")
    return value


@cache
def commit() -> dict[str, str | bool | None]:
    """The commit this code is at, and whether tracked files differ from it; both None where there
    is no git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    sha, _, dirty = done.stdout.strip().partition("-")
    return {"commit": sha, "dirty": bool(dirty)}


def versions() -> dict[str, str]:
    """Of python and what the results may depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in PACKAGES:
        try:
            found[name.lower()] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's model and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
            model,
        )
    except OSError:
        pass
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' * (threads > 1)}"


def peak_memory() -> float | None:
    """The most memory the process has had, in MiB; None where this cannot be asked."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
