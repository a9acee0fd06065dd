"""One process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CannotWrite


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock file `<target>.lock`, making its folder; others wait.

    Raises CannotWrite if the folder cannot be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(target.with_name(target.name + ".lock"), "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another run, which is making {target}")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        line = f"Cannot write to {target.parent}: {error.strerror}. Choose a folder you can write to"
        raise CannotWrite(line) from error
    with lock:
        try:
            yield
        finally:  # closing would leave it to the processes that were forked meanwhile
            fcntl.flock(lock, fcntl.LOCK_UN)
