"""A tensor in a file that runs share: made once, and used only if it is whole.

The file holds the tensor's bytes, a line of JSON (key, dtype, shape, SHA-256 of the bytes) and that
line's length.
"""

import hashlib
import json
import mmap
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dassl.files import regular
from dassl.utils import atomic_write
from dassl.utils.errors import CannotWrite
from dassl.utils.lock import locked

Key = dict[str, Any]  # what the tensor follows from, as JSON gives it back
LENGTH = 8  # bytes


def kept(
    path: Path, key: Key, make: Callable[[], Iterable[Tensor]], size: int = 0
) -> tuple[Tensor | None, bool]:
    """The tensor of this key, on the CPU and read-only, and whether it was there.

    Else it is made of `make()`'s parts, one below the other, by one run while others wait for it.
    Where it cannot be written, a line says so and the tensor is None. `size`: its bytes, where they
    are known before it is made.
    """
    tensor = load(path, key)
    if tensor is not None:  # before locking, which a read-only folder does not allow
        return tensor, True
    try:
        with locked(path):
            tensor = load(path, key)
            if tensor is not None:  # another run has made it while this one waited
                return tensor, True
            free = shutil.disk_usage(path.parent).free
            if size > free:
                line = f"No space for {path}: it takes {size / 1e6:,.0f} MB"
                raise CannotWrite(f"{line}, {free / 1e6:,.0f} MB are free")
            save(path, key, make())
    except CannotWrite as error:
        print(f"{error}. Going on without it")
        return None, False
    return load(path, key), False


def save(path: Path, key: Key, parts: Iterable[Tensor]) -> None:
    """Writes the parts (n, …) one below the other, or no file: raises CannotWrite."""
    digest, rows = hashlib.sha256(), 0
    with atomic_write(path) as file:
        for part in parts:
            data = part.contiguous().view(torch.uint8).numpy().reshape(-1)
            file.write(data)
            digest.update(data)
            rows += len(part)
        dtype, shape = str(part.dtype).removeprefix("torch."), [rows, *part.shape[1:]]
        about = {"key": key, "dtype": dtype, "shape": shape, "sha256": digest.hexdigest()}
        line = json.dumps(about).encode()
        file.write(line + len(line).to_bytes(LENGTH, "little"))


def load(path: Path, key: Key) -> Tensor | None:
    """The file's tensor, memory-mapped; None if of another key, missing or damaged."""
    try:
        with open(regular(path), "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: it is empty
        print(f"Cannot use {path}: {error}")
        return None
    try:
        end = len(data) - LENGTH
        start = end - int.from_bytes(data[end:], "little")
        about = json.loads(data[start:end])
        if about["key"] != key:
            return None
        if hashlib.sha256(memoryview(data)[:start]).hexdigest() != about["sha256"]:
            raise ValueError("its SHA-256 is wrong")
        with warnings.catch_warnings(action="ignore"):  # that it cannot be written to
            rows = torch.frombuffer(memoryview(data)[:start], dtype=getattr(torch, about["dtype"]))
        return rows.view(about["shape"])
    except Exception:  # a damaged file can raise anything
        print(f"{path} is damaged and made anew")
        return None


def digest(*parts: Any) -> str:
    """Hex SHA-256 of what Python prints of them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def code_of(*files: str | Path) -> str:
    """A digest of source files, for a key of what this code makes."""
    return digest(*(Path(file).read_bytes() for file in files))
