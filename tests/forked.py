"""A program's main in a forked process: torch is imported, and what it does to itself is lost."""

import faulthandler
import gc
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

SECONDS = 300  # after which SIGALRM ends a process that hangs; its stderr says where it was
CRASHED = 70  # the exit code of a main that raised


class Done(NamedTuple):
    """Exit code, negative for a signal, and what was printed."""

    code: int
    out: str
    err: str


def start(main: Callable[[], int | None], folder: Path, encoding: str = "utf-8") -> int:
    """The id of a process that does `main` and writes to `stdout` and `stderr` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # No Ctrl-C may bring the child back into pytest.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    if pid := os.fork():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return pid
    gc.freeze()  # an inherited object's end may wait for a thread that is not here: ONNX Runtime's
    code = CRASHED
    try:
        code = program(main, folder, encoding)
    except KeyboardInterrupt:  # before main began, or after it had ended
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def program(main: Callable[[], int | None], folder: Path, encoding: str) -> int:
    """The exit code of `main`."""
    as_a_program(folder, encoding)
    try:
        return main() or 0
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.stdout.flush(), sys.stderr.flush()


def as_a_program(folder: Path, encoding: str) -> None:
    """Undoes what pytest does to streams, logs, warnings and signals."""
    for fd, name in (1, "stdout"), (2, "stderr"):
        with open(folder / name, "wb") as file:
            os.dup2(file.fileno(), fd)
    sys.stdout = open(1, "w", buffering=1, encoding=encoding, closefd=False)  # noqa: SIM115
    errors = "backslashreplace"
    sys.stderr = open(2, "w", buffering=1, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
    logging.root.handlers.clear()
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    warnings.showwarning = lambda *about: sys.stderr.write(warnings.formatwarning(*about[:4]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGALRM, sys.stderr, chain=True)
    signal.alarm(SECONDS)
    torch.set_num_threads(1)


def wait(pid: int, folder: Path) -> Done:
    """Waits for the end of a process that `start` has started."""
    return done(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), folder)


def done(code: int, folder: Path) -> Done:
    files = (folder / "stdout", folder / "stderr")
    return Done(code, *(file.read_text(encoding="utf-8", errors="replace") for file in files))


def forked(main: Callable[[], int | None], folder: Path, encoding: str = "utf-8") -> Done:
    """How `main` ends in a process of its own."""
    return wait(start(main, folder, encoding), folder)


def in_turn(mains: Sequence[Callable[[], int | None]], folder: Path) -> list[Done]:
    """How programs end that do next to nothing, one after the other in one process."""
    folders = [folder / f"{i}" for i in range(len(mains))]

    def all_of_them() -> None:
        for main, out in zip(mains, folders, strict=True):
            out.mkdir()
            try:
                code = program(main, out, "utf-8")
            except BaseException:
                traceback.print_exc()
                code = CRASHED
            (out / "code").write_text(f"{code}")

    ended = forked(all_of_them, folder)
    assert ended.code == 0, (ended, [file.read_text() for file in folder.glob("*/stderr")])
    return [done(int((out / "code").read_text()), out) for out in folders]
