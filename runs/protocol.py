"""A whole protocol: all its runs, one after the other, and the table of their results.

Every run is a plain `bash scripts/<method>/<script>.sh` (see --dry-run) and takes the same
variables from the environment: DATA, OUTPUT, CFG, SHOTS, LOADEP, VENV, CLIP_WEIGHTS, CLIP_MIRROR.
What follows `--` goes to train.py. Runs whose log has a result are not repeated, but for tests of
a model that was trained anew or of another epoch than LOADEP's. So the same command goes on where
it was stopped; other settings need another OUTPUT.
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from dassl.commands import OneLineParser, command_line, say
from results import base_new, logs
from results.names import about
from results.protocols import TARGETS, TEN
from results.statistics import summarise
from results.text_table import AVERAGE, TABLE_FORMATS, csv_number, lay_out, show_stat, to_csv

from . import plan
from .plan import PROTOCOLS, SHOTS, Plan, Run
from .pool import Pool, View, report

METHODS = ("p2c", "maple", "zsclip")
EXAMPLES = """examples:
  bash scripts/protocol.sh base2new --methods p2c maple zsclip --datasets shapes --seeds 1 2 3
  bash scripts/protocol.sh xd --datasets shapes                 from shapes to its usual targets
  bash scripts/protocol.sh xd --datasets imagenet dtd eurosat   from imagenet to these two
  OUTPUT=output/short bash scripts/protocol.sh few_shot --datasets dtd -- OPTIM.MAX_EPOCH 20
"""

Values = dict[int, float]  # seed -> accuracy
Grid = dict[tuple[str, str], dict[str, Values]]  # (dataset trained on, trainer) -> column -> values


class OneByOne(View):
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
    methods, known = plan.methods(), plan.datasets()
    parser = OneLineParser("bash scripts/protocol.sh", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("protocol", choices=PROTOCOLS, metavar="PROTOCOL", help=" | ".join(PROTOCOLS))
    add("--methods", nargs="+", type=str.lower, choices=methods, default=METHODS, metavar="M",
        help=f"default: {' '.join(METHODS)}; of {' '.join(methods)}")  # fmt: skip
    add("--datasets", nargs="+", choices=known, metavar="D",
        help="base2new, few_shot: default the eleven; xd, dg: the source (default imagenet), "
        f"then targets (default the usual ones); of {' '.join(known)}")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    add("--shots", nargs="+", type=int, default=SHOTS, metavar="K",
        help="few_shot: default 1 2 4 8 16")  # fmt: skip
    add("--format", default="text", choices=(*TABLE_FORMATS, "csv"), help="of the table")
    add("--dry-run", action="store_true", help="print the commands that are still to be run")
    args = parser.parse_args(argv[:cut])
    args.opts = argv[cut + 1 :]
    args.methods, args.seeds, args.shots = map(once, (args.methods, args.seeds, args.shots))
    if min(args.seeds) < 0 or min(args.shots) < 1:
        parser.error("--seeds are 0 or more, --shots 1 or more")
    if given := {word.partition("=")[0] for word in args.opts} & set(plan.GIVEN):
        parser.error(f"{min(given)} is no setting: each run has its own")
    if args.opts and "OUTPUT" not in os.environ:
        line = "settings after -- give other results: set OUTPUT to a folder of their own"
        parser.error(f"{line}, as OUTPUT=output/other")
    set_datasets(args, parser)
    return args


def once(values: Iterable) -> list:
    """Each value where it is first."""
    return list(dict.fromkeys(values))


def set_datasets(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`args.datasets` to train on and `args.targets` to test on."""
    args.targets = []
    if args.protocol not in ("xd", "dg"):
        args.datasets = once(args.datasets or ("imagenet", *TEN))
        return
    source, *targets = args.datasets or ["imagenet"]
    args.datasets, args.targets = [source], once(targets) or TARGETS.get((args.protocol, source))
    if not args.targets:
        parser.error(f"{source} has no usual targets: give --datasets {source} TARGET …")


# -- the tables


def table(args: argparse.Namespace, runs: Sequence[Run]) -> str:
    """The protocol's table of what has a result; nothing if there is none."""
    if args.protocol == "base2new":
        return base_new_table(runs, args.format)
    rows = grid(runs, args.targets)
    if not any(values for row in rows.values() for values in row.values()):
        return ""
    columns = [*args.datasets, *args.targets, "average"]
    note = "average: over the targets, per seed."
    if args.protocol == "few_shot":
        columns, note = [str(n) for n in args.shots], "columns are shots."
    seeds = " ".join(map(str, args.seeds))
    caption = f"accuracy in %: mean ± population std over seeds ({seeds}); {note}"
    return grid_table(rows, columns, caption, args.format)


def base_new_table(runs: Iterable[Run], fmt: str) -> str:
    """As parse_test_res --hm, of these runs."""
    sides: dict[str, dict[base_new.Run, float]] = {"base": {}, "new": {}}
    for run in runs:
        if (accuracy := run.accuracy()) is not None:
            sides[run.column][base_new.run_at(run.place)] = accuracy
    lines = base_new.hm_table(sides["base"], sides["new"])
    return base_new.render(lines, fmt) if lines else ""


def grid(runs: Iterable[Run], targets: Sequence[str]) -> Grid:
    """The accuracies, with averages over targets, or over datasets."""
    rows: Grid = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        row = rows[run.dataset, run.place.trainer]
        if (accuracy := run.accuracy()) is not None:
            row[run.column][run.seed] = accuracy
    if targets:
        for row in rows.values():
            row["average"] = mean_over([row[target] for target in targets])
    elif len({dataset for dataset, _ in rows}) > 1:
        for trainer in once(trainer for _, trainer in rows):
            of_trainer = [row for (_, name), row in rows.items() if name == trainer]
            columns = once(column for row in of_trainer for column in row)
            averages = {c: mean_over([row[c] for row in of_trainer]) for c in columns}
            rows[AVERAGE, trainer] = averages
    return rows


def mean_over(cells: Sequence[Values]) -> Values:
    """Each seed's mean, of the seeds that all cells have."""
    seeds = sorted(set.intersection(*map(set, cells))) if cells else []
    return {seed: float(np.mean([cell[seed] for cell in cells])) for seed in seeds}


def grid_table(rows: Grid, columns: Sequence[str], caption: str, fmt: str) -> str:
    """Lay out a grid in parse_test_res' formats; its first columns are dataset and method."""
    if fmt == "csv":
        parts = [f"{c}_{part}" for c in columns for part in ("mean", "std", "seeds")]
        lines = [["dataset", "method", *parts]]
        for key, row in rows.items():
            lines.append([*key, *(n for c in columns for n in csv_cell(row.get(c)))])
        return to_csv(lines)
    most = max(len(values) for row in rows.values() for values in row.values())
    lines = [[*key, *(cell(row.get(c), most) for c in columns)] for key, row in rows.items()]
    caption = [caption, *about(method for _, method in rows)]
    return lay_out(["dataset", "method", *columns], [lines], caption, fmt)


def csv_cell(values: Values | None) -> list[str]:
    """Mean, spread and number of seeds."""
    if not values:
        return ["", "", "0"]
    stat = summarise(list(values.values()))
    return [*map(csv_number, stat), str(len(values))]


def cell(values: Values | None, most: int) -> str:
    """Mean and spread, and of how many seeds if others have more."""
    if not values:
        return "–"
    note = f" ({len(values)} of {most} seeds)" if len(values) < most else ""
    return show_stat(summarise(list(values.values()))) + note


def main(argv: Sequence[str] | None = None) -> int:
    """0, 1 (a run failed), or 128 + N (signal N ended one); leaves with 2 for wrong arguments."""
    args = parse_args(argv)
    logs.log.setLevel("CRITICAL")  # what is not finished is run, and what failed is reported
    plans = [Plan(args.protocol, args.targets, args.shots, args.opts)]
    runs = plan.runs_of(plan.all_models(plans, args.methods, args.datasets, args.seeds))
    if args.dry_run:
        for run in plan.unfinished(runs):
            print(run.shell())
        return 0
    pool = Pool(runs, [{}], OneByOne())
    failed = pool.run()
    if text := table(args, [run for run in runs if run not in failed]):
        print(f"\n{text}")
    if failed:
        report(failed, len(runs))
    return pool.code


if __name__ == "__main__":
    command_line(main)
