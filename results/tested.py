"""Which model a run tested, and whether it is still the one that is there."""

import hashlib
import shlex
from pathlib import Path

from dassl.files import model_to_load
from dassl.results_json import load_results

# What comes of a record, or a model's file, that is missing, damaged or of another form.
NOT_TOLD = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


def is_stale(folder: Path) -> bool:
    """Whether the model a run tested, as its record says, was trained further, or anew, since then.

    Not where the record names no model, the test was of an epoch that was asked for, or the model
    is no longer there.
    """
    try:
        model = load_results(folder)["model"]
        if model["epoch"] is not None:
            return False
        for name, (file, sha256) in model["files"].items():
            trained = folder / model["folder"] / name
            now = model_to_load(trained)
            if now and (now != file or sha256_of(trained / now) != sha256):
                return True
    except NOT_TOLD:
        pass
    return False


def tested_model(folder: Path) -> Path | None:
    """The folder of the training whose model a run tested; None if its record does not tell."""
    try:
        return (folder / load_results(folder)["model"]["folder"]).resolve()
    except NOT_TOLD:
        return None


def tested_epoch(folder: Path) -> str | None:
    """The epoch that a run was asked to test, "" for the newest; None if its record tells none."""
    try:
        epoch = load_results(folder)["model"]["epoch"]
    except NOT_TOLD:  # as a method that learns nothing
        return None
    return "" if epoch is None else str(epoch)


def recorded_command(folder: Path) -> tuple[str, list[str]]:
    """The dataset of a run, and the words of the command by which it ended.

    Nothing if its record does not tell.
    """
    try:
        record = load_results(folder)
        return record["dataset"], shlex.split(record["command"])
    except NOT_TOLD:
        return "", []


def sha256_of(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
