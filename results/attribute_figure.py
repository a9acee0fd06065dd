"""The figure of attribute lengths: base, new and HM, a point for each seed."""

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np

from dassl.commands import plain

from .marks import hollow, side_by_side
from .panels import Page, finish, panels, same_range, styles
from .records import Result, setting_of
from .statistics import harmonic_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("results.figures")


def draw_attributes(found: Sequence[Result], page: Page) -> "Figure | None":
    """Panels for base, new and HM; a point for each attribute length and seed."""
    settings: dict[tuple, dict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for r in found:
        if r.protocol == "base2new" and (n := attribute_length(r)):
            settings[r.trainer, r.shots, setting_but_length(r)][n].append(r)
    several = {key: runs for key, runs in settings.items() if len(runs) > 1}
    if not several:
        return None
    labels = told_apart(several)
    look = styles({label: trainer for label, (trainer, *_) in zip(labels, several, strict=True)})
    figure, axes = panels(("base", "new", "HM"), "attribute length, vectors", "accuracy, %", page)
    lengths = sorted({n for runs in several.values() for n in runs})
    step = 0.8 / len(several)
    for k, (label, runs_by_length) in enumerate(zip(labels, several.values(), strict=True)):
        colour = look[label]["color"]
        for n, runs in runs_by_length.items():
            values = length_values(runs)
            if not len(values):
                continue
            middle = lengths.index(n) - 0.4 + (k + 0.5) * step
            at = side_by_side(middle, len(values), step / 2)
            for ax, column in zip(axes, values.T, strict=True):
                ax.plot(at, column, label=label, **hollow(look[label]) | {"linestyle": "none"})
                ends = middle - step * 0.4, middle + step * 0.4
                ax.hlines(column.mean(), *ends, color=colour, linewidth=1.2, zorder=3)
    if not axes[0].lines:
        return None
    for ax in axes:
        ax.set_xticks(range(len(lengths)), lengths)
        ax.set_xlim(-0.6, len(lengths) - 0.4)
    same_range(axes)
    note = "Points: seeds in order, each the average over datasets; dashes: their mean."
    finish(figure, axes, note, page)
    return figure


def attribute_length(result: Result) -> int | None:
    """Vectors before the first attribute word; None if none are recorded."""
    trainer = result.record["config"].get("TRAINER", {}) if result.record else {}
    node = trainer.get("ATPROMPT", {})
    used = node.get("USE_ATPROMPT") or result.trainer.endswith("_ATP")
    length = node.get("N_ATT1")
    return length if used and isinstance(length, int) else None


def setting_but_length(result: Result) -> str:
    """Equal for runs that differ in dataset, seed, classes and attribute length only."""
    config = deepcopy(setting_of(result.record))
    for i in (1, 2, 3):
        config["TRAINER"]["ATPROMPT"].pop(f"N_ATT{i}", None)
    return json.dumps(config, sort_keys=True)


def told_apart(keys: Collection[tuple[str, int, str]]) -> list[str]:
    """Names for (trainer, shots, setting): trainers, and what one's settings differ in."""
    found = [(trainer, {"shots": shots} | flat(json.loads(text))) for trainer, shots, text in keys]
    names = []
    for trainer, own in found:
        others = [settings for name, settings in found if name == trainer]
        every = dict.fromkeys(key for settings in others for key in settings)
        differing = [key for key in every if len({repr(s.get(key)) for s in others}) > 1]
        told = [f"{'.'.join(key.split('.')[-2:])} {own.get(key, '–')!s}" for key in differing]
        names.append(plain(" ".join([trainer, ", ".join(told)]).strip()))
    twice = {name for name in names if names.count(name) > 1}  # 1 and "1"
    return [f"{name} ({i})" if name in twice else name for i, name in enumerate(names, start=1)]


def flat(config: dict, prefix: str = "") -> dict[str, object]:
    """{dotted key: value}."""
    leaves: dict[str, object] = {}
    for key, value in config.items():
        at = f"{prefix}{key}"
        leaves |= flat(value, f"{at}.") if isinstance(value, dict) else {at: value}
    return leaves


def length_values(runs: Sequence[Result]) -> np.ndarray:
    """(seeds, 3): base, new and HM averaged over datasets, of the seeds that have all of them."""
    seeds: dict[int, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for r in runs:
        seeds[r.seed][r.dataset][r.side] = r.metrics["accuracy"]
    datasets = {r.dataset for r in runs}
    rows = []
    for seed, by_dataset in sorted(seeds.items()):
        both = [(sides["base"], sides["new"]) for sides in by_dataset.values() if len(sides) == 2]
        if len(both) == len(datasets):
            values = [(base, new, harmonic_mean(base, new)) for base, new in both]
            rows.append(np.mean(values, axis=0))
        else:
            log.warning("attributes: seed %d has not all results; not drawn", seed)
    return np.array(rows).reshape(-1, 3)
