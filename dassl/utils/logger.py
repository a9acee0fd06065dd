"""The log: what is printed, in a file too."""

import os
import sys
import time
from contextlib import suppress

from dassl.commands import Terminal, plain

from .errors import Failure
from .tools import mkdir_if_missing


class Logger:
    """Stands in for sys.stdout and writes all it is given to a file too."""

    def __init__(self, fpath: str):
        self.console = sys.stdout.console if isinstance(sys.stdout, Logger) else sys.stdout
        mkdir_if_missing(os.path.dirname(fpath) or ".")
        try:
            # line-buffered, so that a crash loses no line; names of files may be no text
            self.file = open(fpath, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        except OSError as error:
            line = f"Cannot write {fpath}: {error.strerror}. Choose another --output-dir"
            raise Failure(line) from error

    def write(self, text: str) -> int:
        """Raises Failure if the file cannot be written; then only the console is."""
        self.keep(text)
        return self.console.write(text)

    def keep(self, text: str) -> None:
        """Writes to the file alone. Raises as `write`."""
        try:
            self.file.write(text)
        except OSError as error:
            full, self.file = self.file, open(os.devnull, "w")  # noqa: SIM115
            with suppress(OSError):  # what it still holds
                full.close()
            line = f"Cannot write {full.name}: {error.strerror}. Free some space"
            raise Failure(f"{line}, then run the same command again to go on") from error

    def flush(self) -> None:
        """Of both file and console."""
        self.file.flush()
        self.console.flush()

    def __getattr__(self, name: str):
        return getattr(self.console, name)


def setup_logger(output: str | None = None) -> None:
    """From now on prints also go to `output`/log.txt, or to `output` if it is a *.txt.

    An existing log is kept: the new one is then called log.txt-<date>.
    """
    if output is None:
        return
    fpath = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if os.path.exists(fpath):
        fpath += time.strftime("-%Y-%m-%d-%H-%M-%S")
    sys.stdout = Logger(fpath)


def tolerate_any_text() -> None:
    """From now on a print shows a ? for what stdout's encoding lacks, and no terminal obeys it."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    if sys.stdout.isatty():
        sys.stdout = Terminal(sys.stdout)


def print_error(line: str, aloud: bool = True) -> None:
    """Prints one line to stderr (not unless `aloud`), and to the log if one is open."""
    line = plain(line)
    if aloud:
        print(line, file=sys.stderr)
    if isinstance(sys.stdout, Logger):
        with suppress(Failure):  # the disk may be full
            sys.stdout.keep(f"{line}\n")
