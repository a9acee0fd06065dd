"""What the programs of this repository have in common: their arguments, their one-line errors, their
end. Imports no torch."""

import argparse
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from dassl.plain import plain

HOME = re.compile(r"(?:^|(?<==))~[\w.-]*(?=/|$)")


class OneLineParser(argparse.ArgumentParser):
    """Keeps the line breaks of its texts, and says what is wrong in one line."""

    def __init__(self, prog: str | None = None, **texts: str):
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, **texts)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ):
        """The home folder also stands for a `~` that the shell has left: in `--out=~/x`, in
        quotes."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([HOME.sub(self.home, word) for word in words], namespace)

    def home(self, match: re.Match) -> str:
        if (home := os.path.expanduser(match[0])) == match[0]:
            self.error(
                f"{match.string}: there is no user {match[0][1:]}; a folder that is called so is ./{match[0]}"
            )
        return home

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {plain(message)}; --help tells more\n")


class OneLine(logging.Formatter):
    """A message as one line, with its level."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(f"{record.levelname}: {record.getMessage()}")


def log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    logging.basicConfig(handlers=[handler])


def existing_folder(text: str) -> Path:
    """The type of a command line's argument that must be a folder."""
    if not os.path.isdir(text):  # Path.is_dir raises for names that are too long
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return Path(text)


def say(line: str) -> None:
    print(plain(line, keep="\n"), file=sys.stderr, flush=True)


def leave(line: str, code: int) -> None:
    """End the program with one line; runs under way are stopped on the way out."""
    say(f"error: {line}")
    raise SystemExit(code)


def command_line(main: Callable[[], int]) -> None:
    """Run a script's main as a program: any polite signal is a Ctrl-C, which ends it with one
    line."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) != signal.SIG_IGN:  # as nohup has it
            signal.signal(name, signal.default_int_handler)
    sys.stdout.reconfigure(errors="replace")
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("\nstopped; run the same command again to go on")
        code = 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        say(
            f"error: cannot write {error.filename or 'what is printed'}: {error.strerror}; free some space"
        )
        os._exit(1)  # what is still to be printed would raise once more
    sys.exit(code)
