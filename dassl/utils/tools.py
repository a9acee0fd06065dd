"""Files, seeds, the environment. PyTorch is imported only where it is seeded or described."""

import errno
import http.client
import json
import os
import platform
import random
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from dassl.files import regular

from .errors import CannotWrite, Failure, UsageError
from .images import read_image  # noqa: F401 - where Dassl has it


def tolist_if_not(x: Any) -> list:
    """x itself if it is a list, else [x]."""
    return x if isinstance(x, list) else [x]


def mkdir_if_missing(dirname: str) -> None:
    """Makes a folder and those above it; raises Failure."""
    try:
        os.makedirs(dirname, exist_ok=True)
    except OSError as error:
        line = f"Cannot make the folder {dirname}: {error.strerror}"
        raise Failure(f"{line}. Choose one you can write to") from error


def expand_user(path: str | os.PathLike) -> str:
    """The path with the home folder for its `~` or `~user`.

    Raises UsageError if there is no such user, or the path is none (a name of over 255 bytes).
    """
    full = os.path.expanduser(path)
    if full.startswith("~"):
        user = full.partition("/")[0]
        line = f"{path}: there is no user {user[1:]}; a folder that is called so is ./{user}"
        raise UsageError(line)
    try:
        os.lstat(full)
    except ValueError as error:
        raise UsageError(f"{path!r} is no path: {error}") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{str(path)[:80]}… is no path: {error.strerror}") from error
    return full


def check_isfile(fpath: str) -> bool:
    """Whether fpath is a file; warns if not."""
    if not os.path.isfile(fpath):
        warnings.warn(f"No file found at {fpath}", stacklevel=2)
        return False
    return True


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """Names in a folder, without those that start with a dot."""
    try:
        names = [name for name in os.listdir(path) if not name.startswith(".")]
    except OSError as error:
        raise Failure(f"Cannot list the folder {path}: {error.strerror}") from error
    return sorted(names) if sort else names


@contextmanager
def atomic_write(path: str, mode: str = "wb") -> Iterator[IO]:
    """Opens a temporary file that becomes `path` when the block ends well.

    Raises CannotWrite if the disk is full or the folder cannot be written; no temporary file is
    left.
    """
    path = os.fspath(path)
    tmp = f"{path}.tmp"
    try:
        with open(tmp, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except BaseException as error:  # Ctrl-C too leaves no half file
        if os.path.exists(tmp):
            os.remove(tmp)
        # torch.save's own error hides the system's
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            hint = "Free some space or choose another folder; what was there before is unchanged"
            raise CannotWrite(f"Cannot write {path}: {cause.strerror or cause}. {hint}") from error
        raise


def read_json(fpath: str) -> Any:
    """What a JSON file holds; raises Failure."""
    try:
        with open(regular(fpath), encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise Failure(f"Cannot read {fpath}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Failure(f"{fpath} is not valid JSON ({error}). Remove or replace it") from error


def write_json(obj: Any, fpath: str) -> None:
    """Writes atomically, making the folder if need be; raises Failure."""
    mkdir_if_missing(os.path.dirname(fpath) or ".")
    with atomic_write(fpath, "w") as file:
        json.dump(obj, file, indent=4)


def download_url(url: str, dst: str) -> None:
    """Downloads a file to `dst`, which is whole or not there; raises Failure."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            data = response.read()  # raises if it is cut off
    except (OSError, ValueError, http.client.HTTPException) as error:
        line = f"Cannot download {url}: {' '.join(str(error).split())}. Put the file at {dst}"
        raise Failure(line) from error
    with atomic_write(dst) as file:
        file.write(data)


def set_random_seed(seed: int) -> None:
    """Seeds random, numpy and torch (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def mix_seed(*parts: int) -> int:
    """One seed out of several numbers; unlike sums, neighbours share nothing."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the CPU's random numbers follow from `seed`; outside they go on."""
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def cpu_cores() -> int:
    """Cores this process may use, under a batch system not all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collect_env_info() -> str:
    """Versions and hardware, one per line."""
    import torch
    import torchvision

    versions = {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "torchvision": torchvision.__version__,
        "NumPy": np.__version__,
        "OS": platform.platform(),
        "CPU cores": os.cpu_count(),
    }
    if torch.cuda.is_available():
        versions["CUDA"] = torch.version.cuda
        for i in range(torch.cuda.device_count()):
            versions[f"GPU {i}"] = torch.cuda.get_device_name(i)
    return "\n".join(f"{name}: {value}" for name, value in versions.items())
