"""The names of a run's files, and reading files that others have named. Imports nothing slow."""

import errno
import os
import re
from pathlib import Path
from typing import TypeVar

P = TypeVar("P", str, os.PathLike)

# In a run's output folder, beside its log.txt:
LOCK = ".lock"
RESULTS = "results.json"
# In <output folder>/<model name>, beside the text file `checkpoint`, which names the newest:
BEST = "model-best.pth.tar"


def epoch_file(epoch: int) -> str:
    """Name of the file that holds the state after `epoch` epochs."""
    return f"model.pth.tar-{epoch}"


def resumable(folder: str | os.PathLike) -> list[str]:
    """The files training can go on from: the one `checkpoint` names, then older ones."""
    if not os.path.isdir(folder):
        return []
    found = [re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in os.listdir(folder)]
    files = [epoch_file(epoch) for epoch in sorted((int(f[1]) for f in found if f), reverse=True)]
    pointer = Path(folder, "checkpoint")
    named = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    return files[files.index(named) :] if named in files else files


def model_to_load(folder: str | os.PathLike) -> str | None:
    """The file a test loads where no epoch is asked for: the best, else the newest; or None."""
    if os.path.isfile(os.path.join(folder, BEST)):
        return BEST
    return next(iter(resumable(folder)), None)


def regular(path: P) -> P:
    """The path, for `open`: who reads a pipe or a device may wait for ever.

    Raises OSError if it is one. What is not there, or a folder, is for `open` to say.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(errno.EINVAL, "It is a pipe or device, not a file", os.fspath(path))
    return path
