"""A program's main in a forked process: torch is imported already, and what it does to itself is
lost with it."""

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

SECONDS = 300  # after which a process that hangs is ended by SIGALRM
CRASHED = 70  # the exit code of a main that raised


class Done(NamedTuple):
    """Exit code, negative for a signal, and what was printed."""

    code: int
    out: str
    err: str


def start(main: Callable[[], int | None], folder: Path, encoding: str = "utf-8") -> int:
    """Starts `main` in a process whose output goes to the files stdout and stderr of a folder;
    returns its id."""
    folder.mkdir(parents=True, exist_ok=True)
    signal.pthread_sigmask(
        signal.SIG_BLOCK, [signal.SIGINT]
    )  # no Ctrl-C may bring the child back into pytest
    if pid := os.fork():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return pid
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
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
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
    signal.alarm(SECONDS)
    torch.set_num_threads(1)


def wait(pid: int, folder: Path) -> Done:
    """Waits for the end of a process that `start` has started."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Done(
        code,
        *(
            (folder / name).read_text(encoding="utf-8", errors="replace")
            for name in ("stdout", "stderr")
        ),
    )


def forked(main: Callable[[], int | None], folder: Path, encoding: str = "utf-8") -> Done:
    return wait(start(main, folder, encoding), folder)
