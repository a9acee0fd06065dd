"""Figures as files for a paper: the options of commands that draw, and what they write."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.commands import leave

from .fonts import find_font
from .panels import DPI, Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 2.0, 1.0  # inches, width and height
MOST = 40.0
NO_PICTURE = ("raw", "rgba", "pgf")  # pgf: names would be LaTeX's commands
# Without the date, equal numbers give equal files.
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def add_figure_options(parser: argparse.ArgumentParser) -> None:
    """--width, --height, --font, --format, --no-note and --out."""
    add = parser.add_argument
    size = {"type": float, "metavar": "INCHES"}
    add("--width", **size, help="of the whole figure; default: what it takes, up to 6.875 (a page)")
    add("--height", **size, help="of the whole figure; default: what it takes")
    add("--font", metavar="FONT", help="a family or a font's file; default: STIX, much like Times")
    add("--format", nargs="+", default=["png", "pdf"], metavar="FORMAT",
        help="png, pdf, svg, eps, … as matplotlib has them; default: png pdf")  # fmt: skip
    add("--no-note", action="store_true",
        help="leave out of the figure what warns of its misreading; NAME.txt has it")  # fmt: skip
    add("--out", type=Path, default=Path("figures"), metavar="DIR",
        help="folder for the figures; default: %(default)s")  # fmt: skip


def page_of(args: argparse.Namespace) -> Page:
    """The page these options ask for; leaves with code 2 and one line if it cannot be."""
    for name, least in zip(("width", "height"), LEAST, strict=True):
        value = getattr(args, name)
        if value is not None and not least <= value <= MOST:  # nor is nan
            leave(f"--{name} {value:g}: must be {least:g} to {MOST:g} inches", 2)
    check_formats(args.format)
    font = None
    if args.font is not None:
        try:
            font = find_font(args.font)
        except LookupError as error:
            leave(f"--font {error.args[0]}", 2)
    return Page(args.width, args.height, font, not args.no_note)


def check_formats(formats: Sequence[str]) -> None:
    """Leaves with code 2 and one line if matplotlib, or this machine, cannot write one."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(set(FigureCanvasBase.get_supported_filetypes()) - {*NO_PICTURE})
    for format in formats:
        if format not in known:
            leave(f"--format {format}: choose from {', '.join(known)}", 2)


def save(
    figure: "Figure", name: str, folder: Path, formats: Sequence[str], page: Page, caption: str
) -> None:
    """Write and print name.FORMAT of each, and name.txt: the caption. Raises OSError."""
    import matplotlib

    with matplotlib.rc_context(page.style):
        for format in dict.fromkeys(formats):
            path = folder / f"{name}.{format}"
            figure.savefig(path, dpi=DPI, metadata=UNDATED.get(format))
            print(path)
    path = folder / f"{name}.txt"
    path.write_text(f"{caption}\n", encoding="utf-8", errors="backslashreplace")
    print(path)
