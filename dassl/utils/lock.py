"""One process at a time.

By flock itself, not the filelock library: that keeps its descriptor to itself and unlocks when its
object ends, so a run could not go on holding the lock of a runner that was killed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dassl.files import LOCK, regular

from .errors import CannotWrite, Failure

try:
    import fcntl
except ImportError:
    raise SystemExit("error: this runs on Linux and macOS; on Windows use WSL") from None

# Descriptors of locks that end with this very process, not with a worker it has forked.
_held: set[int] = set()
os.register_at_fork(after_in_child=lambda: [os.close(_held.pop()) for _ in list(_held)])


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Holds the lock file `<target>.lock`, making its folder; others wait.

    Raises CannotWrite if the folder cannot be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = open(regular(target.with_name(target.name + ".lock")), "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another run, which is making {target}")
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        line = f"Cannot write to {target.parent}: {error.strerror}"
        raise CannotWrite(f"{line}. Choose a folder you can write to") from error
    with lock:
        try:
            yield
        finally:  # closing would leave it to the processes that were forked meanwhile
            fcntl.flock(lock, fcntl.LOCK_UN)


@contextmanager
def sole_run(folder: str) -> Iterator[None]:
    """Holds the lock of a run's folder, made if need be, until the run's end.

    Whoever started the process may hold it, and hands it over by leaving its file open
    (runs/pool.py). Raises Failure if another run holds it or the folder cannot be written to.
    """
    path = os.path.join(folder, LOCK)
    try:
        os.makedirs(folder or ".", exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # its text is the runner's
    except OSError as error:
        line = f"Cannot write {path}: {error.strerror}. Choose another --output-dir"
        raise Failure(line) from error
    _held.add(lock)
    try:
        _take(lock, path)
        yield
    finally:
        _held.discard(lock)
        os.close(lock)


def _take(lock: int, path: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not _handed_over(lock):
            line = f"Another run is at work in {os.path.dirname(path)} (it holds {path})"
            raise Failure(f"{line}: wait for its end, or choose another --output-dir") from None
    except OSError:
        pass  # a file system without locks


def _handed_over(lock: int) -> bool:
    """Whether this process was started with the same file open, locked."""
    there = os.fstat(lock)
    for fd in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the folder's own is closed by now
            if fd != lock and os.path.samestat(os.fstat(fd), there):
                return True
    return False
