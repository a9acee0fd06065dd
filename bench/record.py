"""What a program of bench/ measured, kept as docs/records has it: --record FILE."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from dassl.commands import leave

from .timing import code, machine, table


def add_record(parser: argparse.ArgumentParser) -> None:
    """The flag; what it says goes to a Record."""
    words = "also keep the tables here; below output/, as a changed docs/records changes the commit"
    parser.add_argument("--record", type=Path, metavar="FILE", help=words)


def command_of(program: str, words: Sequence[str]) -> str:
    """A command as a document shall show it, without --record and its file."""
    words = list(words)
    for i, word in enumerate(words):
        if word.partition("=")[0] == "--record":
            del words[i : i + 2 - ("=" in word)]
            break
    return f"{program} {shlex.join(words)}".strip()


class Record:
    """A table goes to the file when it is made, so what ends early leaves those before."""

    def __init__(
        self, file: Path | None, program: str, argv: Sequence[str] | None = None, device: str = ""
    ):
        """file: None keeps nothing. argv: None is sys.argv's. device: a GPU, beside the CPU.

        Leaves with 1 if it cannot be written, before hours are spent.
        """
        self.file = file
        about = {
            "command": command_of(program, sys.argv[1:] if argv is None else argv),
            "commit": code().removeprefix("commit "),
            "machine": "; ".join(filter(None, (device, machine()))),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if file:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{json.dumps(about, ensure_ascii=False)}\n", encoding="utf-8")
            except OSError as error:
                leave(f"cannot write {file}: {error.strerror}", 1)

    def table(self, section: str, rows: Sequence[Mapping[str, object]]) -> str:
        """The rows as a markdown table, and as lines of the file."""
        if self.file:
            with open(self.file, "a", encoding="utf-8") as file:
                for row in rows:
                    texts = {key: str(value) for key, value in row.items()}
                    line = json.dumps({"section": section} | texts, ensure_ascii=False)
                    file.write(f"{line}\n")
        return table(rows)
