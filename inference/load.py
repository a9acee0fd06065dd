"""A run read back from its output folder: its config, its trainer, the model that it tested."""

import argparse
import io
import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

from yacs.config import CfgNode

from dassl.engine import TrainerBase, build_trainer
from dassl.results_json import load_results
from dassl.utils import Failure, set_random_seed
from train import parse_args, setup_cfg

Check = Callable[[TrainerBase], object]


def config_of(folder: Path, root: str | None = None) -> CfgNode | None:
    """The config recorded in an output folder; None if there is none.

    Args:
        root: folder of the datasets, if it is not where it was.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        return None
    flags = ["--config-file", str(file), *(["--root", root] if root else [])]
    return setup_cfg(parse_args(flags))


def load_run(folder: Path, root: str | None = None, check: Check | None = None) -> TrainerBase:
    """The trainer of a run's recorded config, in eval mode, with the model that the run tested.

    Args:
        folder: an output folder, of a training run or of an --eval-only one.
        root: folder of the datasets, if it is not where it was.
        check: called with the trainer before its model is looked for; may raise.

    Raises: Failure if there is no config or no model.
    """
    cfg = config_of(folder, root)
    if cfg is None:
        raise Failure(f"{folder}: no config.yaml, so no run of this repository")
    with redirect_stdout(io.StringIO()):
        set_random_seed(cfg.SEED % 2**32)
        trainer = build_trainer(cfg)
        if check:
            check(trainer)
        trainer.load_model(*tested_model(folder, trainer.get_model_names()))
    trainer.set_model_mode("eval")
    return trainer


def tested_model(folder: Path, names: Sequence[str]) -> tuple[str, int | None]:
    """Folder and epoch of the model a run tested.

    It is the run's own, or --model-dir's as it lies seen from the run's folder.

    Raises: Failure if neither is there.
    """
    if all((folder / name).is_dir() for name in names):
        return str(folder), None
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--model-dir")
    flags.add_argument("--load-epoch", type=int)
    try:
        record = load_results(folder)
        given = flags.parse_known_args(shlex.split(record["command"]))[0]
        # Relative to the run's folder it holds also after the whole output was moved.
        relative = os.path.relpath(given.model_dir, record["config"]["OUTPUT_DIR"])
        away = os.path.normpath(folder / relative)
    except (OSError, ValueError, KeyError, TypeError):
        away = ""
    if not os.path.isdir(away):
        missing = f"no checkpoint ({', '.join(names)})"
        raise Failure(f"{folder}: {missing}, and no results.json that says where it is")
    return away, given.load_epoch
