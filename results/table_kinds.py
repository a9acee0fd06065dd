"""The papers' tables as data: base-to-new, cross-dataset, few-shot, ablations."""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .base_new import Run, hm_table, over
from .layout import place_of
from .names import about, name_methods
from .protocols import dataset_name, transfer_of, transfers
from .records import Result
from .statistics import Stat, over_datasets, summarise
from .tested import tested_model
from .text_table import AVERAGE, Cell, Line, Table

KINDS = {
    "base2new": "base, new and their HM, on each dataset and on average",
    "xd": "cross-dataset: the source, each target and their average",
    "dg": "domain generalisation: the source, each variant and their average",
    "ablation": "base, new and HM of each config or setting, with the difference to a baseline",
    "few_shot": "accuracy by number of shots, on each dataset and on average",
}
AVERAGE_OF_HMS = "Average of HMs"
ABOUT_AVERAGES = [
    f"{AVERAGE}: HM of the average base and the average new, as in the paper. "
    f"{AVERAGE_OF_HMS}: over datasets.",
    "± of an average is over the seeds' own averages, given where all its datasets have the same "
    "seeds.",
]
ABOUT_BOTH_HMS = (
    "HM: of the average base and the average new, as in the paper. "
    "HM (mean): the average of the datasets' HMs."
)

log = logging.getLogger("results.tables")


def make_table(kind: str, found: Sequence[Result]) -> Table | None:
    """Make the table of a kind; None if there is no result for it."""
    makers = {"base2new": base_new_table, "few_shot": few_shot_table, "ablation": ablation_table}
    in_transfer = kind in ("xd", "dg")
    table = transfer_table(found, kind) if in_transfer else makers[kind](found)
    if table is None:
        return None
    notes = about(line.method for line in table.lines)
    return replace(table, caption=[*table.caption, *notes])


def cell_of(values: Mapping[tuple[str, int], float], datasets: Collection[str]) -> Cell | None:
    """Mean over seeds, of {(dataset, seed): percent}; of several datasets the mean of their means.

    The spread is that of the seeds' own averages, so NaN if not all datasets have the same seeds.
    None if there is no value on any of the datasets.
    """
    seeds: dict[str, dict[int, float]] = defaultdict(dict)
    for (dataset, seed), value in values.items():
        if dataset in datasets:
            seeds[dataset][seed] = value
    if not seeds:
        return None
    mean, per_seed = over_datasets(list(seeds.values()))
    spread = np.nan if per_seed is None else summarise(per_seed).spread
    whole = len(seeds) == len(datasets)
    return Cell(Stat(float(mean), spread), tuple(map(len, seeds.values())), whole)


def base_new_table(found: Sequence[Result]) -> Table | None:
    """Base, new and HM per dataset and method, then both averages."""
    found = [r for r in found if r.protocol == "base2new"]
    names = name_methods(found)
    sides: dict[str, dict[Run, float]] = {"base": {}, "new": {}}
    for r in found:
        sides[r.side][Run(r.dataset, names[r], "", r.seed)] = r.metrics["accuracy"]
    lines, last = hm_table(sides["base"], sides["new"]), []
    datasets = {dataset for line in lines for dataset, _ in line.pairs}
    for line in lines:
        of_method = (r for r in found if names[r] == line.method)
        line.runs = [r for r in of_method if (r.dataset, r.seed) in line.pairs]
        line.trainer = line.runs[0].trainer
        if line.block == AVERAGE:
            cells = [*line.cells[:2], cell_of(line.pairs, datasets)]
            last.append(replace(line, block=AVERAGE_OF_HMS, cells=cells))
            line.pairs = {}  # whose mean is the average of the HMs
    caption = ["HM is taken per seed.", *(ABOUT_AVERAGES if last else [])]
    return Table(["base", "new", "HM"], lines + last, caption, "HM") if lines else None


def ablation_table(found: Sequence[Result]) -> Table | None:
    """A line per config or setting, averaged over the datasets."""
    table = base_new_table(found)
    if table is None:
        return None
    of_hms = {line.method: line for line in table.lines if line.block == AVERAGE_OF_HMS}
    if not of_hms:
        lines = [replace(line, block="") for line in table.lines]
        return replace(table, lines=lines, caption=[f"On {table.lines[0].block}.", *table.caption])
    lines = []
    for line in (line for line in table.lines if line.block == AVERAGE):
        other = of_hms[line.method]
        cells = [*line.cells, other.cells[-1]]
        lines.append(replace(line, block="", cells=cells, pairs=other.pairs))
    total = len({dataset for line in lines for dataset, _ in line.pairs})
    over_what = f"Averages over {total} datasets; ± is over the seeds' own averages."
    caption = [over_what, ABOUT_BOTH_HMS]
    return Table([*table.columns, "HM (mean)"], lines, caption, "HM (mean)")


def transfer_table(found: Sequence[Result], protocol: str) -> Table | None:
    """Methods by source, targets and the targets' average."""
    tests = [r for r in found if r.protocol == protocol and source_of(r) != r.dataset]
    tests = of_one_source(tests)
    usual = list(transfers())
    targets = sorted({r.dataset for r in tests})
    targets.sort(key=lambda target: usual.index(target) if target in usual else len(usual))
    sources = sorted({source_of(r) for r in tests})
    ways = {way(r): r for r in tests}
    trainings = [r for r in found if r.protocol == "few_shot" and r.dataset in sources]
    trainings = [r for r in trainings if way(r) in ways]
    trained, names = {*trainings}, name_methods([*trainings, *tests])
    names |= {r: names[ways[way(r)]] for r in trainings}  # not as few-shot's table calls them
    lines = []
    for name in sorted(set(names.values())):
        runs = [r for r in names if names[r] == name]
        at_source = {(r.dataset, r.seed): r.metrics["accuracy"] for r in runs if r in trained}
        pairs = {(r.dataset, r.seed): r.metrics["accuracy"] for r in runs if r not in trained}
        missing = [target for target in targets if not cell_of(pairs, [target])]
        for target in missing:
            log.warning("%s: no result on %s; its average leaves it out", name, target)
        cells = [cell_of(at_source, [source]) for source in sources]
        cells += [cell_of(pairs, of_column) for of_column in (*([t] for t in targets), targets)]
        note = over(len(targets) - len(missing), len(targets))
        lines.append(Line("", name, cells, pairs, note, runs[0].trainer, runs))
    caption = ["average: over the targets; its ± is over the seeds' own averages."]
    columns = [*sources, *targets, "average"]
    return Table(columns, lines, caption, "accuracy on the targets") if lines else None


def of_one_source(tests: Sequence[Result]) -> list[Result]:
    """Without those of models of an unusual source, and a warning, where there are usual ones."""
    sources = {r: source_of(r) for r in tests}
    usual = [r for r in tests if sources[r] == transfer_of(r.dataset)[1]]
    for source in sorted({sources[r] for r in sources.keys() - {*usual}} if usual else ()):
        line = "tests of models that were trained on %s are not in this table: give them an OUTPUT"
        log.warning(f"{line} of their own", source)
    return usual or [*tests]


def source_of(r: Result) -> str:
    """What a tested model was trained on: as its record says, else the usual dataset."""
    model = tested_model(r.folder)
    place = model and place_of(model.as_posix())
    return dataset_name(place.dataset) if place else transfer_of(r.dataset)[1]


def way(r: Result) -> tuple[str, str, int, Path]:
    """What a model's training and its tests have in common."""
    return r.trainer, r.cfg, r.shots, r.root


def few_shot_table(found: Sequence[Result]) -> Table | None:
    """Accuracy by shots, on each dataset and on average."""
    found = [r for r in found if r.protocol == "few_shot"]
    names = name_methods(found, by=("cfg", "root"))
    shots, datasets = sorted({r.shots for r in found}), sorted({r.dataset for r in found})
    blocks = {dataset: [dataset] for dataset in datasets}
    if len(datasets) > 1:
        blocks[AVERAGE] = datasets
    lines = []
    for block, of_block in blocks.items():
        for method in sorted(set(names.values())):
            runs = [r for r in found if names[r] == method and r.dataset in of_block]
            if not runs:
                continue
            values = {n: {} for n in shots}
            for r in runs:
                values[r.shots][r.dataset, r.seed] = r.metrics["accuracy"]
            cells = [cell_of(values[n], of_block) for n in shots]
            fewest = min(len(cell.seeds) for cell in cells if cell)  # of the shots it was run with
            note = over(fewest, len(datasets)) if block == AVERAGE else ""
            pairs = {(r.dataset, r.shots, r.seed): r.metrics["accuracy"] for r in runs}
            lines.append(Line(block, method, cells, pairs, note, runs[0].trainer, runs))
    compared, paired = "accuracy over all shots", "dataset, shots and seed"
    columns = [str(n) for n in shots]
    return Table(columns, lines, ["Columns are shots."], compared, paired) if lines else None
