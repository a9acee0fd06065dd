"""Tables as data, and as text: plain, markdown and CSV; LaTeX's is in results/latex.py."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tabulate import SEPARATING_LINE, tabulate

from dassl.commands import no_formula

from .latex import BOLD, UNDERLINED, latex_table
from .statistics import Delta, Stat, paired_difference

AVERAGE = "Average"  # in the place of a dataset's name
BEST, SECOND = "best", "second"
TABULATES = {"text": "simple", "markdown": "github"}  # our names -> tabulate's
TABLE_FORMATS = (*TABULATES, "latex")
MARKS = {  # of the best numbers
    "text": {BEST: "{} *", SECOND: "{} _"},
    "markdown": {BEST: "**{}**", SECOND: "<u>{}</u>"},
    "latex": {BEST: BOLD + "{}", SECOND: UNDERLINED + "{}"},
}
ABOUT_MARKS = "Bold: best, underlined: second best"


class Cell(NamedTuple):
    """A number of a table."""

    stat: Stat
    seeds: tuple[int, ...] = ()  # how many, on each dataset
    whole: bool = True  # False: an average that lacks datasets which others have


@dataclass
class Line:
    """One method's row; `block` is what it is about, a dataset or an average."""

    block: str
    method: str
    cells: Sequence[Cell | None]  # None: no result
    pairs: Mapping[tuple, float] = field(default_factory=dict)  # (dataset, …, seed) -> percent
    note: str = ""  # behind the method's name
    trainer: str = ""
    runs: Sequence = ()  # the records.Results that the numbers are of
    extra: Sequence[str] = ()  # further cells
    paper: bool = False

    def seeds(self) -> str:
        """How many seeds the numbers are of, or from how few to how many."""
        counts = {n for cell in self.cells if cell for n in cell.seeds}
        return "–".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else ""


@dataclass
class Table:
    """A table's lines; those of a block stand together."""

    columns: Sequence[str]
    lines: Sequence[Line]
    caption: Sequence[str]
    compared: str = ""  # with a baseline: what the lines' `pairs` are
    paired: str = "dataset and seed"  # what their keys are
    baseline: str = ""  # the method that the others are compared with
    extra: Sequence[str] = ()  # titles of further columns
    label: str = "results"  # LaTeX's, behind tab:

    def against(self, baseline: str) -> "Table":
        """The same with a column for the differences to a baseline."""
        difference = f"mean difference to {baseline} over n pairs of equal {self.paired}"
        interval = "Student's 95% interval, pairs taken as independent"
        about = f"Δ {self.compared}: {difference}; {interval}."
        return replace(self, baseline=baseline, caption=[*self.caption, about])

    def delta(self, line: Line) -> Delta | None:
        """A line's difference to the baseline's line of its block; None for the baseline's own."""
        for other in self.lines if line.method != self.baseline else ():
            if (other.block, other.method) == (line.block, self.baseline):
                return paired_difference(line.pairs, other.pairs)
        return None

    def headers(self) -> list[str]:
        """The titles of the columns; none for the block where no line has one."""
        named = any(line.block for line in self.lines)
        titles = ["dataset"] * named + ["method", *self.columns, "seeds"]
        titles += [f"Δ {self.compared} to {self.baseline}"] * bool(self.baseline)
        return [*titles, *self.extra]

    def blocks(self) -> list[list[tuple[Line, Sequence[tuple[str, str]]]]]:
        """The lines of each block, each with its numbers as text and their marks."""
        blocks: dict[str, list[Line]] = {}
        for line in self.lines:
            blocks.setdefault(line.block, []).append(line)
        found = []
        for lines in blocks.values():
            columns = [ranked(lines, j) for j in range(len(self.columns))]
            rows = zip(*columns, strict=True)
            found.append(list(zip(lines, rows, strict=True)))
        return found


def ranked(lines: Sequence[Line], j: int) -> list[tuple[str, str]]:
    """The numbers of a block's column as text, each with its mark: BEST, SECOND or "".

    They are compared as they are printed, so equal ones are equal. The paper's, and averages over
    fewer datasets than others, take no part.
    """
    cells = [line.cells[j] for line in lines]
    values = {
        i: round(cell.stat.mean, 1)
        for i, cell in enumerate(cells)
        if cell and cell.whole and not lines[i].paper
    }
    ranking = sorted(set(values.values()), reverse=True) if len(values) > 1 else []
    marks = dict(zip(ranking, (BEST, SECOND), strict=False))
    return [
        (show_stat(cell.stat) if cell else "–", marks.get(values.get(i), ""))
        for i, cell in enumerate(cells)
    ]


def render(table: Table, fmt: str, marked: bool = False, fit: str = "") -> str:
    """Lay out a table as text, markdown or latex (`fit`: a key of latex.FITS), with its caption."""
    headers, marks = table.headers(), MARKS[fmt] if marked else {}
    blocks = []
    for lines in table.blocks():
        blocks.append([])
        for line, cells in lines:
            row = [line.block] * (headers[0] == "dataset") + [line.method + line.note]
            row += [marks.get(mark, "{}").format(number) for number, mark in cells]
            row += [line.seeds()] + [show_delta(table.delta(line))] * bool(table.baseline)
            blocks[-1].append([*row, *line.extra])
    return lay_out(headers, blocks, table.caption, fmt, table.label, fit)


def lay_out(
    headers: Sequence[str],
    blocks: Sequence[Sequence[Sequence[str]]],
    caption: Sequence[str],
    fmt: str,
    label: str = "results",
    fit: str = "",
) -> str:
    """Lay out blocks of rows of cells with rules between the blocks, and the caption's lines."""
    if fmt == "latex":
        return latex_table(headers, blocks, caption, label, fit)

    def cells(row: Sequence[str]) -> list[str]:
        # in markdown a | begins the next cell
        return [cell.replace("|", "\\|") for cell in row] if fmt == "markdown" else [*row]

    rows: list = []
    for block in blocks:
        if rows and fmt != "markdown":  # which has no rules
            rows.append(SEPARATING_LINE)
        rows += map(cells, block)
    table = tabulate(rows, cells(headers), TABULATES[fmt], disable_numparse=True)
    return table + "\n\n" + "\n".join(caption)


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """A markdown table of rows that all have the same columns, as they are."""
    return tabulate(rows, "keys", TABULATES["markdown"], disable_numparse=True)


def csv_of(table: Table) -> str:
    """A column per number; source is run or paper."""
    columns = [f"{c}_{part}" for c in table.columns for part in ("mean", "std", "seeds")]
    header = ["dataset", "method", "source", *columns]
    header += ["delta_mean", "delta_low", "delta_high", "delta_n"] * bool(table.baseline)
    rows: list[list[object]] = [header + [title.replace(" ", "_") for title in table.extra]]
    for line in table.lines:
        row = [line.block, line.method + line.note, "paper" if line.paper else "run"]
        for cell in line.cells:
            numbers = cell and [*map(csv_number, cell.stat), min(cell.seeds, default=None)]
            row += numbers or [None] * 3
        if delta := table.delta(line):
            low, high = delta.mean - delta.half, delta.mean + delta.half
            row += [*map(csv_number, (delta.mean, low, high)), delta.n]
        elif table.baseline:
            row += [None] * 4
        rows.append(row + [text.replace(",", "") for text in line.extra])
    return to_csv(rows)


def to_csv(table: Sequence[Sequence[object]]) -> str:
    """Write rows, the first of them headers, as CSV in which no cell is a spreadsheet's formula."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([*map(no_formula, row)] for row in table)
    return out.getvalue().rstrip("\n")


# -- numbers as text


def show_stat(stat: Stat) -> str:
    """Mean ± spread with one decimal, without a spread that is undefined."""
    return f"{stat.mean:.1f}" if math.isnan(stat.spread) else f"{stat.mean:.1f} ± {stat.spread:.1f}"


def show_delta(delta: Delta | None) -> str:
    """Mean, interval and number of pairs, as +1.2 [−0.3, +2.7] (n=6)."""
    if delta is None:
        return ""
    mean, half, n = delta
    interval = f" [{mean - half:+.1f}, {mean + half:+.1f}]" if n > 1 else ""
    return f"{mean:+.1f}{interval} (n={n})".replace("-", "−")


def csv_number(x: float) -> str:
    """Four decimals; nothing for NaN."""
    return "" if math.isnan(x) else f"{x:.4f}"
