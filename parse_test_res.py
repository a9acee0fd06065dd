"""Results out of logs: mean and spread over seeds, or a base-to-new table.

DIR holds seed1, seed2, ..., each with the log.txt of a run (a rerun's log is log.txt-<date>); the
newest finished log of a folder counts. Reads logs of this project, whose results.json has more
digits, and of Dassl 0.5 and later. Values are in percent.
"""

import argparse
import csv
import io
import json
import logging
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tabulate import SEPARATING_LINE, tabulate

from dassl.commands import OneLineParser, existing_folder, log_to_stderr, plain
from dassl.files import regular

EXAMPLES = """examples:
  trained runs      python parse_test_res.py output/base2new/train_base/shapes/shots_16/P2C/<cfg>
  --eval-only runs  python parse_test_res.py output/base2new/test_new/shapes/shots_16/P2C/<cfg> --test-log
  many datasets     python parse_test_res.py output/evaluation/P2C/<cfg>_16shots --test-log --multi-exp
  base, new, HM     python parse_test_res.py output/base2new --hm --format latex
"""
TRAINING_ENDS = ("Finish training", "Finished training")  # the second is Dassl 0.5's
METRIC = re.compile(r"\* (\w+): (\d+(?:\.\d+)?)%")
LOG_NAME = re.compile(r"log\.txt(-[\d-]+)?")
TABLE_FORMATS = {
    "text": "simple",
    "markdown": "github",
    "latex": "latex_booktabs",
}  # our names -> tabulate's
LATEX_SIGNS = {"±": r"$\pm$", "Δ": r"$\Delta$", "−": "$-$", "–": "--"}
AVERAGE = "Average"  # in the place of a dataset's name
OWN_CONFIG = re.compile(
    r"_(imnet|sun397)\b"
)  # a method's settings for one dataset alone (scripts/run.sh)

Cells = dict[str, dict[int, tuple[float, float]]]  # one method's dataset -> seed -> (base, new)

log = logging.getLogger("parse_test_res")


class Result(NamedTuple):
    """The last result block of one log: `metrics` in percent, `trained` False for an --eval-only
    run."""

    path: Path
    metrics: dict[str, float]
    trained: bool


class Stat(NamedTuple):
    """Mean and spread (std or half a 95% interval) in percentage points; spread is NaN where
    undefined."""

    mean: float
    spread: float


class Run(NamedTuple):
    """One run of the base-to-new layout; `variant` is its cfg, and its shots if they are not the
    usual 16."""

    dataset: str
    trainer: str
    variant: str
    seed: int


class Row(NamedTuple):
    """One row of the base-to-new table."""

    dataset: str
    method: str
    base: Stat
    new: Stat
    hm: Stat
    seeds: str  # their number; for an average from the smallest to the largest of its datasets
    note: str = ""  # behind the method's name


def read_log(path: Path) -> Result | None:
    """Read the log's last result, or None while there is none that counts: results printed during
    training (validation) do not. Raises OSError if the file cannot be read."""
    metrics: dict[str, float] = {}
    finished = None  # None: no sign of training, False: under way, True: ended
    # read_text turns the \r of progress bars into line ends; a killed run may leave half a
    # character behind
    for line in map(
        str.strip, regular(path).read_text(encoding="utf-8", errors="replace").splitlines()
    ):
        if line.startswith("epoch ["):
            finished, metrics = False, {}
        elif line in TRAINING_ENDS:
            finished, metrics = True, {}
        elif line == "=> result":
            metrics = {}
        elif (match := METRIC.match(line)) and float(
            match[2]
        ) <= 100:  # else no program has written it
            metrics[match[1]] = float(match[2])
    return (
        None
        if finished is False or not metrics
        else Result(path, metrics, trained=finished is True)
    )


def unrounded(result: Result) -> Result:
    """The log's metrics as the results.json beside it has them, in full, as far as they are the
    same numbers."""
    try:
        record = json.loads(
            regular(result.path.parent / "results.json").read_text(encoding="utf-8")
        )
        if record["format"] != 1:
            return result
        full = {
            "error" if name == "error_rate" else name: value
            for name, value in record["metrics"].items()
        }
        same = {
            name: full[name]
            for name, value in result.metrics.items()
            if abs(full[name] - value) <= 0.051
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return result
    return result._replace(metrics=result.metrics | same)


def newest_result(folder: Path, keyword: str, eval_only: bool) -> Result | None:
    """Read the newest finished log of a run's folder that has `keyword`, warning of what is
    skipped; with `eval_only` a log without any training counts too."""
    # By name, not by file time, which copying changes: log.txt is a folder's first run and sorts
    # lowest.
    logs = sorted((p for p in folder.iterdir() if LOG_NAME.fullmatch(p.name)), reverse=True)
    if not logs:
        log.warning("%s: %s", folder, "no log.txt" if any(folder.iterdir()) else "empty folder")
        return None
    skipped, hint = [], ""
    for path in logs:
        try:
            result = read_log(path)
        except OSError as error:
            log.warning("cannot read %s", error)
            result = None
        if result and keyword in result.metrics:
            if result.trained or eval_only:
                if skipped:
                    newer = ", ".join(skipped)
                    log.warning(
                        "%s: no finished run in the newer %s; using %s", folder, newer, path.name
                    )
                return unrounded(result)
            hint = " (--test-log reads the logs of --eval-only runs)"
        skipped.append(path.name)
    log.warning("%s: no %s of a finished run in %s%s", folder, keyword, ", ".join(skipped), hint)
    return None


def seed_of(folder: Path) -> int | None:
    """Return N of a folder seed<N>; None for anything else, so that a seed1_old beside it is not
    counted."""
    match = re.fullmatch(r"seed(\d+)", folder.name)
    return int(match[1]) if match and folder.is_dir() else None


def find_runs(directory: Path) -> list[Path]:
    """Return the seed folders of an experiment, by number."""
    return sorted((p for p in directory.iterdir() if seed_of(p) is not None), key=seed_of)


def summarise(values: Sequence[float], ci95: bool = False) -> Stat:
    """Mean ± population std, or ± 1.96·std/√n, of at least one value; one alone has no spread."""
    std = float(np.std(values)) if len(values) > 1 else float("nan")
    return Stat(float(np.mean(values)), 1.96 * std / len(values) ** 0.5 if ci95 else std)


def parse_experiment(directory: Path, keyword: str, eval_only: bool, ci95: bool) -> Stat | None:
    """Print the seeds' results and their summary in the family's form; None if there are no
    results."""
    runs = find_runs(directory)
    results = [result for run in runs if (result := newest_result(run, keyword, eval_only))]
    if not results:
        return None
    stat = summarise([result.metrics[keyword] for result in results], ci95)
    print(f"Parsing files in {plain(directory)}")
    for result in results:
        print(f"file: {plain(result.path)}. {keyword}: {result.metrics[keyword]:.2f}%.")
    spread = 0.0 if len(results) == 1 else stat.spread  # as the family has it
    print(
        f"===\nSummary of directory: {plain(directory)}\n* {keyword}: {stat.mean:.2f}% +- {spread:.2f}%\n==="
    )
    return stat


def read_tree(root: Path, keyword: str) -> dict[Run, float]:
    """Read every run under root/<dataset>/shots_<n>/<trainer>/<cfg>/seed<N>."""
    values = {}
    for folder in sorted(root.glob("*/shots_*/*/*/seed*")):
        if (seed := seed_of(folder)) is None:
            continue
        # eval_only on the base side as well: a zero-shot run has no training whose end could be
        # asked for
        if result := newest_result(folder, keyword, eval_only=True):
            dataset, shots, trainer, cfg, _ = map(plain, folder.relative_to(root).parts)
            variant = cfg if shots == "shots_16" else f"{cfg} {shots}"
            values[Run(dataset, trainer, variant, seed)] = result.metrics[keyword]
    return values


def harmonic_mean(base: float | NDArray, new: float | NDArray) -> float | NDArray:
    """Harmonic mean of two numbers or arrays; 0 where both are 0."""
    return 2 * base * new / np.maximum(base + new, 1e-12)


def base_new_hm(pairs: ArrayLike, ci95: bool) -> tuple[Stat, Stat, Stat]:
    """Summarise (seeds, 2) pairs of base and new, and the HM of each pair."""
    base, new = np.asarray(pairs).T
    return summarise(base, ci95), summarise(new, ci95), summarise(harmonic_mean(base, new), ci95)


def shared_configs(used: Collection[tuple[Hashable, str]]) -> dict[str, str]:
    """What to call the configs of one method, of pairs (dataset, config): x_imnet and x_sun397 are
    x, as they are x's settings for one dataset, unless a dataset has runs of both."""
    names = {config: OWN_CONFIG.sub("", config) for _, config in used}
    clash = len({(dataset, names[config]) for dataset, config in used}) < len(set(used))
    return {config: config for config in names} if clash else names


def method_names(runs: Collection[Run]) -> dict[Run, str]:
    """Name each run's method by its trainer; the variant is added where the trainer occurs with
    several."""
    used = defaultdict(set)
    for run in runs:
        used[run.trainer].add((run.dataset, run.variant))
    variants = {trainer: shared_configs(pairs) for trainer, pairs in used.items()}
    several = {trainer for trainer, names in variants.items() if len(set(names.values())) > 1}
    return {
        run: f"{run.trainer} {variants[run.trainer][run.variant]}"
        if run.trainer in several
        else run.trainer
        for run in runs
    }


def span(counts: Collection[int]) -> str:
    """A number, or the smallest and the largest; nothing of none."""
    return "–".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else ""


def average_row(method: str, cells: Cells, total: int, ci95: bool) -> Row:
    """Average a method over its datasets, of `total`; HM is that of the averages, as in the
    paper."""
    base, new = np.mean([np.mean(list(seeds.values()), axis=0) for seeds in cells.values()], axis=0)
    means, spreads = (base, new, harmonic_mean(base, new)), [float("nan")] * 3
    if (
        len({frozenset(seeds) for seeds in cells.values()}) == 1
    ):  # else a seed has no average over datasets
        per_seed = np.mean([[seeds[s] for s in sorted(seeds)] for seeds in cells.values()], axis=0)
        spreads = [stat.spread for stat in base_new_hm(per_seed, ci95)]
    note = f" (over {len(cells)} of {total} datasets)" if len(cells) < total else ""
    stats = (Stat(float(mean), spread) for mean, spread in zip(means, spreads, strict=True))
    return Row(AVERAGE, method, *stats, span([len(seeds) for seeds in cells.values()]), note)


def hm_table(base: dict[Run, float], new: dict[Run, float], ci95: bool = False) -> list[Row]:
    """Rows by dataset, then method, then the averages over datasets. Only seeds with both results
    count."""
    for run in sorted(base.keys() ^ new.keys()):
        missing = "new" if run in base else "base"
        method = f"{run.trainer} {run.variant}".rstrip()
        log.warning(
            "%s, %s, seed %d: no %s result, seed not counted",
            run.dataset,
            method,
            run.seed,
            missing,
        )
    names = method_names(sorted(base.keys() & new.keys()))
    scores: dict[str, Cells] = {}
    for run, method in names.items():
        scores.setdefault(method, {}).setdefault(run.dataset, {})[run.seed] = base[run], new[run]
    datasets, methods = sorted({run.dataset for run in names}), sorted(scores)
    rows = []
    for dataset in datasets:
        for method in methods:
            if seeds := scores[method].get(dataset):
                rows.append(
                    Row(dataset, method, *base_new_hm(list(seeds.values()), ci95), str(len(seeds)))
                )
            else:
                log.warning("%s: no result on %s; its average leaves it out", method, dataset)
    if len(datasets) > 1:
        rows += [average_row(method, scores[method], len(datasets), ci95) for method in methods]
    return rows


def to_csv(table: Sequence[Sequence[object]]) -> str:
    """Lines of comma-separated values; the first line is the headers. No cell is a formula to a
    spreadsheet."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([*map(no_formula, row)] for row in table)
    return out.getvalue().rstrip("\n")


def no_formula(cell: object) -> object:
    """A cell, behind a ' if it is text that a spreadsheet would run."""
    return f"'{cell}" if isinstance(cell, str) and re.match(r"[=+@]|-(?![\d.]+$)", cell) else cell


def lay_out(
    headers: Sequence[str],
    blocks: Sequence[Sequence[Sequence[str]]],
    caption: Sequence[str],
    fmt: str,
) -> str:
    """Lay out blocks of lines, with rules between them, as text, markdown or latex with a
    caption."""
    lines: list = []
    if fmt == "markdown":  # where a | begins the next cell
        blocks = [
            [[cell.replace("|", "\\|") for cell in line] for line in block] for block in blocks
        ]
    for block in blocks:
        if lines and fmt != "markdown":  # which has no rules between rows
            lines.append(SEPARATING_LINE)
        lines += block
    table = tabulate(lines, headers, TABLE_FORMATS[fmt], disable_numparse=True)
    if fmt != "latex":
        return table + "\n\n" + "\n".join(caption)
    for sign, command in LATEX_SIGNS.items():
        table = table.replace(sign, command)
    return "\n".join(f"% {line}" for line in caption) + "\n" + table


def render(
    rows: Sequence[Row], fmt: str = "text", keyword: str = "accuracy", ci95: bool = False
) -> str:
    """Lay out at least one row: text, markdown or latex with a caption, or csv with a column per
    number."""
    if fmt == "csv":
        parts = ("mean", "ci95" if ci95 else "std")
        table = [
            [
                "dataset",
                "method",
                *(f"{c}_{p}" for c in ("base", "new", "hm") for p in parts),
                "seeds",
            ]
        ]
        for row in rows:
            numbers = ["" if np.isnan(x) else f"{x:.4f}" for x in (*row.base, *row.new, *row.hm)]
            table.append([row.dataset, row.method + row.note, *numbers, row.seeds])
        return to_csv(table)

    blocks: dict[str, list] = {}
    for row in rows:
        cells = map(show_stat, (row.base, row.new, row.hm))
        blocks.setdefault(row.dataset, []).append(
            [row.dataset, row.method + row.note, *cells, row.seeds]
        )
    spread = "95% interval" if ci95 else "population std"
    caption = [f"{keyword} in %: mean ± {spread} over seeds; HM is taken per seed."]
    if any(row.dataset == AVERAGE for row in rows):
        caption.append(
            "Average: HM of the average base and the average new (not the average of the HMs); ±"
        )
        caption.append(
            "over the seeds' own averages, given where all its datasets have the same seeds."
        )
    return lay_out(
        ["dataset", "method", "base", "new", "HM", "seeds"], list(blocks.values()), caption, fmt
    )


def show_stat(stat: Stat) -> str:
    """With one decimal, and without a spread that is undefined."""
    return f"{stat.mean:.1f}" if np.isnan(stat.spread) else f"{stat.mean:.1f} ± {stat.spread:.1f}"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser(description=__doc__, epilog=EXAMPLES)
    add, mode = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add(
        "directory",
        type=existing_folder,
        metavar="DIR",
        help="folder of seed1, seed2, ..., or as the modes below say",
    )
    mode(
        "--multi-exp",
        action="store_true",
        help="sub-folders of DIR hold the seeds; ends with an average",
    )
    hm_help = "base/new/HM table; DIR holds train_base/ and test_new/ <dataset>/shots_<n>/<trainer>/<cfg>/seed<N>"
    mode("--hm", action="store_true", help=hm_help)
    add(
        "--test-log",
        action="store_true",
        help="also count the logs of --eval-only runs (--hm always does)",
    )
    add(
        "--keyword",
        default="accuracy",
        choices=("accuracy", "macro_f1"),
        help="default: %(default)s",
    )
    add("--ci95", action="store_true", help="show 1.96*std/sqrt(n) in place of the population std")
    add("--format", default="text", choices=(*TABLE_FORMATS, "csv"), help="of the --hm table")
    args = parser.parse_args(argv)
    if args.format != "text" and not args.hm:
        parser.error("--format goes with --hm")
    return args


def show(args: argparse.Namespace) -> bool:
    """Print what was asked for; False if there was nothing to print."""
    if args.hm:
        base, new = (
            read_tree(args.directory / side, args.keyword) for side in ("train_base", "test_new")
        )
        rows = hm_table(base, new, args.ci95)
        if rows:
            print(render(rows, args.format, args.keyword, args.ci95))
        return bool(rows)
    if not args.multi_exp:
        return parse_experiment(args.directory, args.keyword, args.test_log, args.ci95) is not None
    means = []
    for folder in sorted(
        p for p in args.directory.iterdir() if p.is_dir() and not p.name.startswith(".")
    ):
        if stat := parse_experiment(folder, args.keyword, args.test_log, args.ci95):
            means.append(stat.mean)
        else:
            log.warning("%s: no result, not in the average", folder)
    if means:
        print(f"Average performance\n* {args.keyword}: {np.mean(means):.2f}%")
    return bool(means)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0, 1 (no result) or 2 (wrong arguments)."""
    args = parse_args(argv)
    log_to_stderr()
    try:
        if show(args):
            return 0
    except OSError as error:  # a folder that may not be listed
        log.error("%s", error)
        return 2
    layout = (
        "train_base/ and test_new/" if args.hm else "*/seed<N>/" if args.multi_exp else "seed<N>/"
    )
    log.error("no result in %s (looked for %s)", args.directory, layout)
    return 1


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(
            signal.SIGPIPE, signal.SIG_DFL
        )  # `| head` ends this quietly, as it does any Unix tool
    sys.stdout.reconfigure(errors="replace")  # a terminal without ± shows a ? and no traceback
    sys.exit(main())
