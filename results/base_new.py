"""The base-to-new table of parse_test_res.py --hm: base, new and HM by dataset and method."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dassl.commands import plain

from . import layout, text_table
from .logs import log, newest_result
from .names import about, shared_configs
from .records import warn_of_records
from .statistics import Stat, base_new_hm, harmonic_mean, over_datasets
from .text_table import AVERAGE, Cell, Line, Table, csv_number, to_csv

CAPTION_OF_AVERAGE = (
    "Average: HM of the average base and the average new (not the average of the HMs); ±",
    "over the seeds' own averages, given where all its datasets have the same seeds.",
)


class Run(NamedTuple):
    """A run of the base-to-new layout; `variant` is its cfg, and its shots if they are not 16."""

    dataset: str
    trainer: str
    variant: str
    seed: int


def read_trees(roots: Sequence[Path], keyword: str) -> list[dict[Run, float]]:
    """Read every run under each root/<dataset>/shots_<n>/<trainer>/<cfg>/seed<N>.

    Warns of mixed settings, and of tests of a model that has changed since.
    """
    values, found = [], []
    for root in roots:
        values.append({})
        for folder in sorted(root.glob(re.sub("{.*?}", "*", layout.BASE2NEW))):
            place = layout.place_of(folder.absolute().as_posix())
            if not place or not folder.is_dir():
                continue
            # eval_only on the base side too: a zero-shot run has no training that could have ended
            if result := newest_result(folder, keyword, eval_only=True):
                values[-1][run_at(place)] = result.metrics[keyword]
                found.append(folder)
    warn_of_records(found)
    return values


def run_at(place: layout.Place) -> Run:
    """The run of a folder of the base-to-new layout."""
    variant = place.cfg if place.shots == "16" else f"{place.cfg} shots_{place.shots}"
    return Run(*map(plain, (place.dataset, place.trainer, variant)), int(place.seed))


def method_names(runs: Sequence[Run]) -> dict[Run, str]:
    """Name each run's method by its trainer, and its variant where a trainer has several."""
    used = defaultdict(set)
    for run in runs:
        used[run.trainer].add((run.dataset, run.variant))
    variants = {trainer: shared_configs(pairs) for trainer, pairs in used.items()}
    names = {}
    for run in runs:
        of_trainer = variants[run.trainer]
        several = len(set(of_trainer.values())) > 1
        names[run] = f"{run.trainer} {of_trainer[run.variant]}" if several else run.trainer
    return names


def over(there: int, total: int) -> str:
    """What to say of an average that leaves something out."""
    return f" (over {there} of {total} datasets)" if there < total else ""


def hm_table(base: Mapping[Run, float], new: Mapping[Run, float], ci95: bool = False) -> list[Line]:
    """Lines by dataset, then method, then the averages; only seeds with both results count.

    The lines' pairs are the HMs, {(dataset, seed): percent}.
    """
    for run in sorted(base.keys() ^ new.keys()):
        missing = "new" if run in base else "base"
        which = f"{run.dataset}, {run.trainer} {run.variant}".rstrip()
        log.warning("%s, seed %d: no %s result, seed not counted", which, run.seed, missing)
    # method -> dataset -> seed -> (base, new)
    scores = defaultdict(lambda: defaultdict(dict))
    for run, method in method_names(sorted(base.keys() & new.keys())).items():
        scores[method][run.dataset][run.seed] = base[run], new[run]
    methods, datasets = sorted(scores), sorted({d for method in scores.values() for d in method})
    lines = []
    for dataset in datasets:
        for method in methods:
            if dataset in scores[method]:
                lines.append(hm_line({dataset: scores[method][dataset]}, dataset, method, ci95))
            else:
                log.warning("%s: no result on %s; its average leaves it out", method, dataset)
    for method in methods if len(datasets) > 1 else ():
        note = over(len(scores[method]), len(datasets))
        lines.append(hm_line(scores[method], AVERAGE, method, ci95, note))
    return lines


def hm_line(
    scores: Mapping[str, Mapping[int, tuple[float, float]]],
    block: str,
    method: str,
    ci95: bool,
    note: str = "",
) -> Line:
    """A method's line from {dataset: {seed: (base, new)}}, on one dataset or averaged over all.

    The HM of an average is that of the averages, as in the paper.
    """
    (base, new), per_seed = over_datasets(list(scores.values()))
    hm, spreads = harmonic_mean(base, new), [np.nan] * 3
    if per_seed is not None:
        stats = base_new_hm(per_seed, ci95)
        spreads = [stat.spread for stat in stats]
        if block != AVERAGE:
            hm = stats[2].mean
    stats = map(Stat, map(float, (base, new, hm)), spreads)
    seeds = tuple(map(len, scores.values()))
    pairs = {
        (dataset, seed): float(harmonic_mean(*pair))
        for dataset, pair_of in scores.items()
        for seed, pair in pair_of.items()
    }
    return Line(block, method, [Cell(stat, seeds, not note) for stat in stats], pairs, note)


def render(
    lines: Sequence[Line],
    fmt: str = "text",
    keyword: str = "accuracy",
    ci95: bool = False,
    fit: str = "",
) -> str:
    """Lay out at least one line as text, markdown or latex, or as csv with a column per number."""
    if fmt == "csv":
        parts = ("mean", "ci95" if ci95 else "std")
        columns = [f"{column}_{part}" for column in ("base", "new", "hm") for part in parts]
        rows = [["dataset", "method", *columns, "seeds"]]
        for line in lines:
            numbers = [csv_number(x) for cell in line.cells for x in cell.stat]
            rows.append([line.block, line.method + line.note, *numbers, line.seeds()])
        return to_csv(rows)
    spread = "95% interval" if ci95 else "population std"
    caption = [f"{keyword} in %: mean ± {spread} over seeds; HM is taken per seed."]
    if any(line.block == AVERAGE for line in lines):
        caption += CAPTION_OF_AVERAGE
    caption += about(line.method for line in lines)
    if marked := fmt == "latex":
        caption[0] += f" {text_table.ABOUT_MARKS} of each dataset's column."
    table = Table(["base", "new", "HM"], lines, caption, label="base2new")
    return text_table.render(table, fmt, marked, fit)
