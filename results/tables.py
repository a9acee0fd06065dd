"""The papers' tables out of folders of runs: python -m results.tables KIND FOLDER … (--help lists
the kinds).

Numbers come from the runs' results.json, and from the logs alone where there is none. What was
found but cannot be counted, such as a failed seed, is said on stderr.
"""

import argparse
import json
import logging
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

import parse_test_res as results
from dassl.commands import OneLineParser, command_line, existing_folder, log_to_stderr
from parse_test_res import (
    AVERAGE,
    TABLE_FORMATS,
    Stat,
    harmonic_mean,
    lay_out,
    show_stat,
    span,
    summarise,
    to_csv,
)

from .protocols import TEN
from .records import Result, dataset_name, find_results, name_methods, transfer_of, transfers

KINDS = {
    "base2new": "base, new and their HM, on each dataset and on average",
    "xd": "cross-dataset: the source, each target and their average",
    "dg": "domain generalisation: the source, each variant and their average",
    "ablation": "base, new and HM of each config or setting, with the difference to a baseline",
    "few_shot": "accuracy by number of shots, on each dataset and on average",
}
EXAMPLES = """examples:
  python -m results.tables base2new output --baseline MaPLe --format latex
  python -m results.tables ablation output/shapes_table4 --baseline baseline --cost
"""
PAPER = Path(__file__).parents[1] / "docs" / "paper_results.json"
PAPER_NAMES = {"ZeroshotCLIP": "CLIP", "MultiModalAdapter": "MMA"}
ELEVEN = {dataset_name(name) for name in ("imagenet", *TEN)}
AVERAGE_OF_HMS = "Average of HMs"
BEST, SECOND = range(2)
# What is put around a number, and how the caption says so. Private characters stand for LaTeX's
# commands, which tabulate would escape.
MARKS = {
    "text": ((("", " *"), ("", " _")), "* best, _ second best"),
    "markdown": ((("**", "**"), ("<u>", "</u>")), "Bold: best, underlined: second best"),
    "latex": ((("\ue000", "\ue002"), ("\ue001", "\ue002")), "Bold: best, underlined: second best"),
}
LATEX = {"\ue000": r"\textbf{", "\ue001": r"\underline{", "\ue002": "}"}

Values = dict[int, float]  # seed -> percent

log = logging.getLogger("tables")


class Cell(NamedTuple):
    """A number of the table."""

    stat: Stat
    seeds: tuple[int, ...] = ()  # how many, on each dataset
    whole: bool = True  # False: an average that lacks datasets which others have


class Delta(NamedTuple):
    """Mean of `n` paired differences and half its 95% interval (NaN for one pair)."""

    mean: float
    half: float
    n: int


@dataclass
class Line:
    """One method's row; `block` is what it is about, a dataset or an average."""

    block: str
    method: str
    trainer: str
    cells: list[Cell | None]
    pairs: Mapping[tuple, float] = field(
        default_factory=dict
    )  # what is compared: (dataset, …, seed) -> percent
    runs: Sequence[Result] = ()  # what the numbers are of
    note: str = ""
    paper: bool = False


@dataclass
class Table:
    columns: list[str]
    lines: list[Line]
    caption: list[str]
    compared: str  # what Δ is of
    paired: str = "dataset and seed"  # what two numbers that are compared have in common

    def explain(self, baseline: str) -> str:
        """What Δ is, for the caption."""
        return (
            f"Δ {self.compared}: mean difference to {baseline} over n pairs of equal {self.paired}; Student's 95% "
            "interval, pairs taken as independent."
        )


# -- statistics


def paired_difference(ours: Mapping[tuple, float], theirs: Mapping[tuple, float]) -> Delta | None:
    """Mean difference over the keys both have, d̄ ± t(0.975, n-1) · s/√n; None if they share no
    key."""
    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    n = len(differences)
    if n < 2:
        return Delta(differences[0], math.nan, 1) if n else None
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return Delta(float(np.mean(differences)), half, n)


def average(cells: Iterable[Values]) -> Cell | None:
    """Mean of the datasets' means; its spread is over the seeds' own averages, NaN if not all have
    the same seeds."""
    total = len(cells := list(cells))
    cells = [cell for cell in cells if cell]
    if not cells:
        return None
    mean, spread = float(np.mean([np.mean(list(cell.values())) for cell in cells])), math.nan
    if len({frozenset(cell) for cell in cells}) == 1:
        spread = summarise(
            [float(np.mean([cell[seed] for cell in cells])) for seed in cells[0]]
        ).spread
    return Cell(Stat(mean, spread), tuple(map(len, cells)), len(cells) == total)


def cell(values: Values | None) -> Cell | None:
    return Cell(summarise(list(values.values())), (len(values),)) if values else None


def over(there: int, total: int) -> str:
    """What to say of an average that leaves something out."""
    return f" (over {there} of {total} datasets)" if there < total else ""


# -- the kinds of table


def base_new_table(found: Sequence[Result]) -> Table | None:
    """Base, new and HM per dataset and method, then both averages."""
    found = [r for r in found if r.protocol == "base2new"]
    names = name_methods(found)
    sides: dict[str, dict[results.Run, float]] = {"base": {}, "new": {}}
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for r in found:
        sides[r.side][results.Run(r.dataset, names[r], "", r.seed)] = r.metrics["accuracy"]
        for block in (r.dataset, AVERAGE):
            groups[block, names[r]].append(r)
    rows = results.hm_table(sides["base"], sides["new"])
    hms: dict[str, dict[tuple, float]] = defaultdict(dict)
    for run in sides["base"].keys() & sides["new"].keys():
        hm = harmonic_mean(sides["base"][run], sides["new"][run])
        hms[run.trainer][run.dataset, run.seed] = float(hm)
    lines, last = [], []
    for row in rows:
        pairs = {key: hm for key, hm in hms[row.method].items() if row.dataset in (key[0], AVERAGE)}
        seeds = tuple(Counter(dataset for dataset, _ in pairs).values())
        cells = [Cell(stat, seeds, whole=not row.note) for stat in (row.base, row.new, row.hm)]
        runs = [r for r in groups[row.dataset, row.method] if (r.dataset, r.seed) in pairs]
        line = Line(row.dataset, row.method, runs[0].trainer, cells, pairs, runs, row.note)
        if row.dataset != AVERAGE:
            lines.append(line)
        else:
            lines.append(
                replace(line, pairs={})
            )  # their mean is the average of the HMs, which is the next row's
            by_dataset: dict[str, Values] = defaultdict(dict)
            for (dataset, seed), hm in hms[row.method].items():
                by_dataset[dataset][seed] = hm
            of_hms = average(by_dataset.values())._replace(whole=not row.note)
            last.append(
                replace(line, block=AVERAGE_OF_HMS, cells=[*cells[:2], of_hms], pairs=pairs)
            )
    caption = ["HM is taken per seed."]
    if last:
        caption += [
            f"{AVERAGE}: HM of the average base and the average new, as in the paper. {AVERAGE_OF_HMS}: over datasets.",
            "± of an average is over the seeds' own averages, given where all its datasets have the same seeds.",
        ]
    return Table(["base", "new", "HM"], lines + last, caption, "HM") if lines else None


def transfer_table(found: Sequence[Result], protocol: str) -> Table | None:
    """Methods by source, targets and the targets' average."""
    tests = [r for r in found if r.protocol == protocol]
    order = list(transfers())
    targets = sorted(
        {r.dataset for r in tests}, key=lambda t: (order.index(t) if t in order else len(order), t)
    )
    sources = sorted({transfer_of(target)[1] for target in targets})
    ways = {(r.trainer, r.cfg, r.shots, r.root) for r in tests}
    trainings = [r for r in found if r.protocol == "few_shot" and r.dataset in sources]
    trainings = [r for r in trainings if (r.trainer, r.cfg, r.shots, r.root) in ways]
    names = name_methods([*trainings, *tests])
    values: dict[str, dict[str, Values]] = defaultdict(lambda: defaultdict(dict))
    for r, name in names.items():
        values[name][r.dataset][r.seed] = r.metrics["accuracy"]
    lines = []
    for name in sorted(values):
        row = values[name]
        there = [target for target in targets if row[target]]
        for target in set(targets) - set(there):
            log.warning("%s: no result on %s; its average leaves it out", name, target)
        cells = [*(cell(row[d]) for d in (*sources, *targets)), average(row[t] for t in targets)]
        pairs = {(t, seed): value for t in targets for seed, value in row[t].items()}
        runs = [r for r in names if names[r] == name]
        lines.append(
            Line("", name, runs[0].trainer, cells, pairs, runs, over(len(there), len(targets)))
        )
    caption = ["average: over the targets; its ± is over the seeds' own averages."]
    return (
        Table([*sources, *targets, "average"], lines, caption, "accuracy on the targets")
        if lines
        else None
    )


def few_shot_table(found: Sequence[Result]) -> Table | None:
    """Accuracy by shots, on each dataset and on average."""
    found = [r for r in found if r.protocol == "few_shot"]
    names = name_methods(found, by=("cfg", "root"))
    shots, datasets = sorted({r.shots for r in found}), sorted({r.dataset for r in found})
    values: dict[tuple[str, str], dict[int, Values]] = defaultdict(lambda: defaultdict(dict))
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for r, name in names.items():
        values[r.dataset, name][r.shots][r.seed] = r.metrics["accuracy"]
        for block in (r.dataset, AVERAGE):
            groups[block, name].append(r)
    methods = sorted(set(names.values()))
    blocks = [*datasets, *([AVERAGE] if len(datasets) > 1 else [])]
    lines = []
    for block, method in ((b, m) for b in blocks for m in methods if (b, m) in groups):
        runs = groups[block, method]
        pairs = {(r.dataset, r.shots, r.seed): r.metrics["accuracy"] for r in runs}
        note = ""
        if block == AVERAGE:
            cells = [average(values[d, method][n] for d in datasets) for n in shots]
            note = over(
                min(sum(bool(values[d, method][n]) for d in datasets) for n in shots), len(datasets)
            )
        else:
            cells = [cell(values[block, method][n]) for n in shots]
        lines.append(Line(block, method, runs[0].trainer, cells, pairs, runs, note))
    caption = ["Columns are shots."]
    columns = [str(n) for n in shots]
    return (
        Table(columns, lines, caption, "accuracy over all shots", "dataset, shots and seed")
        if lines
        else None
    )


def ablation_table(found: Sequence[Result]) -> Table | None:
    """A row per config or setting, averaged over the datasets."""
    table = base_new_table(found)
    if table is None:
        return None
    if AVERAGE not in {line.block for line in table.lines}:
        caption = [f"On {table.lines[0].block}.", *table.caption]
        return replace(
            table, lines=[replace(line, block="") for line in table.lines], caption=caption
        )
    of_hms = {line.method: line for line in table.lines if line.block == AVERAGE_OF_HMS}
    lines = []
    for line in (line for line in table.lines if line.block == AVERAGE):
        other = of_hms[line.method]
        lines.append(
            replace(line, block="", cells=[*line.cells, other.cells[-1]], pairs=other.pairs)
        )
    total = len({dataset for line in lines for dataset, _ in line.pairs})
    caption = [
        f"Averages over {total} datasets; ± is over the seeds' own averages.",
        "HM: of the average base and the average new, as in the paper. HM (mean): the average of the datasets' HMs.",
    ]
    return replace(
        table,
        columns=[*table.columns, "HM (mean)"],
        lines=lines,
        caption=caption,
        compared="HM (mean)",
    )


def make_table(kind: str, found: Sequence[Result]) -> Table | None:
    """The table of a kind; None if there is no result for it."""
    if kind in ("xd", "dg"):
        return transfer_table(found, kind)
    return {"base2new": base_new_table, "few_shot": few_shot_table, "ablation": ablation_table}[
        kind
    ](found)


# -- beside them: a baseline, the paper, the cost


def find_baseline(table: Table, name: str) -> str:
    """The one method called so: in full, by its trainer or the paper's name for it (in any case),
    or by what tells it from others of its trainer.

    Raises LookupError with one line otherwise.
    """
    methods = {line.method: line.trainer for line in table.lines}
    if name in methods:
        return name
    fits = [
        method
        for method, trainer in methods.items()
        if name.lower() in (trainer.lower(), PAPER_NAMES.get(trainer, trainer).lower())
        or name == method.removeprefix(f"{trainer} ")
    ]
    if len(fits) != 1:
        problem = "is several methods" if fits else "is no method here"
        raise LookupError(f"--baseline {name} {problem}; give one of: {', '.join(fits or methods)}")
    return fits[0]


def deltas(table: Table, baseline: str) -> dict[int, Delta]:
    """Each line's difference to the baseline's line of its block, by the line's place; none for the
    baseline."""
    theirs = {line.block: line.pairs for line in table.lines if line.method == baseline}
    found = {}
    for i, line in enumerate(table.lines):
        delta = paired_difference(line.pairs, theirs.get(line.block, {}))
        if delta and line.method != baseline:
            found[i] = delta
    return found


def with_paper(table: Table, kind: str) -> Table:
    """The table with the paper's numbers in rows of their own, below the last row of the method in
    each block."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    datasets = {dataset for line in table.lines for dataset, *_ in line.pairs}
    lines = []
    for i, line in enumerate(table.lines):
        lines.append(line)
        last = not any(
            (later.block, later.trainer) == (line.block, line.trainer)
            for later in table.lines[i + 1 :]
        )
        values = (
            paper_values(paper, kind, line, table.columns, datasets)
            if last or kind == "ablation"
            else None
        )
        if values and any(value is not None for value in values):
            cells = [None if v is None else Cell(Stat(v, math.nan)) for v in values]
            name = line.method if kind == "ablation" else line.trainer
            lines.append(Line(line.block, f"{name} (paper)", line.trainer, cells, paper=True))
    caption = [
        "(paper): the P2C paper's number for ViT-B/16 and 16 shots, not measured here (docs/paper_results.json)."
    ]
    blocks = {line.block for line in lines if line.paper}
    notes = {
        b: numbers["note"]
        for b, numbers in paper["table1_base_to_novel"].items()
        if "note" in numbers
    }
    caption += [f"{block} (paper): {notes[block]}." for block in notes if block in blocks]
    if len(lines) == len(table.lines):
        caption = ["The paper has no number for these rows."]
    return replace(table, lines=lines, caption=table.caption + caption)


def paper_values(
    paper: dict, kind: str, line: Line, columns: Sequence[str], datasets: set[str]
) -> list[float | None] | None:
    """The paper's numbers for a line's columns; an average only if it is over the same datasets."""
    name = PAPER_NAMES.get(line.trainer, line.trainer)
    if {r.shots for r in line.runs} != {16}:
        return None
    if kind == "base2new":
        if line.block == AVERAGE and datasets != ELEVEN:
            return None
        return paper["table1_base_to_novel"].get(line.block, {}).get(name)
    if kind in ("xd", "dg"):
        rows = paper["table3_cross_dataset" if kind == "xd" else "table2_domain_generalization"]
        numbers = dict(zip(rows["columns"], rows.get(name, []), strict=False))
        same = set(columns) - {"average"} == set(rows["columns"]) - {"target average"}
        return [numbers.get("target average" if c == "average" and same else c) for c in columns]
    if kind == "ablation" and line.trainer == "P2C" and datasets == ELEVEN:
        hm = paper_ablations(paper).get(line.method.removeprefix("P2C ").removeprefix("table4_"))
        return [None, None, hm, *[None] * (len(columns) - 3)]
    return None


def paper_ablations(paper: dict) -> dict[str, float]:
    """HM by the names of the settings in configs/sweeps/table4.yaml and table5.yaml."""
    found = {
        key.split(" ")[0].replace("+", "_"): hm for key, hm in paper["table4_components_hm"].items()
    }
    groups = {
        key: group for key, group in paper["table5_hyperparameters_hm"].items() if key != "defaults"
    }
    found |= {f"{key}_{value}": hm for key, group in groups.items() for value, hm in group.items()}
    return found | {"usual": groups["schedule"]["sigmoid"]}


def costs(line: Line) -> tuple[str, str]:
    """Learned parameters and seconds of training, from the records there are."""
    records = [r.record for r in line.runs if r.record]
    records = [
        record for record in records if record["train_seconds"]
    ] or records  # a test only loads what is learned
    counts = sorted({record["parameters"] for record in records})
    seconds = [record["train_seconds"] for record in records if record["train_seconds"]]
    return "–".join(
        f"{n:,}" for n in dict.fromkeys(counts[:1] + counts[-1:])
    ), f"{np.mean(seconds):.1f}" if seconds else ""


# -- layout


def rank(lines: Sequence[Line], column: int) -> dict[int, int]:
    """The best and second best marks of a block's column, by a line's place: as printed, so equal
    ones are equal. Averages over fewer datasets than others take no part."""
    cells = {i: line.cells[column] for i, line in enumerate(lines) if not line.paper}
    values = {i: round(c.stat.mean, 1) for i, c in cells.items() if c and c.whole}
    if len(values) < 2:
        return {}
    marks = dict(zip(sorted(set(values.values()), reverse=True), (BEST, SECOND), strict=False))
    return {i: marks[value] for i, value in values.items() if value in marks}


def show_delta(delta: Delta | None) -> str:
    """Mean, interval and number of pairs, as +1.2 [−0.3, +2.7] (n=6)."""
    if delta is None:
        return ""
    mean, low, high = (
        f"{x:+.1f}" for x in (delta.mean, delta.mean - delta.half, delta.mean + delta.half)
    )
    interval = f" [{low}, {high}]" if delta.n > 1 else ""
    return f"{mean}{interval} (n={delta.n})".replace("-", "−")


def show_seeds(line: Line) -> str:
    """How many seeds the line's numbers are of, or from how few to how many."""
    return span([n for c in line.cells if c for n in c.seeds])


def render(table: Table, fmt: str, baseline: str | None, cost: bool) -> str:
    """Lay out a table as text, markdown or latex, with a caption that says what the numbers are, or
    as csv."""
    compared = deltas(table, baseline) if baseline else {}
    if fmt == "csv":
        return render_csv(table, compared, baseline, cost)
    blocks: dict[str, list[int]] = {}
    for i, line in enumerate(table.lines):
        blocks.setdefault(line.block, []).append(i)
    named = list(blocks) != [""]
    (best, second), legend = MARKS[fmt]
    around = {BEST: best, SECOND: second}
    headers = ["dataset"] * named + ["method", *table.columns, "seeds"]
    headers += [f"Δ {table.compared} to {baseline}"] * bool(baseline) + [
        "parameters",
        "train s",
    ] * cost
    rows = []
    for name, places in blocks.items():
        lines = [table.lines[i] for i in places]
        marks = [rank(lines, column) for column in range(len(table.columns))]
        block = []
        for k, (i, line) in enumerate(zip(places, lines, strict=True)):
            cells = [show_cell(c, around.get(marks[j].get(k))) for j, c in enumerate(line.cells)]
            row = [*([name] * named), line.method + line.note, *cells, show_seeds(line)]
            row += [show_delta(compared.get(i))] * bool(baseline) + list(costs(line)) * cost
            block.append(row)
        rows.append(block)
    caption = [
        f"accuracy in %: mean ± population std over seeds. {legend} of each dataset's column.",
        *table.caption,
    ]
    if baseline:
        caption.append(table.explain(baseline))
    if cost:
        caption.append(
            "parameters: learned. train s: seconds in epochs, mean over the runs that have a record."
        )
    text = lay_out(headers, rows, caption, fmt)
    for sign, command in LATEX.items():
        text = text.replace(sign, command)
    return text


def show_cell(value: Cell | None, around: tuple[str, str] | None) -> str:
    """A cell's text between its marks; – where there is none."""
    before, behind = around or ("", "")
    return f"{before}{show_stat(value.stat) if value else '–'}{behind}"


def render_csv(
    table: Table, compared: Mapping[int, Delta], baseline: str | None, cost: bool
) -> str:
    """A column per number; source is run or paper."""
    header = [
        "dataset",
        "method",
        "source",
        *(f"{c}_{p}" for c in table.columns for p in ("mean", "std", "seeds")),
    ]
    header += ["delta_mean", "delta_low", "delta_high", "delta_n"] * bool(baseline) + [
        "parameters",
        "train_s",
    ] * cost
    out = [header]
    for i, line in enumerate(table.lines):
        row: list[object] = [line.block, line.method + line.note, "paper" if line.paper else "run"]
        for c in line.cells:
            row += [*map(number, c.stat), min(c.seeds, default=None)] if c else [None] * 3
        if baseline:
            d = compared.get(i)
            row += (
                [*map(number, (d.mean, d.mean - d.half, d.mean + d.half)), d.n] if d else [None] * 4
            )
        out.append(row + [text.replace(",", "") for text in costs(line)] * cost)
    return to_csv(out)


def number(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.4f}"


# -- the command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    kinds = "\n".join(f"  {kind:<10} {text}" for kind, text in KINDS.items())
    parser = OneLineParser(
        "python -m results.tables", description=__doc__, epilog=f"kinds:\n{kinds}\n\n{EXAMPLES}"
    )
    add = parser.add_argument
    add("kind", choices=KINDS, metavar="KIND", help=" | ".join(KINDS))
    add(
        "folders",
        nargs="+",
        type=existing_folder,
        metavar="FOLDER",
        help="runs are looked for in and below these",
    )
    add(
        "--baseline",
        metavar="METHOD",
        help="show differences to it (ablation: default the first row)",
    )
    add("--format", default="text", choices=(*TABLE_FORMATS, "csv"), help="default: %(default)s")
    add("--paper", action="store_true", help="also show the paper's numbers where they are known")
    add("--cost", action="store_true", help="also show learned parameters and seconds of training")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0, 1 (nothing found) or 2 (wrong arguments)."""
    args = parse_args(argv)
    log_to_stderr()
    table = make_table(args.kind, find_results(args.folders))
    if table is None:
        print(
            f"error: no result for the {args.kind} table in {' '.join(map(str, args.folders))}",
            file=sys.stderr,
        )
        return 1
    baseline = args.baseline
    if baseline is None and args.kind == "ablation" and len(table.lines) > 1:
        baseline = table.lines[0].method
    try:
        baseline = find_baseline(table, baseline) if baseline else None
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 2
    print(
        render(
            with_paper(table, args.kind) if args.paper else table, args.format, baseline, args.cost
        )
    )
    return 0


if __name__ == "__main__":
    command_line(main)
