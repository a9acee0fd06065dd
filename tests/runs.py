"""Runs of train.py in this process, on few images of the bundled benchmark (the fixture `data`)."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import train

REPO = Path(__file__).resolve().parents[1]
# Each trainer's settings for the bundled benchmark; of several files the first.
CONFIGS = {
    path.parent.name: path
    for path in sorted((REPO / "configs" / "trainers").glob("*/vit_tiny*.yaml"), reverse=True)
}
# One shot of the 16 base classes: three epochs of four batches.
SMALL = {
    "SEED": "1",
    "DATASET.NUM_SHOTS": "1",
    "DATASET.SUBSAMPLE_CLASSES": "base",
    "OPTIM.MAX_EPOCH": "3",
    "TRAIN.PRINT_FREQ": "2",
}
HANG = 600  # seconds after which a program is taken to hang, on however slow a machine


def wait_for(condition: Callable[[], object], pause: float = 0.02) -> None:
    """Returns when it is so; fails if it never is."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)


def python_path(*folders: Path) -> str:
    """PYTHONPATH with these in front: packages may be found by it."""
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH")]))


def arguments(
    trainer: str, data: Path, out: Path, *opts: str, flags: tuple[str, ...] = ()
) -> list[str]:
    """A command line; `opts` are config keys and values, `flags` further flags."""
    usual = ["--root", str(data), "--trainer", trainer, "--output-dir", str(out)]
    usual += ["--dataset-config-file", f"{REPO}/configs/datasets/shapes.yaml"]
    usual += ["--config-file", str(CONFIGS[trainer])]
    small = [word for key, value in SMALL.items() if key not in opts for word in (key, value)]
    return [*usual, *flags, *small, *opts]


def run(trainer: str, data: Path, out: Path, *opts: str, flags: tuple[str, ...] = ()) -> int:
    """train.py's main with `arguments`; returns the exit code."""
    stdout = sys.stdout
    try:
        return train.main(arguments(trainer, data, out, *opts, flags=flags))
    finally:
        sys.stdout = stdout
