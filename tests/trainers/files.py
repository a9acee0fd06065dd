"""Files to test with: a data folder of few classes, and checkpoints in folders of any name."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.runs import run
from tests.trainers.methods import UNEVEN


def three_classes(folder: Path) -> tuple[str, ...]:
    """Makes a data folder for `build`, where 16 classes would take too long; returns its
    settings."""
    for part in ("train", "test"):
        for name in UNEVEN[1:]:
            (folder / part / name).mkdir(parents=True)
            (folder / part / name / "0.jpg").touch()
    return ("DATASET.NAME", "ImageFolder", "DATASET.SUBSAMPLE_CLASSES", "all")


def save(folder: Path, name: str, state: Mapping[str, Tensor], epoch: int = 5) -> None:
    """A checkpoint of the model `name`."""
    (folder / name).mkdir(parents=True)
    torch.save(
        {"state_dict": dict(state), "epoch": epoch}, folder / name / f"model.pth.tar-{epoch}"
    )


def read(folder: Path, name: str, epoch: int = 3) -> dict[str, Tensor]:
    """The state dict in a run's checkpoint."""
    return torch.load(folder / name / f"model.pth.tar-{epoch}", weights_only=True)["state_dict"]


def accuracies(capsys: pytest.CaptureFixture) -> list[str]:
    """The lines printed since the last call that say how accurate the model is."""
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("* accuracy")]


def train_and_test(
    trainer: str, data: Path, out: Path, capsys: pytest.CaptureFixture, *opts: str
) -> None:
    """A run in out/train, and a test of its file that gives the same accuracy."""
    assert run(trainer, data, out / "train", *opts) == 0
    trained = accuracies(capsys)
    assert (
        run(
            trainer,
            data,
            out / "test",
            *opts,
            flags=("--eval-only", "--model-dir", str(out / "train")),
        )
        == 0
    )
    assert len(trained) == 1 and accuracies(capsys) == trained
