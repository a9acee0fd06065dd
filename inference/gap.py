"""The modality gap of runs: how far the features of test images lie from those of their classes.

For a test image's feature f and its class's text feature t, both of unit length, the gap is
d = f - t. It is said to be nearly one vector (Liang et al., 2022; Zhang et al., 2023): large (|d|),
constant (cosine of two images' gaps near 1), and orthogonal to what tells images or classes apart
(|cosine| of the mean gap and differences f_i - f_j, or t_a - t_b, near 0). The table says how far
that holds with what a run learned, beside zero-shot CLIP on the same images: with the dataset's own
prompt, and with the mean feature of that and seven more. A figure for each dataset shows the
features in two directions.

In each run's folder the numbers are in gap.json.
"""

import argparse
import logging
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tabulate import tabulate

from dassl.commands import OneLineParser, command_line, existing_folder, leave, log_to_stderr
from dassl.engine.record import commit
from dassl.utils import write_json
from results.figure_files import add_figure_options, page_of, save
from results.names import name_methods
from results.panels import Page, TooSmall
from results.plots import caption as caption_of
from results.records import Result, results_in
from results.statistics import summarise

from .asked import ask_each
from .gap_features import Unknown, check, gather, joined
from .gap_figure import Shown, draw
from .gap_numbers import Features, Gap, chance, measure, picture
from .load import load_run

EXAMPLES = """examples:
  python -m inference.gap output/base2new/train_base/shapes/shots_16/CoOp
  python -m inference.gap output/base2new output/other --out figures/gap
"""
GAP = "gap.json"
FORMAT = 1
# Titles of the table's columns, and how many decimals their numbers have.
COLUMNS = {
    "accuracy": ("accuracy", 1),
    "size": ("mean |d|", 3),
    "mean": ("|mean d|", 3),
    "constancy": ("cos of gaps", 3),
    "image": ("|cos| to images", 3),
    "text": ("|cos| to classes", 3),
}

log = logging.getLogger("gap")


class Row(NamedTuple):
    """A run's features, or zero-shot CLIP's, with one set of prompts."""

    method: str
    gap: Gap
    shown: Shown


# (dataset, classes) -> rows of all runs there
Rows = dict[tuple[str, str], list[Row]]


def rows_of(features: Mapping[str, Features], method: str, trainer: str) -> list[Row]:
    """A row for each set of prompts."""
    return [
        Row(joined(method, prompts), measure(f), Shown(trainer, picture(f)))
        for prompts, f in features.items()
    ]


def ask(run: Result, method: str, args: argparse.Namespace, clips: set[tuple]) -> list[Row]:
    """Measures a run and writes its gap.json. Raises: Failure if it cannot be measured.

    Args:
        clips: datasets and CLIPs that have their zero-shot rows already. A new one is added here,
            and its rows come before the run's.
    """
    trainer = load_run(run.folder, args.root, check=check)
    backbone = trainer.cfg.MODEL.BACKBONE.NAME
    source = trainer.frozen_clip().source
    clip = run.dataset, run.side, backbone, source["sha256"], source.get("activation")
    features, zero_shot = gather(trainer, zero_shot=clip not in clips)
    if list(features) == [""] and abs(features[""].accuracy - run.metrics["accuracy"]) > 0.5:
        line = "%s: by its features the accuracy is %.1f, and the run's was %.1f"
        line += ": the model or the data are others"
        log.warning(line, run.folder, features[""].accuracy, run.metrics["accuracy"])
    rows = rows_of(features, method, run.trainer)
    about = {
        "format": FORMAT,
        "gap": {prompts: numbers(row.gap) for prompts, row in zip(features, rows, strict=True)},
        "command": shlex.join(["python", "-m", "inference.gap", *args.words]),
    }
    write_json(about | commit(), str(run.folder / GAP))
    clips.add(clip)
    return rows_of(zero_shot, f"zero-shot {backbone}", "ZeroshotCLIP") + rows


def numbers(gap: Gap) -> dict[str, float | None]:
    """As JSON has them: None where there is nothing to compare."""
    return {name: None if math.isnan(x) else x for name, x in gap._asdict().items()}


def table(rows: Rows) -> str:
    """Mean ± population std over seeds: a row for each method and set of classes."""
    lines = []
    for place, here in sorted(rows.items()):
        methods: dict[str, list[Gap]] = defaultdict(list)
        for row in here:
            methods[row.method].append(row.gap)
        for method, gaps in methods.items():
            cells = [
                show([getattr(gap, key) for gap in gaps], digits)
                for key, (_, digits) in COLUMNS.items()
            ]
            lines.append([*place, method, *cells, len(gaps)])
    headers = ["dataset", "classes", "method", *(title for title, _ in COLUMNS.values()), "seeds"]
    return tabulate(lines, headers, disable_numparse=True)


def show(values: Sequence[float], digits: int) -> str:
    """Mean ± population std; a dash where there is nothing to compare."""
    mean, std = summarise(values)
    if math.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


def caption(rows: Rows) -> str:
    """What the table's numbers are."""
    dims = sorted({row.gap.dim for here in rows.values() for row in here})
    by_chance = ", ".join(f"{chance(dim):.3f} ({dim} numbers)" for dim in dims)
    return f"""
d: a test image's feature minus its class's text feature; mean ± population std over seeds
cos of gaps: mean over pairs of images; 1: one gap for all
|cos|: of the mean gap and the differences of two images, or of two classes' text features; mean
over pairs; 0: orthogonal; random directions: {by_chance}
accuracy: % of test images whose nearest text feature is their class's"""


def figures(rows: Rows, args: argparse.Namespace, page: Page) -> None:
    """A figure for each dataset and set of classes. Raises TooSmall, OSError."""
    for (dataset, side), here in sorted(rows.items()):
        seeds: dict[str, list[Shown]] = defaultdict(list)
        for row in here:
            seeds[row.method].append(row.shown)
        figure = draw(seeds, page)
        text = caption_of(figure, f"Features of the test images of {dataset}, {side} classes")
        file = f"gap_{dataset}_{side.replace(' (', '_').rstrip(')')}"
        save(figure, file, args.out, args.format, page, text)


# The command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m inference.gap", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    below = "runs are looked for in and below these"
    add("folders", nargs="+", type=existing_folder, metavar="RUN", help=below)
    add("--root", metavar="DIR", help="folder of the datasets, if it is not where it was")
    add_figure_options(parser)
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a run could not be asked or none could; leaves with 2 for wrong arguments."""
    args = parse_args(argv)
    log_to_stderr()
    page = page_of(args)
    found = results_in(args.folders)
    names, clips = name_methods(found), set()
    answers, well = ask_each(found, lambda run: ask(run, names[run], args, clips), GAP, Unknown)
    rows: Rows = defaultdict(list)
    for run, of_run in answers.items():
        rows[run.dataset, run.classes] += of_run
    if answers:
        print(f"{table(rows)}\n{caption(rows)}")
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            figures(rows, args, page)
        except TooSmall as error:
            leave(str(error), 2)
        except OSError as error:
            leave(f"cannot write to {args.out}: {error.strerror or error}", 1)
    return 0 if answers and well else 1


if __name__ == "__main__":
    command_line(main)
