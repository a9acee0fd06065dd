"""The paper's figures, and some it lacks: python -m results.figures KIND FOLDER …

Numbers come from the runs' results.json; losses and times of runs without one from their logs.
Each figure is written as PNG and PDF, or as --format says, and beside it NAME.txt: its caption.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dassl.commands import OneLineParser, command_line, leave, log_to_stderr

from .figure_files import add_figure_options, page_of, save
from .names import name_methods
from .panels import Page, TooSmall
from .plots import KINDS, caption, draw
from .records import Result, find_results
from .schedule import draw_schedule, schedule_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = """examples:
  python -m results.figures loss output --methods P2C MaPLe --out figures
  python -m results.figures all output/shapes_table4
  python -m results.figures schedule configs/trainers/P2C/vit_b16_ep5_batch4.yaml \
TRAINER.P2C.DPD.SCHEDULE cosine
  python -m results.figures shots output --width 3.25 --height 2 --font "Times New Roman" \
--format pdf
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    lines = {kind: about.text for kind, about in KINDS.items()}
    lines["schedule"] += "; takes a config file, KEY VALUE pairs or both in place of folders"
    lines["all"] = "each of them that there is something for, the schedule of the P2C runs found"
    kinds = "\n".join(f"  {kind:<11} {text}" for kind, text in lines.items())
    epilog = f"kinds:\n{kinds}\n\n{EXAMPLES}"
    parser = OneLineParser("python -m results.figures", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("kind", choices=lines, metavar="KIND", help=" | ".join(lines))
    add("what", nargs="*", metavar="FOLDER", help="runs are looked for in and below these")
    add("--methods", nargs="+", metavar="METHOD",
        help="draw only these, by trainer or as the legend calls them")  # fmt: skip
    add_figure_options(parser)
    args = parser.parse_args(argv)
    if args.kind != "schedule":
        if not args.what:
            parser.error("give the folders of the runs")
        for folder in args.what:
            if not os.path.isdir(folder):  # Path.is_dir raises for names that are too long
                parser.error(f"{folder}: no such folder")
    return args


def only(found: Sequence[Result], methods: Sequence[str] | None) -> list[Result]:
    """The results of these methods; leaves with one line if one of them has none."""
    if not methods:
        return list(found)
    names = name_methods(found)
    there = {name: r.trainer for r, name in names.items()}
    for method in methods:
        if method not in there and method not in there.values():
            known = ", ".join(sorted(there)) or "no runs"
            leave(f"--methods {method}: none here; there are {known}", 2)
    return [r for r in found if names[r] in methods or r.trainer in methods]


def drawn(args: argparse.Namespace, page: Page) -> dict[str, "Figure"]:
    """{kind: figure} of all there is something for. Raises TooSmall."""
    import matplotlib

    if args.kind == "schedule":
        cfg = schedule_config(args.what)
        with matplotlib.rc_context(page.style):
            return {"schedule": draw_schedule(cfg, page)}
    found = only(find_results(map(Path, args.what)), args.methods)
    kinds = KINDS if args.kind == "all" else [args.kind]
    return {kind: figure for kind in kinds if (figure := draw(kind, found, page))}


def main(argv: Sequence[str] | None = None) -> int:
    """0; leaves with 1 (nothing to draw) or 2 (wrong arguments)."""
    args = parse_args(argv)
    log_to_stderr()
    page = page_of(args)
    try:
        figures = drawn(args, page)
    except TooSmall as error:
        leave(str(error), 2)
    if not figures:
        needs = KINDS[args.kind].needs if args.kind in KINDS else "results"
        leave(f"nothing to draw in {' '.join(args.what)} (looked for {needs})", 1)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for kind, figure in figures.items():
            save(figure, kind, args.out, args.format, page, caption(figure, KINDS[kind].text))
    except OSError as error:
        leave(f"cannot write to {args.out}: {error.strerror or error}", 1)
    return 0


if __name__ == "__main__":
    command_line(main)
