"""What a run leaves for programs to read: results.json beside its log.txt.

An epoch's loss and seconds go to epochs.json as soon as it has ended, before its checkpoint is
saved, so a resumed run has those of all its epochs. They are not in the checkpoints: there two
equal trainings would differ.
"""

import math
import os
import platform
import resource
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

from dassl.config import keys_of_others
from dassl.files import EPOCHS, RESULTS, RESULTS_FORMAT
from dassl.utils import Failure, ranks, read_json, write_json
from dassl.utils.logger import Logger

if TYPE_CHECKING:
    from .trainer import TrainerBase

PACKAGES = ("torchvision", "numpy", "scikit-learn", "scipy", "Pillow")
Epoch = dict[str, float | int | None]  # loss (None: none of that name is logged), seconds, images


class Recorder:
    """Told by a trainer what happens, it writes the run's files."""

    def __init__(self, trainer: "TrainerBase"):
        self.trainer = trainer
        self.trained = self.in_training = False
        self.epochs: list[Epoch] = []
        self.loss: float | None = None  # the epoch's mean so far
        self.images = 0  # of the epoch so far
        self.test_from = "images"  # or, kept by an earlier test, crops or features
        commit()  # now, not when the run has ended and somebody has committed more

    def training_begins(self, start_epoch: int) -> None:
        """Takes over a resumed run's epochs; those nothing is known of are None."""
        self.trained = self.in_training = True
        self.epochs = read_epochs(self.trainer.cfg.OUTPUT_DIR)[:start_epoch]
        unknown: Epoch = {"loss": None, "seconds": None, "images": 0}
        self.epochs += [unknown] * (start_epoch - len(self.epochs))

    def epoch_begins(self) -> None:
        """The epoch's time and counts begin."""
        self.loss, self.images, self.start = None, 0, time.monotonic()

    def count(self, batch: tuple) -> None:
        """Counts the images that a step is given; batches of another form count as none."""
        for part in batch:
            if isinstance(part, Mapping) and "label" in part:
                self.images += len(part["label"])

    def epoch_ends(self) -> None:
        """To be called before the epoch's checkpoint is saved."""
        seconds = time.monotonic() - self.start
        self.epochs.append({"loss": self.loss, "seconds": seconds, "images": self.images})
        if ranks.first():
            write_json(self.epochs, os.path.join(self.trainer.cfg.OUTPUT_DIR, EPOCHS))

    def training_ends(self) -> None:
        """What is tested from now on is no validation."""
        self.in_training = False

    def tested(
        self, metrics: dict[str, float], per_class: dict[str, dict[str, float]], seconds: float
    ) -> None:
        """Writes results.json; raises Failure if it cannot be written.

        Not for a validation during training, and not where there is no output folder, so no log.
        """
        folder = self.trainer.cfg.OUTPUT_DIR
        if self.in_training or not ranks.first() or not os.path.isdir(folder):
            return
        epochs = self.epochs if self.trained else read_epochs(folder)
        known = [e for e in epochs if e["seconds"]]
        train_seconds = sum(e["seconds"] for e in known)
        train_images = sum(e["images"] for e in known)
        result = {
            "metrics": metrics,
            "per_class": {name: of_class["recall"] for name, of_class in per_class.items()},
            "per_class_metrics": per_class,
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
        write_json(self._about() | result | _end(), os.path.join(folder, RESULTS))

    def _about(self) -> dict[str, Any]:
        """What was run, where, and with what."""
        cfg, out, models = self.trainer.cfg, sys.stdout, self.trainer._models.values()
        params = [p for model in models for p in model.parameters() if p.requires_grad]
        return self.trainer.describe() | {
            "format": RESULTS_FORMAT,
            "trainer": cfg.TRAINER.NAME,
            "dataset": cfg.DATASET.NAME,
            "seed": self.trainer.seed,
            "shots": cfg.DATASET.NUM_SHOTS,
            "subsample": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),
            "config": cfg,
            "config_of_others": keys_of_others(cfg, self.trainer.config_names()),
            "command": shlex.join(["python", *sys.argv]),
            "log": os.path.basename(out.file.name) if isinstance(out, Logger) else None,
            **commit(),
            "versions": versions(),
            "machine": platform.platform(),
            "device": device_name(torch.device(self.trainer.device)),
            "processes": ranks.count(),
            "eval_only": not self.trained,
            "model": self._model(),
            "parameters": sum({id(p): p.numel() for p in params}.values()),
        }

    def _model(self) -> dict[str, Any] | None:
        """What an --eval-only run has loaded, from a folder relative to its own."""
        loaded = self.trainer.loaded
        if self.trained or not loaded:
            return None
        return loaded | {"folder": os.path.relpath(loaded["folder"], self.trainer.cfg.OUTPUT_DIR)}


def _end() -> dict[str, Any]:
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    return {
        "peak_memory_mb": {"process": peak_memory(), "gpu": gpu},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_epochs(folder: str) -> list[Epoch]:
    """The epochs in a folder's epochs.json; none if it is missing or damaged."""
    keys = ("loss", "seconds", "images")
    try:
        epochs = read_json(os.path.join(folder, EPOCHS))
        return [{key: _number(epoch[key]) for key in keys} for epoch in epochs]
    except (Failure, LookupError, TypeError):
        return []


def _number(value: object) -> float | int | None:
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
        raise TypeError(f"{value!r} is no number")
    return value


@cache
def commit() -> dict[str, str | bool | None]:
    """This code's commit, and whether files differ from it; None without git."""
    command = "git describe --always --dirty --abbrev=40 --exclude=*".split()
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True,
                              timeout=20, check=True)  # fmt: skip
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
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    except OSError:
        pass
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' * (threads > 1)}"


def peak_memory() -> float:
    """The most memory the process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
