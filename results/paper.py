"""Papers' numbers (docs/paper_results.json) beside the measured ones."""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from pathlib import Path

from .protocols import TEN, dataset_name
from .statistics import Stat
from .text_table import AVERAGE, Cell, Line, Table

PAPER = Path(__file__).parents[1] / "docs" / "paper_results.json"
PAPER_TEXT = "Li et al. (2025)"  # what a caption calls P2C's paper
PAPER_NAMES = {"ZeroshotCLIP": "CLIP", "MultiModalAdapter": "MMA"}
ELEVEN = {dataset_name(name) for name in ("imagenet", *TEN)}
ABOUT = (
    "(paper): the P2C paper's number for ViT-B/16 and 16 shots, not measured here "
    "(docs/paper_results.json)."
)


def with_paper(table: Table, kind: str) -> Table:
    """Add rows of the paper's numbers, below the last row of each trainer in a block."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    datasets = {dataset for line in table.lines for dataset, *_ in line.pairs}
    last = {(line.block, line.trainer): line for line in table.lines}
    lines = []
    for line in table.lines:
        lines.append(line)
        if kind != "ablation" and line is not last[line.block, line.trainer]:
            continue
        values = paper_values(paper, kind, line, table.columns, datasets)
        if any(value is not None for value in values):
            cells = [None if value is None else Cell(Stat(value, nan)) for value in values]
            name = f"{line.method if kind == 'ablation' else line.trainer} (paper)"
            lines.append(Line(line.block, name, cells, trainer=line.trainer, paper=True))
    if len(lines) == len(table.lines):
        caption = ["The paper has no number for these rows."]
    else:
        blocks = {line.block for line in lines if line.paper}
        numbers = paper["table1_base_to_novel"]
        notes = {b: numbers[b]["note"] for b in numbers if b in blocks and "note" in numbers[b]}
        shown = {line.trainer for line in lines if line.paper}
        others = paper["others"].items()
        notes |= {t: f"not P2C's paper: {o['source']}" for t, o in others if t in shown}
        caption = [ABOUT, *(f"{which} (paper): {note}." for which, note in notes.items())]
    return replace(table, lines=lines, caption=[*table.caption, *caption])


def paper_values(
    paper: dict, kind: str, line: Line, columns: Sequence[str], datasets: set[str]
) -> Sequence[float | None]:
    """The paper's numbers for a line's columns; an average only if it is over the same datasets."""
    name = PAPER_NAMES.get(line.trainer, line.trainer)
    other = paper["others"].get(line.trainer)  # of a paper of its own
    if {r.shots for r in line.runs} != {16}:
        return []
    if kind == "base2new":
        if line.block == AVERAGE and datasets != ELEVEN:
            return []
        if other:
            return other["base2new"].get(line.block) or []
        return paper["table1_base_to_novel"].get(line.block, {}).get(name) or []
    if kind in ("xd", "dg"):
        rows = paper["table3_cross_dataset" if kind == "xd" else "table2_domain_generalization"]
        numbers = dict(zip(rows["columns"], rows.get(name, []), strict=False))
        numbers = other.get(kind, {}) if other else numbers
        same = set(columns) - {"average"} == set(rows["columns"]) - {"target average"}
        return [numbers.get("target average" if c == "average" and same else c) for c in columns]
    if kind == "ablation" and datasets == ELEVEN:
        setting = line.method.removeprefix(f"{line.trainer} ").removeprefix("table4_")
        numbers = paper["others"]["ablations"].get(line.trainer, {}).get(setting)
        if line.trainer == "P2C":
            numbers = [None, None, paper_ablations(paper).get(setting)]
        return [*numbers, *[None] * (len(columns) - 3)] if numbers else []
    return []


def paper_ablations(paper: dict) -> dict[str, float]:
    """HM by the names of the settings in configs/sweeps/table4.yaml and table5.yaml."""
    components = paper["table4_components_hm"].items()
    found = {key.split(" ")[0].replace("+", "_"): hm for key, hm in components}
    groups = paper["table5_hyperparameters_hm"]
    for key, group in groups.items():
        if key != "defaults":
            found |= {f"{key}_{value}": hm for value, hm in group.items()}
    return found | {"usual": groups["schedule"]["sigmoid"]}
