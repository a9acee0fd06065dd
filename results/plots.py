"""The paper's figures, and some it lacks: a function for each kind, which is given all results."""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .curves import CLOUD, POSTERIOR, read_cloud, trainings
from .names import name_methods
from .panels import STYLE, band, groups, legend, line, panels, styles, styles_of, wide
from .records import Result, setting_of
from .schedule import draw_recorded_schedule
from .statistics import harmonic_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = {"base": "base classes", "new": "new classes", "all": "all classes"}

log = logging.getLogger("results.figures")


def gather(items: Iterable[tuple]) -> dict[tuple[str, str], list]:
    """{(name, method): values} of (name, method, value)."""
    found: dict[tuple[str, str], list] = defaultdict(list)
    for name, method, value in items:
        found[name, method].append(value)
    return found


def draw_loss(found: Sequence[Result]) -> "Figure | None":
    """A panel for each dataset, a line for each method over the epochs."""
    runs, shots = trainings(found)
    names = name_methods(list(runs))
    look = styles_of(names)
    by = gather((r.dataset, name, runs[r].loss) for r, name in names.items())
    if not by:
        return None
    datasets = sorted({dataset for dataset, _ in by})
    figure, axes = panels(datasets, "epoch", "training loss")
    for ax, dataset in zip(axes, datasets, strict=True):
        for method in look:
            if rows := by.get((dataset, method)):
                line(ax, range(1, max(map(len, rows)) + 1), rows, method, look[method])
        ax.xaxis.get_major_locator().set_params(integer=True)
    text = "each method's own loss, mean over an epoch; mean ± std over seeds"
    legend(figure, axes, shots + text)
    return figure


def draw_time(found: Sequence[Result]) -> "Figure | None":
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
    look, datasets = styles_of(names), sorted({dataset for dataset, _ in by})
    figure, axes = panels(["Time per epoch"], "", "seconds per epoch", wide(look, datasets))
    groups(axes[0], datasets, by, look, bars=True)
    legend(figure, axes, shots + "mean over epochs and seeds; points: seeds")
    return figure


def draw_f1(found: Sequence[Result]) -> "Figure | None":
    """Accuracy beside macro F1, for each dataset and method."""
    runs = [r for r in found if r.side == "base"]
    if not any("macro_f1" in r.metrics for r in runs):
        return None
    names = name_methods(runs)
    look, datasets = styles_of(names), sorted({r.dataset for r in runs})
    titles = {"accuracy": "(a) Accuracy", "macro_f1": "(b) Macro F1"}
    width = wide(look, datasets)
    most = 2 if width < 6 else 1
    figure, axes = panels(list(titles.values()), "", "base classes, %", width, most)
    for ax, key in zip(axes, titles, strict=True):
        by = gather((r.dataset, names[r], r.metrics[key]) for r in runs if key in r.metrics)
        groups(ax, datasets, by, look, bars=False)
    legend(figure, axes, "mean over seeds; points: seeds")
    return figure


def draw_attributes(found: Sequence[Result]) -> "Figure | None":
    """Panels for base, new and HM; a point for each attribute length and seed."""
    settings: dict[tuple, dict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for r in found:
        if r.protocol == "base2new" and (n := attribute_length(r)):
            settings[r.trainer, r.shots, setting_but_length(r)][n].append(r)
    several = [(key[0], runs) for key, runs in settings.items() if len(runs) > 1]
    if not several:
        return None
    trainers = [trainer for trainer, _ in several]
    numbered = [f"{t} {trainers[: i + 1].count(t)}" for i, t in enumerate(trainers)]
    labels = [t if trainers.count(t) == 1 else numbered[i] for i, t in enumerate(trainers)]
    look = styles(dict(zip(labels, trainers, strict=True)))
    figure, axes = panels(("base", "new", "HM"), "attribute length, vectors", "accuracy, %", 2.8)
    lengths = sorted({n for _, runs in several for n in runs})
    for label, (_, runs_by_length) in zip(labels, several, strict=True):
        colour, marker = look[label]["color"], look[label]["marker"]
        for n, runs in runs_by_length.items():
            values = length_values(runs)
            if not len(values):
                continue
            side_by_side = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else np.zeros(1)
            at = lengths.index(n) + side_by_side
            for ax, column in zip(axes, values.T, strict=True):
                ax.plot(at, column, marker, color=colour, markersize=4, label=label)
                ends = min(at) - 0.1, max(at) + 0.1
                ax.hlines(column.mean(), *ends, color=colour, linewidth=1.2)
    if not axes[0].lines:
        return None
    for ax in axes:
        ax.set_xticks(range(len(lengths)), lengths)
    text = "points: seeds in order, each the average over datasets; dashes: their mean"
    legend(figure, axes, text)
    return figure


def attribute_length(result: Result) -> int | None:
    """Vectors before the first attribute word; None if none are recorded."""
    trainer = result.record["config"].get("TRAINER", {}) if result.record else {}
    node = trainer.get("ATPROMPT", {})
    used = node.get("USE_ATPROMPT") or result.trainer.endswith("_ATP")
    return node.get("N_ATT1") if used else None


def setting_but_length(result: Result) -> str:
    """Equal for runs that differ in dataset, seed, classes and attribute length only."""
    config = deepcopy(setting_of(result.record))
    for i in (1, 2, 3):
        config["TRAINER"]["ATPROMPT"].pop(f"N_ATT{i}", None)
    return json.dumps(config, sort_keys=True)


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


def draw_shots(found: Sequence[Result]) -> "Figure | None":
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
    figure, axes = panels(datasets, "images of each class", "accuracy, %")
    for ax, dataset in zip(axes, datasets, strict=True):
        for method in look:
            if seeds := rows.get((dataset, method)):
                line(ax, shots, list(seeds.values()), method, look[method])
        ax.set_xscale("log", base=2)
        ax.set_xticks(shots, shots)
        ax.minorticks_off()
    legend(figure, axes, "mean ± std over seeds")
    return figure


def draw_cloud(found: Sequence[Result]) -> "Figure | None":
    """A panel for each dataset, side and noise; a line for each method over σ.

    With a posterior's draws a star is the accuracy of their averaged prediction.
    """
    clouds = {r: cloud for r in found if (cloud := read_cloud(r.folder))}
    if not clouds:
        return None
    names = name_methods(list(clouds))
    look = styles_of(names)
    of_panel = gather(((r.dataset, SIDES[r.side]), clouds[r]["noise"], r) for r in clouds)
    keys = sorted(of_panel)
    mixed = len({noise for _, noise in keys}) > 1
    titles = [", ".join(place) + f", {noise} noise" * mixed for place, noise in keys]
    figure, axes = panels(titles, noise_axis(keys[0][1]), "accuracy, %")
    for ax, key in zip(axes, keys, strict=True):
        if mixed:
            ax.set_xlabel(noise_axis(key[1]))
        here = of_panel[key]
        for method in (m for m in look if any(names[r] == m for r in here)):
            draws = pooled(clouds[r] for r in here if names[r] == method)
            mean, std = (np.array(list(map(f, draws.values()))) for f in (np.mean, np.std))
            colour = look[method]["color"]
            ax.plot(list(draws), mean, label=method, linewidth=1.5, markersize=4, **look[method])
            if len(draws) > 1:
                band(ax, list(draws), mean, std, colour)
            else:  # ReBaPL's samples
                ax.errorbar(list(draws), mean, std, color=colour)
            averages = [clouds[r].get("average") for r in here if names[r] == method]
            if key[1] == POSTERIOR and None not in averages:
                ax.plot([1], np.mean(averages), "*", color=colour, markersize=9)
        if key[1] == POSTERIOR:
            ax.plot([], [], "*", color="0.5", markersize=9, label="averaged prediction of draws")
        positive = sorted({sigma for r in here for sigma in clouds[r]["sigmas"] if sigma > 0})
        if positive:
            ax.set_xscale("symlog", linthresh=positive[0])
            ticks = [0, *positive[:: len(positive) // 5 + 1]]
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        style = {"color": "0.5", "linewidth": 0.8, "linestyle": ":"}
        for sigma in {clouds[r].get("trained_sigma") for r in here} - {None}:
            ax.axvline(sigma, label="P2C's σ_max in training", **style)
    legend(figure, axes, "mean ± std over seeds and draws")
    return figure


def noise_axis(noise: str) -> str:
    """What σ is, by the kind of noise in cloud.json."""
    if noise == POSTERIOR:
        return "σ, × the posterior's deviation"
    return "σ of the noise on the text prompts"


def pooled(clouds: Iterable[dict]) -> dict[float, list[float]]:
    """{σ: accuracies} of all runs and draws, by σ."""
    draws: dict[float, list[float]] = defaultdict(list)
    for cloud in clouds:
        for sigma, accuracies in zip(cloud["sigmas"], cloud["accuracy"], strict=True):
            draws[sigma] += accuracies
    return dict(sorted(draws.items()))


class Kind(NamedTuple):
    """What draws a kind of figure (None: nothing to draw), what it needs, and what it shows."""

    draw: Callable[[Sequence[Result]], "Figure | None"]
    needs: str
    text: str


KINDS = {
    "loss": Kind(draw_loss, "trainings",
        "Training loss by epoch on each dataset (the paper's Figs. 4 and 5)"),
    "time": Kind(draw_time, "trainings", "Time per epoch on each dataset (the paper's Fig. 6)"),
    "f1": Kind(draw_f1, "results on base classes",
        "Accuracy and macro F1 on the base classes (the paper's Fig. 7)"),
    "attributes": Kind(draw_attributes,
        "base-to-new runs with results.json and two attribute lengths",
        "Base, new and HM by attribute length, a point for each seed (the paper's Fig. 3)"),
    "shots": Kind(draw_shots, "few-shot runs of two numbers of shots",
        "Accuracy by number of shots on each dataset"),
    "cloud": Kind(draw_cloud, f"{CLOUD}: run inference.cloud",
        "Accuracy as the learned text prompts are perturbed at test time"),
    "schedule": Kind(draw_recorded_schedule, "P2C runs with DPD",
        "σ of DPD by epoch, and the density of its noise, as configured"),
}  # fmt: skip


def draw(kind: str, found: Sequence[Result]) -> "Figure | None":
    """The figure of a kind; None if there is nothing for it."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return KINDS[kind].draw(found)


def describe(figure: "Figure", text: str) -> str:
    """A figure in words, for those who do not see it."""
    titles = [" ".join(ax.get_title().split()) for ax in figure.axes]
    labels = [t.get_text() for key in figure.legends for t in key.get_texts()]
    about = [key.get_title().get_text() for key in figure.legends]
    about = "".join(f" ({title})" for title in about if title)
    shown = f" Shown: {', '.join(labels)}{about}." if labels else ""
    return f"{text}. Panels: {', '.join(titles)}.{shown}"
