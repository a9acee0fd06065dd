"""What programs that open a trained model have in their command lines. Imports no PyTorch."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dassl.files import regular


def existing(text: str) -> str:
    """The type of an argument that must be a file or folder."""
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return text


def names_in(file: str) -> list[str]:
    """The lines of a file of class names. Raises: ArgumentTypeError if it cannot be read."""
    try:
        lines = Path(regular(file)).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"cannot read {file}: {why}") from error
    if not any(map(str.strip, lines)):
        raise argparse.ArgumentTypeError(f"{file}: no names in it, which stand one a line")
    return [line for line in lines if line.strip()]


def add_model(parser: argparse.ArgumentParser) -> None:
    """RUN, other names for its classes, and which CLIP."""
    add = parser.add_argument
    add("run", type=existing, metavar="RUN", help="output folder, checkpoint file or export")
    names = parser.add_mutually_exclusive_group()
    in_place = "other classes than the run's (behind the other arguments)"
    names.add_argument("--classes", nargs="+", metavar="NAME", help=in_place)
    names.add_argument("--classes-file", type=names_in, metavar="FILE", help="one name a line")
    add("--weights", type=existing, metavar="FILE", help="CLIP, if it has moved")
    add("--any-clip", action="store_true", help="also take a CLIP that is not the run's")


def parse_model(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with `run` a Path and `classes` names or None.

    Leaves with code 2 and one line if they make no sense.
    """
    args = parser.parse_args(argv)
    args.run, given = Path(args.run), args.classes or args.classes_file
    args.classes = [name.strip() for name in given] if given else None
    read = [name.replace("_", " ") for name in args.classes or ()]
    if "" in read:
        parser.error("a class has no name")
    if twice := [name for i, name in enumerate(read) if name in read[:i]]:
        parser.error(f"the class {twice[0]!r} is named twice")
    return args
