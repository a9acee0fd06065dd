"""Keeps what tables need of many runs in one small file: python -m results.kept FOLDER --out FILE.

The file is JSON lines. The first says what all runs share (commit, machine, versions, …), and each
other line is a run: its place, metrics, learned parameters, times, the first eight digits of its
settings' SHA-256, and what inference.cloud and inference.sharpness found. `read_kept` gives them
back as results, of which results.tables makes the same tables as of the folders.

Measurements without runs, such as those of bench/, are kept in the same way: a first line with the
command, and a line for each row of a table.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dassl.commands import (
    OneLineParser,
    command_line,
    existing_file,
    existing_folder,
    leave,
    log_to_stderr,
)
from dassl.files import regular

from .curves import POSTERIOR, read_cloud, read_sharpness
from .records import Result, results_in, setting_of

EXAMPLE = """example:
  python -m results.kept output/quickstart --out docs/records/quickstart.jsonl"""
METRICS = ("accuracy", "macro_f1", "ece")
PLACE = ("trainer", "cfg", "dataset", "shots", "seed", "protocol", "side")
COMMON = ("commit", "dirty", "device", "machine", "versions")  # said once if all runs agree
HOW = {"cloud_by": "cloud", "sharpness_by": "sharpness"}  # likewise, of the runs that have it
DIGITS = 4
# What tells a run from all others of its file, and its kinds.
ORDER = dict.fromkeys(("setting", "trainer", "cfg", "dataset"), str)
ORDER |= {"shots": int, "side": str, "seed": int, "protocol": str}

Row = dict[str, Any]


def row_of(run: Result, top: str) -> Row:
    """What is kept of a run that has a results.json; `top` is where the outputs' folders begin."""
    record = run.record
    config = json.dumps(setting_of(record), sort_keys=True, default=str)
    row = {key: getattr(run, key) for key in PLACE}
    row["setting"] = os.path.relpath(os.path.abspath(run.root), top)
    row |= {name: rounded(run.record["metrics"].get(name)) for name in METRICS}
    row |= {key: record.get(key) for key in COMMON}
    row["parameters"] = record["parameters"]
    row["train_seconds"] = rounded(record["train_seconds"])
    row["finished"] = record.get("finished")
    row["config"] = hashlib.sha256(config.encode()).hexdigest()[:8]
    return row | cloud_of(run) | sharpness_of(run)


def cloud_of(run: Result) -> Row:
    """Mean accuracy at each σ of noise on the prompts, and how it was measured."""
    cloud = read_cloud(run)
    if not cloud or cloud["noise"] == POSTERIOR:
        return {}
    means = [rounded(np.mean(draws)) for draws in cloud["accuracy"]]
    by_sigma = dict(zip(map("{:g}".format, cloud["sigmas"]), means, strict=True))
    how = {key: cloud.get(key) for key in ("noise", "draws", "commit", "dirty")}
    return {"cloud": by_sigma, "cloud_by": how}


def sharpness_of(run: Result) -> Row:
    """Mean rise of the loss at each σ, the worst, and how they were measured."""
    sharp = read_sharpness(run)
    if not sharp:
        return {}
    mean = {sigma: rounded(np.mean(draws)) for sigma, draws in sharp["mean"].items()}
    worst = {sigma: rounded(rise) for sigma, rise in sharp["worst"].items()}
    how = {"draws": max(map(len, sharp["mean"].values()))}
    how |= {key: sharp.get(key) for key in ("commit", "dirty")}
    rises = {"loss": rounded(sharp["loss"]), "mean": mean, "worst": worst}
    return {"sharpness": rises, "sharpness_by": how}


def rounded(x: float | None) -> float | None:
    """To as many digits as are kept."""
    return None if x is None else round(float(x), DIGITS)


def keep(
    found: Sequence[Result],
    path: Path,
    command: str,
    tops: Sequence[Path] = (),
    earlier: Sequence[Row] = (),
) -> None:
    """Write the runs' file.

    Args:
        tops: where they were looked for; below the last folder that these and the runs' outputs
            share, an output's folder is the name of its setting.
        earlier: rows of another file, to be written too.

    Raises: as write_lines and rows_of, and ValueError for a run that is there twice.
    """
    added = rows_of(found, tops)
    if earlier and all(row["setting"] == "." for row in added):  # alone it has no name of its own
        added = [row | {"setting": run.root.name} for row, run in zip(added, found, strict=True)]
    rows = sorted([*earlier, *added], key=place_of)
    for one, other in pairwise(rows):
        if place_of(one) == place_of(other):
            raise ValueError(f"a run is there twice: {' '.join(map(str, place_of(one)))}")
    shared = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        there = [row[key] for row in rows if key in row]
        if all(value == there[0] for value in there) and (len(there) == len(rows) or key in HOW):
            shared[key] = there[0]
    rows = [{key: value for key, value in row.items() if key not in shared} for row in rows]
    lines = [{"command": command, "runs": len(rows), "shared": shared}, *rows]
    write_lines(path, lines)


def rows_of(found: Sequence[Result], tops: Sequence[Path]) -> list[Row]:
    """The runs as rows; `tops` as of `keep`. Raises ValueError for one without a results.json."""
    for run in found:
        if not run.record:
            raise ValueError(f"{run.folder} has no results.json that counts")
    top = os.path.commonpath([*map(os.path.abspath, (*tops, *(run.root for run in found)))])
    return [row_of(run, top) for run in found]


def place_of(row: Row) -> list:
    """By this the lines of a file are ordered, and no two are of one run."""
    return [row[key] for key in ORDER]


def read_lines(path: Path) -> tuple[Row, list[Row]]:
    """The first line, and the others. Raises OSError, ValueError."""
    # not splitlines, to which signs within a string are ends of lines too
    lines = regular(path).read_text(encoding="utf-8").strip("\n").split("\n")
    try:
        first, *others = rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} has a line that is no row")
    return first, others


def read_kept(path: Path) -> list[Result]:
    """The runs of a file that `keep` wrote. Their folders are not there any more."""
    return list(map(result_of, read_rows(path)))


def read_rows(path: Path) -> list[Row]:
    """The same as rows, each with what all share. Raises OSError, ValueError."""
    about, rows = read_lines(path)
    if not isinstance(about.get("shared"), dict):
        raise ValueError(f"{path} has no runs")
    if about.get("runs") != len(rows):
        raise ValueError(f"{path} is of {about.get('runs')} runs and has {len(rows)}")
    rows = [about["shared"] | row for row in rows]
    kinds = ORDER | dict.fromkeys(METRICS, float | int | None) | {"accuracy": float | int}
    if not all(isinstance(row.get(key), kind) for row in rows for key, kind in kinds.items()):
        raise ValueError(f"{path} has a line that is no run")
    return [{key: value for key, value in row.items() if HOW.get(key, key) in row} for row in rows]


def result_of(row: Mapping) -> Result:
    """A kept run."""
    metrics = {name: row[name] for name in METRICS if row[name] is not None}
    metrics["error_rate"] = 100 - metrics["accuracy"]
    place = {key: row[key] for key in PLACE}
    # `/` stands for where the outputs' folders began
    root = PurePosixPath("/", row["setting"])
    return Result(**place, root=root, folder=root, metrics=metrics, record=dict(row))


def write_lines(path: Path, lines: Sequence[Row]) -> None:
    """Write JSON lines; raises OSError or ValueError, and then what was there is unchanged."""
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# -- the command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m results.kept", description=__doc__, epilog=EXAMPLE)
    add = parser.add_argument
    add("folders", nargs="+", type=existing_folder, metavar="FOLDER",
        help="runs are looked for in and below these")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE", help="such as docs/records/NAME.jsonl")
    add("--command", default="", help="what made the runs, as the documents shall say it; default: "
        "with --with that file's")  # fmt: skip
    add("--with", type=existing_file, metavar="FILE", dest="earlier",
        help="also the runs of this file, whose folders need not be there any more")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0; leaves with 1 (nothing found or written) or 2 (wrong arguments)."""
    args = parse_args(argv)
    log_to_stderr()
    found = results_in(args.folders)
    try:
        earlier, command = [], args.command
        if args.earlier:
            earlier = read_rows(args.earlier)
            command = command or read_lines(args.earlier)[0].get("command", "")
        keep(found, args.out, command, args.folders, earlier)
    except (OSError, ValueError) as error:
        leave(f"cannot keep them in {args.out}: {error}", 1)
    print(f"{args.out}: {len(found) + len(earlier)} runs")
    return 0


if __name__ == "__main__":
    command_line(main)
