"""The names of a run's files, and reading with care. Imports nothing slow."""

import errno
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml

P = TypeVar("P", str, os.PathLike)

# What may differ between two runs that share an output folder: it changes no result.
FREE = ("OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS",
         "DATALOADER.CACHE_MB", "DATALOADER.FEATURES", "DATALOADER.TEST_CACHE", "DATALOADER.TEST.",
         "TRAIN.", "TEST.")  # fmt: skip
# Of these, what decides which model a run ends with.
FINAL = ("TEST.FINAL_MODEL", "TRAIN.COUNT_ITER")

# In a run's output folder, beside its log.txt:
CONFIG = "config.yaml"
LOCK = ".lock"
FAILURE = "failure.txt"  # of runs that runs/ has started: why one has failed
EPOCHS = "epochs.json"
SCALARS = "scalars.csv"  # of TRAIN.LOGGER csv
RESULTS, RESULTS_FORMAT = "results.json", 1
# In <output folder>/<model name>, beside the text file `checkpoint`, which names the newest:
BEST = "model-best.pth.tar"


def epoch_file(epoch: int) -> str:
    """Name of the file that holds the state after `epoch` epochs."""
    return f"model.pth.tar-{epoch}"


def resumable(folder: str | os.PathLike) -> list[str]:
    """What training can go on from: the file `checkpoint` names, then older ones."""
    if not os.path.isdir(folder):
        return []
    found = [re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in os.listdir(folder)]
    files = [epoch_file(epoch) for epoch in sorted((int(f[1]) for f in found if f), reverse=True)]
    pointer = Path(folder, "checkpoint")
    named = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    return files[files.index(named) :] if named in files else files


def model_to_load(folder: str | os.PathLike) -> str | None:
    """The file a test loads if asked for no epoch: the best, else the newest."""
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


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name}: is there twice")
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """The plain data in a YAML text.

    Raises yaml.YAMLError if it is no YAML, has a key twice, or is nested too deep.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
