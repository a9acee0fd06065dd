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
    "sharpness": "Loss added around the prompts, trained with minus without the cloud",
    "calibration": "ECE, trained with minus without the cloud",
}
TRAINED, TICKS = 0.015, (0, 0.015, 0.06, 0.12, 0.25, 0.5)  # σ: P2C's SIGMA_MAX; what the axis says
CAVEAT = (
    "Thin lines: the five tasks. All have attribute vectors. Plain MaPLe has none, and its deep "
    "prompts take the place of the vectors that are perturbed: it is no fair baseline and not here."
)


class DocFigure(NamedTuple):
    """What draws it, and what it shows."""

    draw: Callable[[], "Figure"]
    text: str


def effects(name: str) -> "Figure":
    """The intervals of a family."""
    family = answers.FAMILIES[name]()
    return draw_intervals(answers.interval_rows(family), family.unit)


def ranks() -> "Figure":
    """The methods' ranks with their intervals and each task's."""
    found = answers.ranked()
    rows = [IntervalRow(method, *rank) for method, _, rank in found]
    figure = draw_intervals(rows, "rank by mean HM (1: highest)", zero=None)
    figure.axes[0].set_xticks([1, *range(5, len(rows) + 1, 5)])
    return figure


def cloud() -> "Figure":
    """Accuracy as the learned prompts are perturbed: a panel for each pair that is compared."""
    look = styles(dict.fromkeys(("without", "with"), "P2C"))
    places = [(side, pair) for side in answers.SIDES for pair in answers.WITH_AND_WITHOUT]
    titles = [f"{side} classes: {with_} and {without}" for side, (with_, without) in places]
    page = Page()
    x, y = "σ of the noise at test time", "accuracy, %"
    figure, axes = panels(titles, x, y, page, width=PAGE / 2, most=2)
    for ax, (side, pair) in zip(axes, places, strict=True):
        for name, label in zip(pair, ("with", "without"), strict=True):
            runs = [r for r in answers.settings(name) if r.side == side]
            by_task: dict[str, list[list[float]]] = {}
            for r in runs:
                by_task.setdefault(r.dataset, []).append([*r.record["cloud"].values()])
            rows = [np.mean(of_task, axis=0) for of_task in by_task.values()]
            sigmas = [*map(float, runs[0].record["cloud"])]
            single(ax, sigmas, rows, look[label]["color"])
            mean_line(ax, sigmas, np.mean(rows, axis=0), f"trained {label} DPD", look[label])
        ax.axvline(TRAINED, color="0.5", linewidth=0.8, linestyle=":", label="σ_max in training")
        ax.set_xscale("symlog", linthresh=sigmas[1])
        ax.set_xticks(TICKS, [f"{sigma:g}" for sigma in TICKS])
        ax.minorticks_off()
        ax.set_xlim(-sigmas[1] / 4, 1.2 * sigmas[-1])
    same_range(axes)
    finish(figure, axes, "", page, CAVEAT)
    return figure


SHOWN = f"mean, 95% interval and {TASKS}"
FIGURES = {
    name: DocFigure(partial(effects, name), f"{text}: {SHOWN}") for name, text in TEXT.items()
}
LOST = "Accuracy lost under noise, trained with minus without the cloud"
FIGURES["lost"] = DocFigure(partial(effects, "cloud"), f"{LOST}: {SHOWN}")
FIGURES["cloud"] = DocFigure(cloud, "Accuracy under noise, trained with and without DPD")
FIGURES["ranks"] = DocFigure(ranks, "Rank of each method by its mean HM, with its 95% interval")
