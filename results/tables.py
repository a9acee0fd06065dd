"""The papers' tables out of folders of runs: python -m results.tables KIND FOLDER …

Numbers come from the runs' results.json, and from the logs alone where there is none. What was
found but cannot be counted, such as a failed seed, is said on stderr.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dassl.commands import OneLineParser, command_line, existing_folder, leave, log_to_stderr

from .latex import ABOUT_FIT, ABOUT_LABEL, FITS, LABEL
from .paper import PAPER_NAMES, with_paper
from .records import find_results
from .table_kinds import KINDS, make_table
from .text_table import ABOUT_MARKS, TABLE_FORMATS, Line, Table, csv_of, render

EXAMPLES = """examples:
  python -m results.tables base2new output --baseline MaPLe --format latex
  python -m results.tables ablation output/shapes_table4 --baseline baseline --cost
"""
STARS = "* best, _ second best"
ABOUT_COST = (
    "parameters: learned. train s: seconds in epochs, mean over the runs that have a record."
)


def usual_baseline(table: Table) -> str:
    """An ablation's: the setting called baseline or usual, else the first by name."""
    methods = [line.method for line in table.lines]
    named = (m for m in methods if m.split(" ")[-1].split("/")[-1] in ("baseline", "usual"))
    return next(named, methods[0])


def find_baseline(table: Table, name: str) -> str:
    """Find the one method that is called `name`.

    In full, by its trainer or the paper's name for it (in any case), by what tells it from others
    of its trainer, or by its setting's folder. Raises LookupError with one line otherwise.
    """
    methods = {line.method: line for line in table.lines}
    if name in methods:
        return name
    fits = []
    for method, line in methods.items():
        trainers = line.trainer.lower(), PAPER_NAMES.get(line.trainer, line.trainer).lower()
        if name.lower() in trainers or name == method.removeprefix(f"{line.trainer} "):
            fits.append(method)
    settings = {method: {r.root.name for r in line.runs} for method, line in methods.items()}
    fits = fits or [method for method, names in settings.items() if names == {name}]
    if len(fits) != 1:
        problem = "is several methods" if fits else "is no method here"
        raise LookupError(f"--baseline {name} {problem}; give one of: {', '.join(fits or methods)}")
    return fits[0]


def with_costs(table: Table) -> Table:
    """The same with columns for the learned parameters and the seconds of training."""
    lines = [replace(line, extra=costs(line)) for line in table.lines]
    caption = [*table.caption, ABOUT_COST]
    return replace(table, lines=lines, caption=caption, extra=("parameters", "train s"))


def costs(line: Line) -> list[str]:
    """Learned parameters and seconds of training, from the records there are."""
    records = [r.record for r in line.runs if r.record]
    seconds = [record["train_seconds"] for record in records if record["train_seconds"]]
    # a test may have only loaded what was learned
    trained = [record for record in records if record["train_seconds"]] or records
    counts = sorted({record["parameters"] for record in trained})
    parameters = "–".join(f"{n:,}" for n in dict.fromkeys(counts[:1] + counts[-1:]))
    return [parameters, f"{np.mean(seconds):.1f}" if seconds else ""]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    kinds = "\n".join(f"  {kind:<10} {text}" for kind, text in KINDS.items())
    epilog = f"kinds:\n{kinds}\n\n{EXAMPLES}"
    parser = OneLineParser("python -m results.tables", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("kind", choices=KINDS, metavar="KIND", help=" | ".join(KINDS))
    add("folders", nargs="+", type=existing_folder, metavar="FOLDER",
        help="runs are looked for in and below these")  # fmt: skip
    add("--baseline", metavar="METHOD",
        help="show differences to it; default of an ablation: the setting called baseline or "
        "usual, else the first")  # fmt: skip
    add("--format", default="text", choices=(*TABLE_FORMATS, "csv"), help="default: %(default)s")
    add("--fit", choices=FITS, default="", help=ABOUT_FIT)
    add("--label", metavar="NAME", help=ABOUT_LABEL)
    add("--paper", action="store_true", help="also show the paper's numbers where they are known")
    add("--cost", action="store_true", help="also show learned parameters and seconds of training")
    args = parser.parse_args(argv)
    for option in ("fit", "label"):
        if getattr(args, option) and args.format != "latex":
            parser.error(f"--{option} goes with --format latex")
    if args.label and not LABEL.fullmatch(args.label):
        parser.error(f"--label {args.label}: letters, digits and . : _ - only")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0; leaves with 1 (nothing found) or 2 (wrong arguments)."""
    args = parse_args(argv)
    log_to_stderr()
    table = make_table(args.kind, find_results(args.folders))
    if table is None:
        folders = " ".join(map(str, args.folders))
        leave(f"no result for the {args.kind} table in {folders}", 1)
    baseline = args.baseline
    if baseline is None and args.kind == "ablation" and len(table.lines) > 1:
        baseline = usual_baseline(table)
    try:
        baseline = find_baseline(table, baseline) if baseline else None
    except LookupError as error:
        leave(error.args[0], 2)
    table = with_paper(table, args.kind) if args.paper else table
    table = table.against(baseline) if baseline else table
    table = with_costs(table) if args.cost else table
    if args.format == "csv":
        print(csv_of(table))
        return 0
    best = STARS if args.format == "text" else ABOUT_MARKS
    about = f"accuracy in %: mean ± population std over seeds. {best} of each dataset's column."
    table = replace(
        table, caption=[about, *table.caption], label=(args.label or args.kind).removeprefix("tab:")
    )
    print(render(table, args.format, marked=True, fit=args.fit))
    return 0


if __name__ == "__main__":
    command_line(main)
