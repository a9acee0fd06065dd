"""Files to test with: a data folder of few classes, and checkpoints in folders of any name."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import train
from dassl.engine import build_trainer
from tests.runs import arguments, run
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


def row_tensors(trainer: str, data: Path, out: Path, *opts: str) -> set[str]:
    """The saved tensors whose number of rows is that of the classes, found out by building it.

    For its `class_rows` to be compared with.
    """
    cfg = train.setup_cfg(train.parse_args(arguments(trainer, data, out, *opts)))
    built = [build_trainer(cfg, [f"class {i}" for i in range(n)]) for n in (39, 41)]
    few, many = (
        {key: len(w) for name in t.get_model_names() for key, w in t.weights_to_save(name).items()}
        for t in built
    )
    assert few.keys() == many.keys()
    return {key for key in few if few[key] != many[key]}
