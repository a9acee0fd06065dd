"""A whole protocol: all its runs, one after the other, and the table of their results.

Every run is a plain `bash scripts/<method>/<script>.sh` (see --dry-run) and takes the same variables from the
environment: DATA, OUTPUT, CFG, SHOTS, VENV. What follows `--` goes to train.py. Runs whose log has a result are not
repeated, so the same command goes on where it was stopped; other settings need another OUTPUT.
"""

import argparse
import csv
import io
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from tabulate import tabulate

import parse_test_res as results

SCRIPTS = Path("scripts")  # the working directory is the repository's
METHODS = ("p2c", "maple", "zsclip")
TEN = ("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd",
       "eurosat", "ucf101")  # fmt: skip
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
PROTOCOLS = ("base2new", "xd", "dg", "few_shot")
# The usual targets of a source.
TARGETS = {
    ("xd", "imagenet"): TEN,
    ("xd", "shapes"): ("shapes_background", "shapes_count"),
    ("dg", "imagenet"): VARIANTS,
    ("dg", "shapes"): ("shapes_blur", "shapes_night", "shapes_sketch"),
}
EXAMPLES = """examples:
  bash scripts/protocol.sh base2new --methods p2c maple zsclip --datasets shapes --seeds 1 2 3
  bash scripts/protocol.sh xd --datasets shapes                        from shapes to its usual targets
  bash scripts/protocol.sh xd --datasets imagenet dtd eurosat          from imagenet to these two
  bash scripts/protocol.sh few_shot --datasets dtd --shots 1 4 --format markdown -- OPTIM.MAX_EPOCH 20
"""
LAST_LINES = 5  # of a failed run's output are repeated at the end

Values = dict[int, float]  # seed -> accuracy


@dataclass(eq=False)
class Run:
    """One run: what to start, where its log will be, and its place in the table."""

    method: str
    dataset: str  # that it is, or its model was, trained on
    seed: int
    part: str  # what it does, in words
    column: str
    command: list[str]
    env: dict[str, str]
    folder: Path
    trained: "Run | None" = None  # the run whose model this one tests

    def __str__(self) -> str:
        return f"{self.method}, {self.dataset}, seed {self.seed}: {self.part}"

    def shell(self) -> str:
        """The command as one would type it."""
        return " ".join([*(f"{k}={shlex.quote(v)}" for k, v in self.env.items()), shlex.join(self.command)])

    def accuracy(self) -> float | None:
        """The result in the newest finished log; None if there is none."""
        if not self.folder.is_dir():
            return None
        result = results.newest_result(self.folder, "accuracy", eval_only=True)
        return result and result.metrics["accuracy"]

    @property
    def trainer(self) -> str:
        """All training folders end in <Trainer>/<config>/seed<N>."""
        return (self.trained or self).folder.parts[-3]


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}\n")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    methods = sorted(path.parent.name for path in SCRIPTS.glob("*/base2new_train.sh"))
    known = sorted(path.stem for path in Path("configs/datasets").glob("*.yaml"))
    parser = OneLineParser(
        "bash scripts/protocol.sh",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("protocol", choices=PROTOCOLS, metavar="PROTOCOL", help=" | ".join(PROTOCOLS))
    add("--methods", nargs="+", choices=methods, default=METHODS, metavar="M",
        help=f"default: {' '.join(METHODS)}; of {' '.join(methods)}")  # fmt: skip
    add("--datasets", nargs="+", choices=known, metavar="D",
        help="base2new, few_shot: default the eleven; xd, dg: the source (default imagenet), then targets (default "
        f"the usual ones); of {' '.join(known)}")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    add("--shots", nargs="+", type=int, default=[1, 2, 4, 8, 16], metavar="K", help="few_shot: default 1 2 4 8 16")
    add("--format", default="text", choices=(*results.TABLE_FORMATS, "csv"), help="of the table")
    add("--dry-run", action="store_true", help="print the commands that are still to be run")
    args = parser.parse_args(argv[:cut])
    args.opts = argv[cut + 1 :]
    for name in ("methods", "seeds", "shots"):
        setattr(args, name, list(dict.fromkeys(getattr(args, name))))
    if min(args.seeds) < 0 or min(args.shots) < 1:
        parser.error("--seeds are 0 or more, --shots 1 or more")
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


def make_run(method: str, script: str, words: Iterable[object], opts: Sequence[str], **fields) -> Run:
    """The run of a script; leaves with the script's own line if that finds something wrong."""
    command = ["bash", f"{SCRIPTS}/{method}/{script}.sh", *map(str, words), *opts]
    env = fields.pop("env", {})
    asked = subprocess.run(command, env=os.environ | env | {"SHOW_DIR": "1"}, capture_output=True, text=True)
    if asked.returncode:
        sys.stderr.write(asked.stderr)
        sys.exit(asked.returncode)
    return Run(method=method, command=command, env=env, folder=Path(asked.stdout.rstrip("\n")), **fields)


def runs_of(args: argparse.Namespace, method: str, dataset: str, seed: int) -> list[Run]:
    """One method's runs with one seed, each model's training before its tests."""
    opts, common = args.opts, {"dataset": dataset, "seed": seed}
    if args.protocol == "few_shot":
        return [
            make_run(method, "few_shot", (dataset, n, seed), opts, part=f"{n}-shot training", column=str(n), **common)
            for n in args.shots
        ]
    script = "base2new" if args.protocol == "base2new" else "xd"
    where = "base" if script == "base2new" else dataset
    train = make_run(method, f"{script}_train", (dataset, seed), opts, part="train", column=where, **common)
    common["trained"] = train
    if script == "base2new":
        return [train, make_run(method, "base2new_test", (dataset, seed), opts, part="test", column="new", **common)]
    common["env"] = {"SOURCE": dataset}
    return [
        train,
        *(make_run(method, "xd_test", (t, seed), opts, part=f"test on {t}", column=t, **common) for t in args.targets),
    ]


class Clock:
    """What is left, from what runs of the same method and part took."""

    def __init__(self):
        self.took: dict[tuple[str, str], list[float]] = defaultdict(list)

    def left(self, runs: Iterable[Run]) -> str:
        """The time these runs will take, in words; nothing before the first has ended."""
        everything = [t for times in self.took.values() for t in times]
        if not everything:
            return ""
        seconds = sum(float(np.mean(self.took.get((r.method, r.part), everything))) for r in runs)
        return f" (about {timedelta(seconds=round(seconds))} left)"


def execute(run: Run) -> tuple[int, list[str]]:
    """Run it and show its stderr, bars and all; its stdout is in its log.txt. Returns its exit code and last lines."""
    if sys.stderr.isatty():  # then the run must see a terminal too, of the same width
        ours, its = pty.openpty()
        termios.tcsetwinsize(its, termios.tcgetwinsize(sys.stderr.fileno()))
    else:
        ours, its = os.pipe()
    last = b""
    with subprocess.Popen(run.command, env=os.environ | run.env, stdout=subprocess.DEVNULL, stderr=its) as process:
        os.close(its)
        try:
            while piece := read(ours):
                last = (last + piece)[-20_000:]
                sys.stderr.buffer.write(piece)
                sys.stderr.flush()
        except KeyboardInterrupt:
            process.terminate()  # what it saved is whole, and the next time it goes on from there
            process.wait()
            raise
        finally:
            os.close(ours)
    lines = last.decode(errors="replace").replace("\r", "\n").splitlines()
    return process.returncode, [line for line in lines if line.strip()][-LAST_LINES:]


def read(fd: int) -> bytes:
    """What there is to read; nothing at the end, which Linux reports as an error for a terminal."""
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


def unfinished(runs: Iterable[Run]) -> list[Run]:
    """What has no result, and the tests of what has to be trained anew."""
    todo: list[Run] = []
    for run in runs:
        if run.accuracy() is None or run.trained in todo:
            todo.append(run)
    return todo


def run_all(runs: Sequence[Run]) -> dict[Run, list[str]]:
    """Run what is not finished.

    Returns the last lines of what failed; none for a test that was not run as its model's training had failed.
    """
    todo = unfinished(runs)
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs are finished")
    failed: dict[Run, list[str]] = {}
    clock = Clock()
    for i, run in enumerate(todo):
        if run.trained in failed:
            failed[run] = []
            continue
        say(f"[{runs.index(run) + 1}/{len(runs)}] {run}{clock.left(todo[i:])}")
        start = time.monotonic()
        code, last = execute(run)
        if code or run.accuracy() is None:
            failed[run] = last or [f"exit code {code} and no result in {run.folder}"]
        else:
            clock.took[run.method, run.part].append(time.monotonic() - start)
    return failed


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def mean_over(cells: Iterable[Values]) -> Values:
    """Each seed's mean, of the seeds that all cells have."""
    cells = list(cells)
    seeds = sorted(set.intersection(*map(set, cells))) if cells else []
    return {seed: float(np.mean([cell[seed] for cell in cells])) for seed in seeds}


def base_new_table(runs: Iterable[Run], fmt: str) -> str:
    """As parse_test_res --hm, of these runs."""
    sides: dict[str, dict[results.Run, float]] = {"base": {}, "new": {}}
    for run in runs:
        if (accuracy := run.accuracy()) is not None:
            dataset, shots, trainer, cfg, _ = run.folder.parts[-5:]
            variant = cfg if shots == "shots_16" else f"{cfg} {shots}"
            sides[run.column][results.Run(dataset, trainer, variant, run.seed)] = accuracy
    rows = results.hm_table(sides["base"], sides["new"])
    return results.render(rows, fmt) if rows else ""


def grid(runs: Iterable[Run], targets: Sequence[str]) -> dict[tuple[str, str], dict[str, Values]]:
    """{(dataset trained on, trainer): {column: values}}, with averages over targets, or over datasets."""
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
            rows["Average", trainer] = {c: mean_over([row[c] for row in of_trainer]) for c in columns}
    return rows


def grid_table(rows: dict[tuple[str, str], dict[str, Values]], columns: Sequence[str], caption: str, fmt: str) -> str:
    """Lay out a grid in parse_test_res' formats; its first columns are dataset and method."""
    if fmt == "csv":
        out = io.StringIO()
        write = csv.writer(out, lineterminator="\n").writerow
        write(["dataset", "method", *(f"{c}_{part}" for c in columns for part in ("mean", "std", "seeds"))])
        for key, row in rows.items():
            cells = [row.get(c) for c in columns]
            stats = [(*results.summarise(list(v.values())), len(v)) if v else ("", "", 0) for v in cells]
            write([*key, *(f"{x:.4f}" if isinstance(x, float) else x for stat in stats for x in stat)])
        return out.getvalue().rstrip("\n")
    most = max(len(v) for row in rows.values() for v in row.values())
    lines = [[*key, *(cell(row.get(c), most) for c in columns)] for key, row in rows.items()]
    table = tabulate(lines, ["dataset", "method", *columns], results.TABLE_FORMATS[fmt], disable_numparse=True)
    if fmt == "latex":
        return f"% {caption}\n" + table.replace("±", r"$\pm$").replace("–", "--")
    return f"{table}\n\n{caption}"


def cell(values: Values | None, most: int) -> str:
    """Mean and spread, and of how many seeds if others have more."""
    if not values:
        return "–"
    mean, spread = results.summarise(list(values.values()))
    return f"{mean:.1f} ± {spread:.1f}" + (f" ({len(values)} of {most} seeds)" if len(values) < most else "")


def table(args: argparse.Namespace, runs: Sequence[Run]) -> str:
    """The protocol's table of what has a result; nothing if there is none."""
    if args.protocol == "base2new":
        return base_new_table(runs, args.format)
    rows = grid(runs, args.targets)
    if not any(v for row in rows.values() for v in row.values()):
        return ""
    caption = f"accuracy in %: mean ± population std over seeds ({' '.join(map(str, args.seeds))})"
    if args.protocol == "few_shot":
        return grid_table(rows, [str(n) for n in args.shots], f"{caption}; columns are shots.", args.format)
    columns = [*args.datasets, *args.targets, "average"]
    return grid_table(rows, columns, f"{caption}; average: over the targets, per seed.", args.format)


def report(failed: dict[Run, list[str]], total: int) -> None:
    """Say what failed, with the command to try alone and the last lines of its output."""
    say(f"\n{len(failed)} of {total} runs failed:")
    for run, last in failed.items():
        if last:
            say("\n  ".join([f"{run}: {run.shell()}", *last]))
    if not_run := sum(not last for last in failed.values()):
        say(f"{not_run} of them were not run, as their training failed")


def main(argv: Sequence[str] | None = None) -> int:
    """0, 1 (a run failed), 2 (wrong arguments) or 130 (stopped)."""
    args = parse_args(argv)
    results.log.setLevel("CRITICAL")  # what is not finished is run, and what failed is reported
    try:
        combinations = [(m, d, s) for s in args.seeds for d in args.datasets for m in args.methods]
        runs = [run for combination in combinations for run in runs_of(args, *combination)]
        if args.dry_run:
            for run in unfinished(runs):
                print(run.shell())
            return 0
        failed = run_all(runs)
    except KeyboardInterrupt:
        say("\nstopped; run the same command again to go on")
        return 130
    if text := table(args, runs):
        print(f"\n{text}")
    if failed:
        report(failed, len(runs))
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
