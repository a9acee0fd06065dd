"""A whole protocol: all its runs, one after the other, and the table of their results.

Every run is a plain `bash scripts/<method>/<script>.sh` (see --dry-run) and takes the same
variables from the environment: DATA, OUTPUT, CFG, SHOTS, VENV. What follows `--` goes to train.py.
Runs whose log has a result are not repeated, so the same command goes on where it was stopped;
other settings need another OUTPUT.
"""

import argparse
import csv
import io
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from tabulate import tabulate

from dassl.commands import OneLineParser, command_line, say
from results import base_new, logs
from results.protocols import TARGETS, TEN
from results.statistics import summarise
from results.text_table import TABLE_FORMATS, show_stat

from . import runner
from .runner import PROTOCOLS, SHOTS, Plan, Pool, Run

METHODS = ("p2c", "maple", "zsclip")
EXAMPLES = """examples:
  bash scripts/protocol.sh base2new --methods p2c maple zsclip --datasets shapes --seeds 1 2 3
  bash scripts/protocol.sh xd --datasets shapes                        from shapes to its usual targets
  bash scripts/protocol.sh xd --datasets imagenet dtd eurosat          from imagenet to these two
  OUTPUT=output/short bash scripts/protocol.sh few_shot --datasets dtd --shots 1 4 -- OPTIM.MAX_EPOCH 20
"""

Values = dict[int, float]  # seed -> accuracy


class OneByOne(runner.View):
    """A line for each run that begins, and what it writes to stderr, bars and all."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()

    def starts(self, pool: Pool, run: Run) -> None:
        say(f"[{pool.runs.index(run) + 1}/{len(pool.runs)}] {run}{pool.left()}")

    def wrote(self, piece: bytes) -> None:
        sys.stderr.buffer.write(piece)
        sys.stderr.flush()


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    methods, known = runner.methods(), runner.datasets()
    parser = OneLineParser("bash scripts/protocol.sh", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("protocol", choices=PROTOCOLS, metavar="PROTOCOL", help=" | ".join(PROTOCOLS))
    add("--methods", nargs="+", type=str.lower, choices=methods, default=METHODS, metavar="M",
        help=f"default: {' '.join(METHODS)}; of {' '.join(methods)}")  # fmt: skip
    add("--datasets", nargs="+", choices=known, metavar="D",
        help="base2new, few_shot: default the eleven; xd, dg: the source (default imagenet), then targets (default "
        f"the usual ones); of {' '.join(known)}")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    add(
        "--shots",
        nargs="+",
        type=int,
        default=SHOTS,
        metavar="K",
        help="few_shot: default 1 2 4 8 16",
    )
    add("--format", default="text", choices=(*TABLE_FORMATS, "csv"), help="of the table")
    add("--dry-run", action="store_true", help="print the commands that are still to be run")
    args = parser.parse_args(argv[:cut])
    args.opts = argv[cut + 1 :]
    for name in ("methods", "seeds", "shots"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    if min(args.seeds) < 0 or min(args.shots) < 1:
        parser.error("--seeds are 0 or more, --shots 1 or more")
    if given := set(args.opts) & set(runner.GIVEN):
        parser.error(f"{min(given)} is no setting: each run has its own")
    if args.opts and "OUTPUT" not in os.environ:
        parser.error(
            "settings after -- give other results: set OUTPUT to a folder of their own, as OUTPUT=output/other"
        )
    set_datasets(args, parser)
    return args


def set_datasets(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`args.datasets` to train on and `args.targets` to test on."""
    args.targets = []
    if args.protocol not in ("xd", "dg"):
        args.datasets = list(dict.fromkeys(args.datasets or ("imagenet", *TEN)))
        return
    source, *targets = dict.fromkeys(args.datasets or ["imagenet"])
    args.datasets, args.targets = [source], targets or TARGETS.get((args.protocol, source))
    if not args.targets:
        parser.error(f"{source} has no usual targets: give --datasets {source} TARGET …")


def mean_over(cells: Iterable[Values]) -> Values:
    """Each seed's mean, of the seeds that all cells have."""
    cells = list(cells)
    seeds = sorted(set.intersection(*map(set, cells))) if cells else []
    return {seed: float(np.mean([cell[seed] for cell in cells])) for seed in seeds}


def base_new_table(runs: Iterable[Run], fmt: str) -> str:
    """As parse_test_res --hm, of these runs."""
    sides: dict[str, dict[base_new.Run, float]] = {"base": {}, "new": {}}
    for run in runs:
        if (accuracy := run.accuracy()) is not None:
            dataset, shots, trainer, cfg, _ = run.folder.parts[-5:]
            variant = cfg if shots == "shots_16" else f"{cfg} {shots}"
            sides[run.column][base_new.Run(dataset, trainer, variant, run.seed)] = accuracy
    rows = base_new.hm_table(sides["base"], sides["new"])
    return base_new.render(rows, fmt) if rows else ""


def grid(runs: Iterable[Run], targets: Sequence[str]) -> dict[tuple[str, str], dict[str, Values]]:
    """{(dataset trained on, trainer): {column: values}}, with averages over targets, or over
    datasets."""
    rows: dict[tuple[str, str], dict[str, Values]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        row = rows[run.dataset, run.trainer]
        if (accuracy := run.accuracy()) is not None:
            row[run.column][run.seed] = accuracy
    if targets:
        for row in rows.values():
            row["average"] = mean_over([row[target] for target in targets])
    elif len({dataset for dataset, _ in rows}) > 1:
        for trainer in dict.fromkeys(trainer for _, trainer in rows):
            of_trainer = [row for (_, name), row in rows.items() if name == trainer]
            columns = dict.fromkeys(column for row in of_trainer for column in row)
            rows["Average", trainer] = {
                c: mean_over([row[c] for row in of_trainer]) for c in columns
            }
    return rows


def grid_table(
    rows: dict[tuple[str, str], dict[str, Values]], columns: Sequence[str], caption: str, fmt: str
) -> str:
    """Lay out a grid in parse_test_res' formats; its first columns are dataset and method."""
    if fmt == "csv":
        out = io.StringIO()
        write = csv.writer(out, lineterminator="\n").writerow
        write(
            [
                "dataset",
                "method",
                *(f"{c}_{part}" for c in columns for part in ("mean", "std", "seeds")),
            ]
        )
        for key, row in rows.items():
            cells = [row.get(c) for c in columns]
            stats = [
                (*summarise(list(v.values())), len(v)) if v else (np.nan, np.nan, 0)
                for v in cells
            ]
            numbers = (
                "" if np.isnan(x) else f"{x:.4f}" if isinstance(x, float) else x
                for stat in stats
                for x in stat
            )
            write([*key, *numbers])
        return out.getvalue().rstrip("\n")
    most = max(len(v) for row in rows.values() for v in row.values())
    lines = [[*key, *(cell(row.get(c), most) for c in columns)] for key, row in rows.items()]
    table = tabulate(
        lines, ["dataset", "method", *columns], TABLE_FORMATS[fmt], disable_numparse=True
    )
    if fmt == "latex":
        return f"% {caption}\n" + table.replace("±", r"$\pm$").replace("–", "--")
    return f"{table}\n\n{caption}"


def cell(values: Values | None, most: int) -> str:
    """Mean and spread, and of how many seeds if others have more."""
    if not values:
        return "–"
    stat = summarise(list(values.values()))
    return show_stat(stat) + (
        f" ({len(values)} of {most} seeds)" if len(values) < most else ""
    )


def table(args: argparse.Namespace, runs: Sequence[Run]) -> str:
    """The protocol's table of what has a result; nothing if there is none."""
    if args.protocol == "base2new":
        return base_new_table(runs, args.format)
    rows = grid(runs, args.targets)
    if not any(v for row in rows.values() for v in row.values()):
        return ""
    caption = f"accuracy in %: mean ± population std over seeds ({' '.join(map(str, args.seeds))})"
    if args.protocol == "few_shot":
        return grid_table(
            rows, [str(n) for n in args.shots], f"{caption}; columns are shots.", args.format
        )
    columns = [*args.datasets, *args.targets, "average"]
    return grid_table(
        rows, columns, f"{caption}; average: over the targets, per seed.", args.format
    )


def main(argv: Sequence[str] | None = None) -> int:
    """0 or 1 (a run failed); leaves with 2 for wrong arguments."""
    args = parse_args(argv)
    logs.log.setLevel("CRITICAL")  # what is not finished is run, and what failed is reported
    plan = Plan(args.protocol, args.targets, args.shots, args.opts)
    combinations = [(m, d, s) for s in args.seeds for d in args.datasets for m in args.methods]
    runs = [run for combination in combinations for run in plan.runs(*combination)]
    if args.dry_run:
        for run in runner.unfinished(runs):
            print(run.shell())
        return 0
    failed = Pool(runs, [{}], OneByOne()).run()
    if text := table(args, runs):
        print(f"\n{text}")
    if failed:
        runner.report(failed, len(runs))
    return 1 if failed else 0


if __name__ == "__main__":
    command_line(main)
