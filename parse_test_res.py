"""Results out of logs: mean and spread over seeds, or a base-to-new table.

DIR holds seed1, seed2, ..., each with the log.txt of a run (a rerun's log is log.txt-<date>); the
newest finished log of a folder counts. Reads logs of this project, whose results.json has more
digits, and of Dassl 0.5 and later. Values are in percent.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dassl.commands import (
    NO_SPACE,
    OneLineParser,
    command_line,
    existing_folder,
    log_to_stderr,
    plain,
)
from dassl.results_json import MORE_METRICS
from results.base_new import hm_table, read_trees, render
from results.latex import ABOUT_FIT, FITS
from results.logs import find_runs, newest_result
from results.statistics import Stat, summarise
from results.text_table import TABLE_FORMATS

EXAMPLES = """examples:
  trained runs      python parse_test_res.py output/base2new/train_base/shapes/shots_16/P2C/<cfg>
  --eval-only runs  python parse_test_res.py output/base2new/test_new/shapes/shots_16/P2C/<cfg> \
--test-log
  many datasets     python parse_test_res.py output/evaluation/P2C/<cfg>_16shots --test-log \
--multi-exp
  base, new, HM     python parse_test_res.py output/base2new --hm --format latex
"""

log = logging.getLogger("parse_test_res")


def parse_experiment(directory: Path, keyword: str, eval_only: bool, ci95: bool) -> Stat | None:
    """Print the seeds' results and their summary as the family does; None if there are none."""
    runs = find_runs(directory)
    results = [result for run in runs if (result := newest_result(run, keyword, eval_only))]
    if not results:
        return None
    stat = summarise([result.metrics[keyword] for result in results], ci95)
    print(f"Parsing files in {plain(directory)}")
    for result in results:
        print(f"file: {plain(result.path)}. {keyword}: {result.metrics[keyword]:.2f}%.")
    spread = 0.0 if len(results) == 1 else stat.spread  # as the family has it
    summary = f"* {keyword}: {stat.mean:.2f}% +- {spread:.2f}%"
    print(f"===\nSummary of directory: {plain(directory)}\n{summary}\n===")
    return stat


def parse_experiments(directory: Path, keyword: str, eval_only: bool, ci95: bool) -> list[Stat]:
    """The same for each sub-folder, and the average."""
    stats = []
    for folder in sorted(directory.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        if stat := parse_experiment(folder, keyword, eval_only, ci95):
            stats.append(stat)
        else:
            log.warning("%s: no result, not in the average", folder)
    if stats:
        print(f"Average performance\n* {keyword}: {np.mean([stat.mean for stat in stats]):.2f}%")
    return stats


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser(description=__doc__, epilog=EXAMPLES)
    add, mode = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("directory", type=existing_folder, metavar="DIR",
        help="folder of seed1, seed2, ..., or as the modes below say")  # fmt: skip
    mode("--multi-exp", action="store_true",
         help="sub-folders of DIR hold the seeds; ends with an average")  # fmt: skip
    mode("--hm", action="store_true",
         help="base/new/HM table; DIR holds train_base/ and test_new/ "
         "<dataset>/shots_<n>/<trainer>/<cfg>/seed<N>")  # fmt: skip
    add("--test-log", action="store_true",
        help="also count the logs of --eval-only runs (--hm always does)")  # fmt: skip
    add("--keyword", default="accuracy", choices=("accuracy", "macro_f1", *MORE_METRICS),
        help="default: %(default)s")  # fmt: skip
    add("--ci95", action="store_true", help="show 1.96*std/sqrt(n) in place of the population std")
    add("--format", default="text", choices=(*TABLE_FORMATS, "csv"), help="of the --hm table")
    add("--fit", choices=FITS, default="", help=ABOUT_FIT)
    args = parser.parse_args(argv)
    if args.format != "text" and not args.hm:
        parser.error("--format goes with --hm")
    if args.fit and args.format != "latex":
        parser.error("--fit goes with --format latex")
    if args.keyword == "ece" and args.hm:
        parser.error("--hm has no ece: a harmonic mean is of what is better when it is higher")
    return args


def show(args: argparse.Namespace) -> bool:
    """Print what was asked for; False if there was nothing to print."""
    if not args.hm:
        parse = parse_experiments if args.multi_exp else parse_experiment
        return bool(parse(args.directory, args.keyword, args.test_log, args.ci95))
    sides = [args.directory / side for side in ("train_base", "test_new")]
    base, new = read_trees(sides, args.keyword)
    rows = hm_table(base, new, args.ci95)
    if rows:
        print(render(rows, args.format, args.keyword, args.ci95, args.fit))
    return bool(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0, 1 (no result) or 2 (wrong arguments)."""
    args = parse_args(argv)
    log_to_stderr()
    try:
        if show(args):
            return 0
    except OSError as error:  # a folder that may not be listed
        if error.errno in NO_SPACE:  # for what is printed
            raise
        log.error("%s", error)
        return 2
    seeds = "*/seed<N>/" if args.multi_exp else "seed<N>/"
    layout = "train_base/ and test_new/" if args.hm else seeds
    log.error("no result in %s (looked for %s)", args.directory, layout)
    return 1


if __name__ == "__main__":
    command_line(main)
