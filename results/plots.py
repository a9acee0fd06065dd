"""The paper's figures, and some it lacks: a function for each kind, which is given all results."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .attribute_figure import draw_attributes
from .cloud_figure import draw_cloud
from .curves import CLOUD, trainings
from .marks import FEW, groups, line, seeds, spread, too_few, wide
from .names import name_methods
from .panels import COLUMN, WIDE, Page, finish, panels, same_range, styles_of
from .panels import STYLE as STYLE  # of what saves figures
from .records import Result
from .schedule import draw_recorded_schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("results.figures")


def gather(items: Iterable[tuple]) -> dict[tuple[str, str], list]:
    """{(name, method): values} of (name, method, value)."""
    found: dict[tuple[str, str], list] = defaultdict(list)
    for name, method, value in items:
        found[name, method].append(value)
    return found


def draw_loss(found: Sequence[Result], page: Page) -> "Figure | None":
    """A panel for each dataset, a line for each method over the epochs."""
    runs, shots = trainings(found)
    names = name_methods(list(runs))
    look = styles_of(names)
    by = gather((r.dataset, name, runs[r].loss) for r, name in names.items())
    if not by:
        return None
    if max(np.count_nonzero(~np.isnan(row)) for rows in by.values() for row in rows) < 2:
        return too_few("loss", "trainings of one epoch; a curve takes two")
    datasets = sorted({dataset for dataset, _ in by})
    bands = len(look) <= FEW
    figure, axes = panels(datasets, "epoch", "training loss", page)
    for ax, dataset in zip(axes, datasets, strict=True):
        for method in look:
            if rows := by.get((dataset, method)):
                epochs = range(1, max(map(len, rows)) + 1)
                line(ax, epochs, rows, method, look[method], bands)
        ax.xaxis.get_major_locator().set_params(integer=True)
    note = f"{shots}Each method's own loss, mean over an epoch. "
    note += spread(by.values(), bands)
    if not same_range(axes, unless_flat=True):
        note += " Each panel has its own range."
    finish(figure, axes, note, page)
    return figure


def draw_time(found: Sequence[Result], page: Page) -> "Figure | None":
    """Bars of seconds per epoch, for each dataset and method."""
    runs, shots = trainings(found)
    names = name_methods(list(runs))
    timed = [r for r in names if not np.isnan(runs[r].seconds).all()]
    by = gather((r.dataset, names[r], np.nanmean(runs[r].seconds)) for r in timed)
    if not by:
        return None
    devices = {r.record["device"] for r in runs if r.record}
    if len(devices) > 1:
        log.warning("time: the runs are of different devices: %s", "; ".join(sorted(devices)))
    if len(timed) == 1:
        return too_few("time", "a single training; a comparison takes two")
    look, datasets = styles_of(names), sorted({dataset for dataset, _ in by})
    width = wide(look, datasets)
    figure, axes = panels(["Time per epoch"], "", "seconds per epoch", page, width)
    groups(axes[0], datasets, by, look, bars=True)
    note = f"{shots}Mean over epochs and {seeds(by.values())}; points: single seeds."
    finish(figure, axes, note, page)
    return figure


def draw_f1(found: Sequence[Result], page: Page) -> "Figure | None":
    """Accuracy beside macro F1, for each dataset and method."""
    runs = [r for r in found if r.side == "base"]
    if not any("macro_f1" in r.metrics for r in runs):
        return None
    names = name_methods(runs)
    look, datasets = styles_of(names), sorted({r.dataset for r in runs})
    if len(runs) == 1:
        return too_few("f1", "a single run; a comparison takes two")
    titles = {"accuracy": "(a) Accuracy", "macro_f1": "(b) Macro F1"}
    width = max(COLUMN, wide(look, datasets))
    most = 2 if 2 * width <= WIDE else 1
    figure, axes = panels(list(titles.values()), "", "base classes, %", page, width, most)
    for ax, key in zip(axes, titles, strict=True):
        by = gather((r.dataset, names[r], r.metrics[key]) for r in runs if key in r.metrics)
        groups(ax, datasets, by, look, bars=False)
    same_range(axes)
    note = f"Mean over {seeds(by.values())}; points: single seeds."
    finish(figure, axes, note, page)
    return figure


def draw_shots(found: Sequence[Result], page: Page) -> "Figure | None":
    """A panel for each dataset, a line for each method over the shots."""
    runs = [r for r in found if r.protocol == "few_shot"]
    names = name_methods(runs, by=("cfg", "root"))
    shots = sorted({r.shots for r in runs if r.shots > 0})
    if len(shots) < 2:
        return None
    look, datasets = styles_of(names), sorted({r.dataset for r in runs})
    # (dataset, method) -> seed -> accuracies by shots
    rows = defaultdict(lambda: defaultdict(lambda: [np.nan] * len(shots)))
    for r in (r for r in runs if r.shots > 0):
        rows[r.dataset, names[r]][r.seed][shots.index(r.shots)] = r.metrics["accuracy"]
    if max(np.count_nonzero(~np.isnan(r)) for s in rows.values() for r in s.values()) < 2:
        return too_few("shots", "no run has two numbers of shots; a curve takes two")
    bands = len(look) <= FEW
    figure, axes = panels(datasets, "images of each class", "accuracy, %", page)
    for ax, dataset in zip(axes, datasets, strict=True):
        for method in look:
            if seeds := rows.get((dataset, method)):
                line(ax, shots, list(seeds.values()), method, look[method], bands)
        ax.set_xscale("log", base=2)
        ax.set_xticks(shots, shots)
        ax.minorticks_off()
    same_range(axes)
    finish(figure, axes, spread(rows.values(), bands), page)
    return figure


class Kind(NamedTuple):
    """What draws a kind of figure (None: nothing to draw), what it needs, and what it shows."""

    draw: Callable[[Sequence[Result], Page], "Figure | None"]
    needs: str
    text: str


KINDS = {
    "loss": Kind(draw_loss, "trainings of two epochs",
        "Training loss by epoch on each dataset (cf. Figs. 4 and 5 of Li et al., 2025)"),
    "time": Kind(draw_time, "two trainings",
        "Time per epoch on each dataset (cf. Fig. 6 of Li et al., 2025)"),
    "f1": Kind(draw_f1, "two results on base classes",
        "Accuracy and macro F1 on the base classes (cf. Fig. 7 of Li et al., 2025)"),
    "attributes": Kind(draw_attributes,
        "base-to-new runs with results.json and two attribute lengths",
        "Base, new and HM by attribute length, a point a seed (cf. Fig. 3 of Li et al., 2025)"),
    "shots": Kind(draw_shots, "few-shot runs of two numbers of shots",
        "Accuracy by number of shots on each dataset"),
    "cloud": Kind(draw_cloud, f"{CLOUD} of two σ: run inference.cloud",
        "Accuracy as the learned text prompts are perturbed at test time"),
    "schedule": Kind(draw_recorded_schedule, "P2C runs with DPD",
        "σ of DPD by epoch, and the density of its noise, as configured"),
}  # fmt: skip


def draw(kind: str, found: Sequence[Result], page: Page | None = None) -> "Figure | None":
    """The figure of a kind; None if there is nothing for it. Raises TooSmall."""
    import matplotlib

    page = page or Page()
    with matplotlib.rc_context(page.style):
        return KINDS[kind].draw(found, page)


def caption(figure: "Figure", text: str) -> str:
    """What a figure shows, and what its lines and points are: words to print below it."""
    return f"{text}. {figure.get_label()}".strip()


def describe(figure: "Figure", text: str) -> str:
    """A figure in words, for those who do not see it."""
    titles = [" ".join(ax.get_title().split()) for ax in figure.axes]
    named = (label for ax in figure.axes for label in ax.get_legend_handles_labels()[1])
    labels = dict.fromkeys(named if figure.legends else ())
    shown = f" Shown: {', '.join(labels)}." if labels else ""
    return f"{text}. Panels: {', '.join(titles)}.{shown}"
