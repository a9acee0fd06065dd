"""How programs here take arguments, report errors and end. Imports no torch."""

import argparse
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HOME = re.compile(r"(?:^|(?<==))~[\w.-]*(?=/|$)")
# Control characters (terminals obey some), what turns or breaks lines, and bytes of file names
# that are no text.
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object, keep: str = "") -> str:
    r"""`str(text)` with control characters, but those in `keep`, as escapes (\n, \x1b)."""

    def escaped(found: re.Match) -> str:
        return found[0] if found[0] in keep else repr(found[0])[1:-1]

    return _UNSHOWN.sub(escaped, str(text))


def no_formula(cell: object) -> object:
    """Put a ' before text that a spreadsheet would run, and not before numbers.

    Control characters are written out: a tab or a return, too, may begin a formula, or a return
    another row.
    """
    if not isinstance(cell, str):
        return cell
    cell = plain(cell)
    return f"'{cell}" if re.match(r"[=+@]|-(?!\d+(\.\d+)?$)", cell) else cell


class OneLineParser(argparse.ArgumentParser):
    """Keeps the line breaks of its texts, and says what is wrong in one line."""

    def __init__(self, prog: str | None = None, **texts: str):
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, **texts)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ):
        """Also expands a `~` that the shell left, as in `--out=~/x` or in quotes."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_HOME.sub(self.home, word) for word in words], namespace)

    def home(self, match: re.Match) -> str:
        if (home := os.path.expanduser(match[0])) == match[0]:
            line = f"{match.string}: there is no user {match[0][1:]}"
            self.error(f"{line}; a folder that is called so is ./{match[0]}")
        return home

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {plain(message)}; --help tells more\n")


class OneLine(logging.Formatter):
    """A message as one line, with its level."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(f"{record.levelname}: {record.getMessage()}")


class Once(logging.Filter):
    """Lets no line through twice: two parts of a command may warn of the same."""

    def __init__(self):
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is new."""
        line = f"{record.msg!r} {record.args!r}"  # what cannot be put together is logging's to say
        is_new = line not in self.said
        self.said.add(line)
        return is_new


def log_to_stderr() -> None:
    """From now on `logging`'s warnings are single lines on stderr, each said once."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    handler.addFilter(Once())
    logging.basicConfig(handlers=[handler])


def existing_folder(text: str) -> Path:
    """The type of a command line's argument that must be a folder."""
    if not os.path.isdir(text):  # Path.is_dir raises for names that are too long
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return Path(text)


def existing_file(text: str) -> Path:
    """The type of a command line's argument that must be a file."""
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return Path(text)


class Terminal:
    """A terminal's stream, which gets no control characters but the ends of lines and tabs."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(plain(text, keep="\n\t"))

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def say(line: str) -> None:
    """Prints to stderr at once."""
    print(plain(line, keep="\n"), file=sys.stderr, flush=True)


def leave(line: str, code: int) -> NoReturn:
    """Ends the program with one line; runs under way are stopped on the way out."""
    say(plain(f"error: {line}"))
    raise SystemExit(code)


def quiet_imports(package: str) -> None:
    """To be called first in a package of programs: a Ctrl-C ends their imports without a word.

    From `command_line` on it is a KeyboardInterrupt again. Nothing changes for who imports them.
    """
    # so it is called while `python -m` imports the package
    words = sys.orig_argv if sys.argv[0] == "-m" else []
    is_program = any(word.startswith(f"{package}.") for word in words)
    if is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def command_line(main: Callable[[], int]) -> NoReturn:
    """Runs a script's main; SIGTERM and SIGHUP end it as Ctrl-C does.

    What it prints on a terminal goes through `Terminal`; files and pipes get it as it is.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see quiet_imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) != signal.SIG_IGN:  # as nohup has it
            signal.signal(name, signal.default_int_handler)
    sys.stdout.reconfigure(errors="replace")
    if sys.stdout.isatty():
        sys.stdout = Terminal(sys.stdout)
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("\nstopped; run the same command again to go on")
        code = 130
    except Exception as error:
        from .utils.errors import known

        if isinstance(error, OSError) and error.errno in NO_SPACE:
            what = error.filename or "what is printed"
            say(f"error: cannot write {what}: {error.strerror}; free some space")
            os._exit(1)  # what is still to be printed would raise once more
        if not (line := known(error)):
            raise
        say(f"error: {line}")
        code = 1
    sys.exit(code)
