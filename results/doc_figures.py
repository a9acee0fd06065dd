"""The figures of docs/RESULTS.md, drawn of docs/records."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import answers
from .interval_figure import IntervalRow, draw_intervals
from .marks import mean_line, single
from .panels import PAGE, Page, finish, panels, same_range, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = "means of the five tasks"
TEXT = {
    "table4": "HM of each row of Table 4 minus the baseline's",
    "parts": "HM gained by the parts of the recipe",
    "schedule": "HM of one schedule minus another's",
    "calibration": "ECE, trained with minus without the cloud",
}
CLOUD = {
    "baseline": "baseline",
    "dpd_gmm": "baseline + DPD",
    "aux": "P2C without DPD",
    "dpd_gmm_aux": "P2C",
}


class DocFigure(NamedTuple):
    """What draws it, and what it shows."""

    draw: Callable[[], "Figure"]
    text: str


def effects(name: str) -> "Figure":
    """The intervals of a family."""
    family = answers.FAMILIES[name]()
    return draw_intervals(answers.interval_rows(family), family.unit)


def ranks() -> "Figure":
    """The methods' ranks with their intervals."""
    rows = [IntervalRow(method, rank, low, high) for method, _, rank, low, high in answers.ranked()]
    return draw_intervals(rows, "rank by mean HM (1: highest)", zero=None)


def cloud() -> "Figure":
    """Accuracy as the learned prompts are perturbed: a line for each setting."""
    look = styles(dict.fromkeys(CLOUD, "P2C"))
    titles = ["base classes", "new classes"]
    page = Page()
    figure, axes = panels(
        titles, "σ of the noise at test time", "accuracy, %", page, width=PAGE / 2
    )
    for ax, side in zip(axes, answers.SIDES, strict=True):
        for name, label in CLOUD.items():
            runs = [r for r in answers.settings(name) if r.side == side]
            sigmas = [float(sigma) for sigma in runs[0].record["cloud"]]
            tasks = sorted({r.dataset for r in runs})
            values = {
                t: [[*r.record["cloud"].values()] for r in runs if r.dataset == t] for t in tasks
            }
            rows = [np.mean(of_task, axis=0) for of_task in values.values()]
            single(ax, sigmas, rows, look[name]["color"])
            mean_line(ax, sigmas, np.mean(rows, axis=0), label, look[name])
        ax.set_xscale("symlog", linthresh=sigmas[1])
        ax.set_xticks(sigmas[::2], [f"{sigma:g}" for sigma in sigmas[::2]])
        ax.minorticks_off()
    same_range(axes)
    finish(figure, axes, "", page)
    return figure


FIGURES = {
    name: DocFigure(partial(effects, name), f"{text}: mean, 95% interval and {TASKS}")
    for name, text in TEXT.items()
}
FIGURES["cloud"] = DocFigure(cloud, "Accuracy under noise: lines are means, thin ones single tasks")
FIGURES["ranks"] = DocFigure(ranks, "Rank of each method by its mean HM, with its 95% interval")
