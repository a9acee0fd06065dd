"""Where a run's numbers go beside its log, by TRAIN.LOGGER.

Each logger has the two methods of TensorBoard's SummaryWriter that are used here: add_scalar and
close.
"""

import csv
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from torch import Tensor
from yacs.config import CfgNode

from dassl.commands import no_formula
from dassl.config import config_of_method, plain_config
from dassl.files import SCALARS, regular
from dassl.utils import Failure, UsageError, atomic_write

if TYPE_CHECKING:
    from .trainer import TrainerBase

COLUMNS = ("epoch", "step", "tag", "value")


class ScalarLogger(Protocol):
    """What a logger can do."""

    def add_scalar(self, tag: str, scalar_value: float | Tensor, global_step: int | None) -> None:
        """Takes a number."""

    def close(self) -> None:
        """Writes what is not written yet."""


def check_loggers(cfg: CfgNode) -> None:
    """Raises UsageError if a training is to log to what is not installed."""
    found = find_spec("wandb") if "wandb" in cfg.TRAIN.LOGGER else None
    if "wandb" in cfg.TRAIN.LOGGER and not (found and found.origin):  # else wandb's own output
        line = "TRAIN.LOGGER wandb: it is not installed in this environment"
        raise UsageError(f"{line}: pip install wandb, or take csv or tensorboard")


def open_loggers(
    trainer: "TrainerBase", tensorboard_dir: str
) -> tuple[ScalarLogger | None, list[ScalarLogger]]:
    """TensorBoard's and the others that TRAIN.LOGGER names; raises Failure if one cannot be."""
    names = trainer.cfg.TRAIN.LOGGER
    writer = open_tensorboard(tensorboard_dir) if "tensorboard" in names else None
    others = {"csv": CSVLogger, "wandb": WandbLogger}
    return writer, [kind(trainer) for name, kind in others.items() if name in names]


def open_tensorboard(log_dir: str) -> ScalarLogger:
    """A SummaryWriter; raises Failure if the folder cannot be written."""
    from torch.utils.tensorboard import SummaryWriter  # here, since it is slow to import

    print(f"Initialize tensorboard (log_dir={log_dir})")
    try:
        return SummaryWriter(log_dir=log_dir)
    except OSError as error:
        line = f"Cannot write to {log_dir}: {error.strerror}. Remove that folder"
        raise Failure(line) from error


class CSVLogger:
    """scalars.csv in the output folder, a row for each number.

    `epoch` counts from 1, and is empty for the test that follows the training. A run that goes on
    keeps the rows of its whole epochs.
    """

    def __init__(self, trainer: "TrainerBase"):
        self.trainer, folder = trainer, trainer.cfg.OUTPUT_DIR
        self.path = os.path.join(folder, SCALARS)
        try:
            kept = [*rows_until(trainer.start_epoch, self.path)]
            with atomic_write(self.path, "w") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *kept])
            # line-buffered, so that a kill loses no row of a whole epoch
            self.file = open(self.path, "a", buffering=1, encoding="utf-8", newline="")  # noqa: SIM115
        except (OSError, csv.Error) as error:
            line = f"{self.path} cannot be continued: {getattr(error, 'strerror', error)}"
            raise Failure(f"{line}. Move it elsewhere") from error
        self.rows = csv.writer(self.file, lineterminator="\n")

    def add_scalar(self, tag: str, scalar_value: float | Tensor, global_step: int | None) -> None:
        """Writes a row; raises Failure if the disk is full."""
        epoch = self.trainer.epoch + 1 if self.trainer.recorder.in_training else ""
        try:
            self.rows.writerow([epoch, global_step, no_formula(tag), float(scalar_value)])
        except OSError as error:
            line = f"Cannot write {self.path}: {error.strerror}. Free some space"
            raise Failure(f"{line}, then run the same command again to go on") from error

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def rows_until(epoch: int, path: str) -> Iterator[list[str]]:
    """The rows of the first epochs, if there is such a file; without damaged ones."""
    wanted = {str(n + 1) for n in range(epoch)}
    if os.path.exists(path):
        with open(regular(path), encoding="utf-8", errors="replace", newline="") as file:
            rows = csv.reader(file)
            yield from (row for row in rows if len(row) == len(COLUMNS) and row[0] in wanted)


class WandbLogger:
    """A run of Weights & Biases, named by method, dataset, classes, shots and seed.

    WANDB_PROJECT, WANDB_NAME, WANDB_RUN_GROUP, WANDB_MODE … are wandb's own and go first. Its files
    are in the output folder's `wandb`. Scalars of a training have its step, others its epoch.
    """

    def __init__(self, trainer: "TrainerBase"):
        check_loggers(trainer.cfg)
        import wandb

        self.trainer, cfg = trainer, trainer.cfg
        data = cfg.DATASET
        classes = f"{data.get('SUBSAMPLE_CLASSES', 'all')} classes"
        group = f"{cfg.TRAINER.NAME}, {data.NAME}, {classes}, {data.NUM_SHOTS} shots"
        names = {"PROJECT": "p2c", "RUN_GROUP": group, "NAME": f"{group}, seed {trainer.seed}"}
        names = {key: os.environ.get(f"WANDB_{key}", name) for key, name in names.items()}
        try:
            self.run = wandb.init(
                project=names["PROJECT"],
                group=names["RUN_GROUP"],
                name=names["NAME"],
                dir=cfg.OUTPUT_DIR,
                config=plain_config(config_of_method(cfg, trainer.config_names())),
                settings=wandb.Settings(console="off"),  # log.txt has what is printed
            )
        except (wandb.Error, ValueError) as error:  # the latter for a wrong WANDB_… variable
            line = "; ".join(line.strip().rstrip(".") for line in str(error).splitlines()[:3])
            login = "key" in line.lower() or "login" in line.lower()
            advice = (
                "Run wandb login, or set WANDB_MODE=offline"
                if login
                else "See its variables WANDB_…"
            )
            raise Failure(f"TRAIN.LOGGER wandb: {line}. {advice}") from error
        self.run.define_metric("*", step_metric="epoch")
        self.run.define_metric("train/*", step_metric="step")

    def add_scalar(self, tag: str, scalar_value: float | Tensor, global_step: int | None) -> None:
        """Sends a number."""
        step = {"step": global_step} if tag.startswith("train/") else {}
        self.run.log({tag: float(scalar_value), "epoch": self.trainer.epoch + 1, **step})

    def close(self) -> None:
        """Waits until all is sent."""
        self.run.finish()
