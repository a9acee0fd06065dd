"""The paper's figures, and some it lacks, as PNG and PDF: python -m results.figures KIND FOLDER …
(--help lists them).

Numbers come from the runs' results.json; losses and times of runs without one from their logs.
"""

import argparse
import json
import logging
import os
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dassl.commands import OneLineParser, command_line, leave, log_to_stderr
from dassl.files import regular
from parse_test_res import LOG_NAME, harmonic_mean, read_log

from .records import Result, find_results, name_methods

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from yacs.config import CfgNode

EXAMPLES = """examples:
  python -m results.figures loss output --methods P2C MaPLe --out figures
  python -m results.figures all output/shapes_table4
  python -m results.figures schedule configs/trainers/P2C/vit_b16_ep5_batch4.yaml TRAINER.P2C.DPD.SCHEDULE cosine
"""
# A method looks the same in all figures: it is found by its trainer's place here, other variants
# follow.
TRAINERS = (
    "P2C", "MaPLe", "MaPLe_ATP", "PromptSRC", "CoOp", "CoCoOp", "KgCoOp", "ProGrad", "TCP", "MultiModalAdapter",
    "CoOp_ATP", "CoCoOp_ATP", "ZeroshotCLIP", "ZeroshotCLIP2",
)  # fmt: skip
COLOURS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # told apart by all eyes
MARKERS = "osD^vPX"
LINES = ("-", "--", ":")
DPI = 200
HEIGHT = 1.7  # inches, of a panel without what is written around it
# Dassl 0.5 writes `epoch [1/5][20/40]`.
EPOCH_LINE = re.compile(
    r"epoch \[(?P<epoch>\d+)/\d+\](?: batch )?\[\d+/(?P<batches>\d+)\]\s+time \S+ \((?P<time>[\d.]+)\)"
    r".*?\sloss \S+ \((?P<loss>[^)\s]+)\)"
)
CLOUD = "cloud.json"
LETTER = {"base": "base classes", "new": "new classes", "all": "all classes"}

# Text in a PDF is text; equal SVGs are equal bytes; a $ in a name is a $.
STYLE = {"font.size": 9, "pdf.fonttype": 42, "svg.hashsalt": "p2c", "text.parse_math": False}

log = logging.getLogger("figures")


class Curves(NamedTuple):
    """Means over each epoch; NaN where not known."""

    loss: list[float]
    seconds: list[float]


# -- what is drawn


def curves_of(result: Result) -> Curves | None:
    """Loss and seconds of a run's epochs, from its record, else its logs; None if it is no
    training."""
    if result.record and any(loss is not None for loss in result.record.get("loss", ())):
        numbers = (result.record.get(key, ()) for key in ("loss", "epoch_seconds"))
        return Curves(*([np.nan if x is None else x for x in values] for values in numbers))
    return None if result.record else curves_of_logs(result.folder)


def curves_of_logs(folder: Path) -> Curves | None:
    """The same from the log that counts: the newest one with the result of a finished run.

    Where that run was resumed, the epochs before its own are those of the logs it went on from:
        each time the newest
    older log that has the epoch before.
    """
    epochs: dict[int, tuple[float, float]] = {}
    counted = False
    for path in sorted((p for p in folder.iterdir() if LOG_NAME.fullmatch(p.name)), reverse=True):
        first = min(epochs, default=0)
        if first == 1:
            break
        try:
            counted = counted or read_log(path) is not None
            here = epochs_of_log(path) if counted else {}
        except OSError as error:
            log.warning("cannot read %s", error)
            continue
        if not first or first - 1 in here:
            epochs |= {
                epoch: values for epoch, values in here.items() if epoch < first or not first
            }
    if not epochs:
        return None
    nothing = (np.nan, np.nan)
    return Curves(
        *map(list, zip(*(epochs.get(i, nothing) for i in range(1, max(epochs) + 1)), strict=True))
    )


def epochs_of_log(path: Path) -> dict[int, tuple[float, float]]:
    """{epoch: (loss, seconds)}, from the last line of each: mean loss so far, mean time of a batch
    × batches. Raises OSError."""
    matches = EPOCH_LINE.finditer(regular(path).read_text(encoding="utf-8", errors="replace"))
    return {
        int(m["epoch"]): (float(m["loss"]), float(m["time"]) * int(m["batches"])) for m in matches
    }


def trainings(found: Sequence[Result]) -> tuple[dict[Result, Curves], str]:
    """The trainings on base classes, as in the paper, without any the others; where they are of
    several numbers of shots those of the largest only, and a text that says so."""
    usual = [r for r in found if r.side == "base"] or [r for r in found if r.side == "all"]
    runs = {r: curves for r in usual if (curves := curves_of(r))}
    shots = {r.shots for r in runs}
    text = f"{max(shots)} shots; " if len(shots) > 1 else ""
    return {r: curves for r, curves in runs.items() if r.shots == max(shots)}, text


def read_cloud(folder: Path) -> dict | None:
    """What inference.cloud left in a run's folder; None if there is nothing, and with a warning if it
    cannot be used."""
    path = folder / CLOUD
    if not path.exists():
        return None
    try:
        cloud = json.loads(regular(path).read_text(encoding="utf-8"))
        if (
            len(cloud["accuracy"]) == len(cloud["sigmas"])
            and all(cloud["accuracy"])
            and cloud["noise"]
        ):
            return cloud
    except (OSError, ValueError, KeyError, TypeError):
        pass
    log.warning("%s cannot be read; run inference.cloud again", path)
    return None


def method_config(result: Result) -> dict:
    """The TRAINER node that the run recorded; empty if it recorded none."""
    return (result.record or {}).get("config", {}).get("TRAINER", {})


def attribute_length(result: Result) -> int | None:
    """Vectors before the first attribute word; None if none are recorded."""
    att = method_config(result).get("ATPROMPT", {})
    return att.get("N_ATT1") if att.get("USE_ATPROMPT") or result.trainer.endswith("_ATP") else None


def setting_but_length(result: Result) -> str:
    """Equal for runs that differ in dataset, seed, classes and attribute length only."""
    config = json.loads(json.dumps(result.record["config"]))
    for key in ("OUTPUT_DIR", "SEED", "RESUME", "DATASET"):
        config.pop(key, None)
    for i in (1, 2, 3):
        config["TRAINER"]["ATPROMPT"].pop(f"N_ATT{i}", None)
    return json.dumps(config, sort_keys=True)


# -- how it is drawn


def styles(methods: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Colour, marker and line of each method, given {method: trainer}; no two are the same."""
    of_trainers = {TRAINERS.index(trainer) for trainer in methods.values() if trainer in TRAINERS}
    taken: dict[int, str] = {}
    for method, trainer in sorted(methods.items()):
        place = TRAINERS.index(trainer) if trainer in TRAINERS else 0
        if place in taken or trainer not in TRAINERS:
            place = next(
                i
                for i in range(len(methods) + len(TRAINERS))
                if i not in of_trainers | taken.keys()
            )
        taken[place] = method
    n = len(COLOURS)
    return {
        m: {
            "color": COLOURS[i % n],
            "marker": MARKERS[(i + i // n) % n],
            "linestyle": LINES[i // n % len(LINES)],
        }
        for i, m in sorted(taken.items())
    }


def styles_of(names: Mapping[Result, str]) -> dict[str, dict[str, str]]:
    return styles({name: r.trainer for r, name in names.items()})


def panels(
    titles: Sequence[str], x: str, y: str, width: float = 2.6, most: int = 4
) -> tuple["Figure", list["Axes"]]:
    """A figure with a panel for each title, to be ended by `legend`; no pyplot, so no window and no
    state."""
    from matplotlib.figure import Figure

    columns = min(most, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(max(4.0, width * columns), 6.0 * rows), dpi=DPI, layout="constrained")
    letters = int(12 * figure.get_figwidth() / columns)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[len(titles) :]:
        ax.remove()
    for i, (ax, title) in enumerate(zip(axes, titles, strict=False)):
        ax.set_title(textwrap.fill(title, letters), fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.set_xlabel(x if i + columns >= len(titles) else "")
        ax.set_ylabel(y if i % columns == 0 else "")
    return figure, axes[: len(titles)]


def legend(figure: "Figure", axes: Iterable["Axes"], title: str) -> None:
    """One for all panels, below them; its title says what lines and bands are. The figure gets the
    width that takes, and the height that gives all panels theirs."""
    handles = {
        label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if len(handles) > 6:
        figure.set_figwidth(max(6.4, figure.get_figwidth()))
    place = {"loc": "outside lower center", "frameon": False, "handlelength": 3}
    place |= {"fontsize": "small", "title_fontsize": "small"}
    longest = figure.legend(handles.values(), handles.keys(), **place)
    width = longest.get_window_extent().width
    longest.remove()
    rows = -(-len(handles) // max(1, int(figure.bbox.width / width)))
    made = figure.legend(
        handles.values(), handles.keys(), title=title, ncols=-(-len(handles) // rows), **place
    )
    # some more than it takes: each file format has its own widths of letters
    size = 1.03 * made.get_window_extent().size / figure.dpi + 0.1
    figure.set_size_inches(max(figure.get_figwidth(), size[0]), figure.get_figheight() + size[1])
    figure.draw_without_rendering()
    ax = figure.axes[0]
    spare = ax.get_window_extent().height / figure.dpi - HEIGHT
    figure.set_figheight(figure.get_figheight() - spare * ax.get_gridspec().nrows)


def line(
    ax: "Axes",
    x: Sequence[float],
    rows: Sequence[Sequence[float]],
    label: str,
    style: dict[str, str],
) -> None:
    """The mean of rows (one for each seed) and a band of their population std. Shorter rows count
    as far as they go."""
    table = np.full((len(rows), len(x)), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    known = ~np.isnan(table).all(axis=0)
    x, table = np.asarray(x)[known], table[:, known]
    mean, std = np.nanmean(table, axis=0), np.nanstd(table, axis=0)
    ax.plot(
        x, mean, label=label, linewidth=1.5, markersize=4, markevery=max(1, len(x) // 10), **style
    )
    if len(rows) > 1:
        ax.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.18, linewidth=0)


def wide(look: Sized, names: Sized) -> float:
    """Inches for a mark of each method for each name."""
    return min(12.0, 2.4 + 0.2 * len(look) * len(names))


def groups(
    ax: "Axes",
    names: Sequence[str],
    values: Mapping[tuple[str, str], Sequence[float]],
    look: Mapping,
    bars: bool,
) -> None:
    """For each name a mark for each method, {(name, method): a value for each seed}: bars from 0 or
    means, and the seeds as points."""
    methods = list(look)
    step = 0.8 / len(methods)
    for k, method in enumerate(methods):
        colour, marker = look[method]["color"], look[method]["marker"]
        there = [
            (i, values[name, method]) for i, name in enumerate(names) if values.get((name, method))
        ]
        at = [i - 0.4 + (k + 0.5) * step for i, _ in there]
        means = [np.mean(seeds) for _, seeds in there]
        if bars:
            again = colour in [look[m]["color"] for m in methods[:k]]
            ax.bar(
                at,
                means,
                step * 0.9,
                color=colour,
                label=method,
                hatch="//" * again,
                edgecolor="white",
            )
        else:
            ax.plot(at, means, marker, color=colour, markersize=6, label=method)
        points = [
            (x, v) for x, (_, seeds) in zip(at, there, strict=True) if len(seeds) > 1 for v in seeds
        ]
        ax.plot(
            *zip(*points, strict=True) if points else ([], []),
            ".",
            color="0.25" if bars else colour,
            markersize=3,
        )
    too_long = 0.085 * max(map(len, names)) > (wide(look, names) - 0.8) / len(names)  # inches
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if too_long else {}
    ax.set_xticks(range(len(names)), names, **slanted)
    ax.set_xlim(-0.6, len(names) - 0.4)


# -- the kinds


def draw_loss(found: Sequence[Result]) -> "Figure | None":
    runs, shots = trainings(found)
    names = name_methods(list(runs))
    look = styles_of(names)
    by = gather((r.dataset, name, runs[r].loss) for r, name in names.items())
    if not by:
        return None
    datasets = sorted({dataset for dataset, _ in by})
    figure, axes = panels(datasets, "epoch", "training loss")
    for ax, dataset in zip(axes, datasets, strict=True):
        for method in (m for m in look if (dataset, m) in by):
            rows = by[dataset, method]
            line(ax, range(1, max(map(len, rows)) + 1), rows, method, look[method])
        ax.xaxis.get_major_locator().set_params(integer=True)
    legend(
        figure, axes, shots + "each method's own loss, mean over an epoch; mean ± std over seeds"
    )
    return figure


def draw_time(found: Sequence[Result]) -> "Figure | None":
    runs, shots = trainings(found)
    names = name_methods(list(runs))
    by = gather(
        (r.dataset, name, np.nanmean(runs[r].seconds))
        for r, name in names.items()
        if known(runs[r].seconds)
    )
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
    runs = [r for r in found if r.side == "base"]
    names = name_methods(runs)
    look, datasets = styles_of(names), sorted({r.dataset for r in runs})
    titles = {"accuracy": "(a) Accuracy", "macro_f1": "(b) Macro F1"}
    if not any("macro_f1" in r.metrics for r in runs):
        return None
    width = wide(look, datasets)
    figure, axes = panels(
        list(titles.values()), "", "base classes, %", width, most=2 if width < 6 else 1
    )
    for ax, key in zip(axes, titles, strict=True):
        by = gather((r.dataset, names[r], r.metrics[key]) for r in runs if key in r.metrics)
        groups(ax, datasets, by, look, bars=False)
    legend(figure, axes, "mean over seeds; points: seeds")
    return figure


def draw_attributes(found: Sequence[Result]) -> "Figure | None":
    runs = [r for r in found if r.protocol == "base2new" and attribute_length(r)]
    settings: dict[tuple, dict[int, dict]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    for r in runs:
        key = r.trainer, r.shots, setting_but_length(r)
        settings[key][attribute_length(r)][r.seed].setdefault(r.dataset, {})[r.side] = r.metrics[
            "accuracy"
        ]
    several = {key: by_length for key, by_length in settings.items() if len(by_length) > 1}
    if not several:
        return None
    trainers = [trainer for trainer, *_ in several]
    labels = [
        t if trainers.count(t) == 1 else f"{t} {trainers[: i + 1].count(t)}"
        for i, t in enumerate(trainers)
    ]
    look = styles(dict(zip(labels, trainers, strict=True)))
    titles = ("base", "new", "HM")
    figure, axes = panels(titles, "attribute length, vectors", "accuracy, %", 2.8)
    lengths = sorted({n for by_length in several.values() for n in by_length})
    for label, by_length in zip(labels, several.values(), strict=True):
        for n, seeds in by_length.items():
            values = length_values(seeds)
            for ax, column in zip(axes, values.T if len(values) else [], strict=False):
                at = (
                    lengths.index(n) + np.linspace(-0.15, 0.15, len(column))
                    if len(column) > 1
                    else [lengths.index(n)]
                )
                ax.plot(
                    at,
                    column,
                    look[label]["marker"],
                    color=look[label]["color"],
                    markersize=4,
                    label=label,
                )
                ax.hlines(
                    column.mean(),
                    min(at) - 0.1,
                    max(at) + 0.1,
                    color=look[label]["color"],
                    linewidth=1.2,
                )
    if not axes[0].lines:
        return None
    for ax in axes:
        ax.set_xticks(range(len(lengths)), lengths)
    legend(
        figure, axes, "points: seeds in order, each the average over datasets; dashes: their mean"
    )
    return figure


def length_values(seeds: Mapping[int, Mapping[str, Mapping[str, float]]]) -> np.ndarray:
    """(seeds, 3): base, new and HM averaged over datasets, of the seeds that have all of them."""
    datasets = {dataset for by_dataset in seeds.values() for dataset in by_dataset}
    rows = []
    for seed in sorted(seeds):
        both = [(s["base"], s["new"]) for s in seeds[seed].values() if len(s) == 2]
        if len(both) == len(datasets):
            rows.append(
                np.mean([(base, new, harmonic_mean(base, new)) for base, new in both], axis=0)
            )
        else:
            log.warning("attributes: seed %d has not all results; not drawn", seed)
    return np.array(rows)


def draw_shots(found: Sequence[Result]) -> "Figure | None":
    runs = [r for r in found if r.protocol == "few_shot"]
    names = name_methods(runs, by=("cfg", "root"))
    shots = sorted({r.shots for r in runs if r.shots > 0})
    if len(shots) < 2:
        return None
    look, datasets = styles_of(names), sorted({r.dataset for r in runs})
    figure, axes = panels(datasets, "images of each class", "accuracy, %")
    for ax, dataset in zip(axes, datasets, strict=True):
        for method in look:
            seeds: dict[int, list[float]] = defaultdict(lambda: [np.nan] * len(shots))
            for r in (
                r for r in runs if (r.dataset, names[r]) == (dataset, method) and r.shots > 0
            ):
                seeds[r.seed][shots.index(r.shots)] = r.metrics["accuracy"]
            if seeds:
                line(ax, shots, list(seeds.values()), method, look[method])
        ax.set_xscale("log", base=2)
        ax.set_xticks(shots, shots)
        ax.minorticks_off()
    legend(figure, axes, "mean ± std over seeds")
    return figure


def draw_cloud(found: Sequence[Result]) -> "Figure | None":
    clouds = {r: cloud for r in found if (cloud := read_cloud(r.folder))}
    if not clouds:
        return None
    names = name_methods(list(clouds))
    look = styles_of(names)
    titles = sorted({(r.dataset, LETTER[r.side], clouds[r]["noise"]) for r in clouds})
    several_noises = len({noise for *_, noise in titles}) > 1
    shown = [f"{d}, {side}" + f", {noise} noise" * several_noises for d, side, noise in titles]
    figure, axes = panels(shown, "σ of the noise on the text prompts", "accuracy, %")
    for ax, title in zip(axes, titles, strict=True):
        here = [r for r in clouds if (r.dataset, LETTER[r.side], clouds[r]["noise"]) == title]
        for method in look:
            by: dict[float, list[float]] = defaultdict(list)  # over seeds and draws
            for r in (r for r in here if names[r] == method):
                for sigma, draws in zip(clouds[r]["sigmas"], clouds[r]["accuracy"], strict=True):
                    by[sigma] += draws
            x = sorted(by)
            stats = [(np.mean(by[s]), np.std(by[s])) for s in x]
            if x:
                mean, std = map(np.array, zip(*stats, strict=True))
                ax.plot(x, mean, label=method, linewidth=1.5, markersize=4, **look[method])
                ax.fill_between(
                    x, mean - std, mean + std, color=look[method]["color"], alpha=0.18, linewidth=0
                )
        positive = [s for r in here for s in clouds[r]["sigmas"] if s > 0]
        if positive:
            ax.set_xscale("symlog", linthresh=min(positive))
            ticks = [0, *sorted(set(positive))[:: len(set(positive)) // 5 + 1]]
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        for sigma in {clouds[r].get("trained_sigma") for r in here} - {None}:
            ax.axvline(
                sigma, color="0.5", linewidth=0.8, linestyle=":", label="P2C's σ_max in training"
            )
    legend(figure, axes, "mean ± std over seeds and draws")
    return figure


def draw_schedule(cfg: "CfgNode") -> "Figure":
    """σ of each epoch, and the density of n; for a checked config of P2C."""
    from trainers.p2c import MixtureNoise, sigma_at

    dpd, epochs = cfg.TRAINER.P2C.DPD, cfg.OPTIM.MAX_EPOCH
    figure, (left, right) = panels(
        [f"Schedule: {dpd.SCHEDULE}", f"Noise: {dpd.NOISE}"], "", "", 3.6
    )
    fine = np.linspace(0, epochs - 1, 40 * epochs)
    style = {"color": COLOURS[0]}
    left.plot(fine, [sigma_at(dpd, t, epochs) for t in fine], linewidth=0.8, **style)
    left.plot(
        range(epochs), [sigma_at(dpd, t, epochs) for t in range(epochs)], "o", markersize=4, **style
    )
    left.set(xlabel="epoch, from 0", ylabel="σ", ylim=(0, None))
    left.xaxis.get_major_locator().set_params(integer=True)

    def normal(x: np.ndarray, mean: float, std: float) -> np.ndarray:
        return np.exp(-(((x - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))

    noise = MixtureNoise(dpd.GMM_MEANS, dpd.GMM_STDS, dpd.GMM_WEIGHTS, dpd.GMM_STANDARDIZE)
    parts = list(
        zip(
            noise.means.tolist(),
            noise.stds.tolist(),
            np.diff([0, *noise.edges.tolist(), 1]),
            strict=True,
        )
    )
    x = np.linspace(
        *(max(4, *(abs(m) + 4 * s for m, s, _ in parts)) * side for side in (-1, 1)), 801
    )
    right.plot(x, normal(x, 0, 1), "--", color="0.5", linewidth=1, label="N(0, 1)")
    if dpd.NOISE == "gmm":
        densities = [weight * normal(x, mean, std) for mean, std, weight in parts]
        for i, density in enumerate(densities):
            right.plot(
                x, density, ":", linewidth=1, label="" if i else "components, weighted", **style
            )
        right.plot(x, sum(densities), linewidth=1.5, label="mixture", **style)
    right.set(xlabel="n; the noise is σ·n", ylabel="density", ylim=(0, None))
    legend(figure, [right], "")
    return figure


def draw_recorded_schedule(found: Sequence[Result]) -> "Figure | None":
    """Of the config that most of the P2C runs have."""
    configs = []
    for r in (r for r in found if r.trainer == "P2C"):
        dpd = method_config(r).get("P2C", {}).get("DPD", {})
        epochs = (r.record or {}).get("config", {}).get("OPTIM", {}).get("MAX_EPOCH")
        if dpd.get("ENABLED") and isinstance(epochs, int):
            configs.append((json.dumps(dpd, sort_keys=True), epochs))
    if not configs:
        return None
    from yacs.config import CfgNode

    (dpd, epochs), _ = Counter(configs).most_common(1)[0]
    return draw_schedule(
        CfgNode({"TRAINER": {"P2C": {"DPD": json.loads(dpd)}}, "OPTIM": {"MAX_EPOCH": epochs}})
    )


def known(values: Sequence[float]) -> bool:
    return not np.isnan(values).all()


def gather(items: Iterable[tuple]) -> dict[tuple[str, str], list]:
    """{(name, method): values} of (name, method, value)."""
    found: dict[tuple[str, str], list] = defaultdict(list)
    for name, method, value in items:
        found[name, method].append(value)
    return found


class Kind(NamedTuple):
    draw: Callable[[Sequence[Result]], "Figure | None"]
    text: str
    needs: str


KINDS = {
    "loss": Kind(
        draw_loss, "Training loss by epoch on each dataset (the paper's Figs. 4 and 5)", "trainings"
    ),
    "time": Kind(draw_time, "Time per epoch on each dataset (the paper's Fig. 6)", "trainings"),
    "f1": Kind(
        draw_f1,
        "Accuracy and macro F1 on the base classes (the paper's Fig. 7)",
        "results on base classes",
    ),
    "attributes": Kind(
        draw_attributes,
        "Base, new and HM by attribute length, a point for each seed (the paper's Fig. 3)",
        "base-to-new runs with results.json and two attribute lengths",
    ),
    "shots": Kind(
        draw_shots,
        "Accuracy by number of shots on each dataset",
        "few-shot runs of two numbers of shots",
    ),
    "cloud": Kind(
        draw_cloud,
        "Accuracy as the learned text prompts are perturbed at test time",
        f"{CLOUD}: run inference.cloud",
    ),
    "schedule": Kind(
        draw_recorded_schedule,
        "σ of DPD by epoch, and the density of its noise, as configured",
        "P2C runs with DPD",
    ),
}


def draw(kind: str, found: Sequence[Result]) -> "Figure | None":
    """The figure of a kind; None if there is nothing for it."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return KINDS[kind].draw(found)


def describe(figure: "Figure", text: str) -> str:
    """A figure in words, for those who do not see it."""
    titles = [" ".join(ax.get_title().split()) for ax in figure.axes]
    labels = [t.get_text() for key in figure.legends for t in key.get_texts()]
    about = [
        f" ({key.get_title().get_text()})" for key in figure.legends if key.get_title().get_text()
    ]
    shown = f" Shown: {', '.join(labels)}{''.join(about)}." * bool(labels)
    return f"{text}. Panels: {', '.join(titles)}.{shown}"


def save(figure: "Figure", name: str, folder: Path) -> None:
    """Writes and prints name.png and name.pdf."""
    for suffix in ("png", "pdf"):
        path = folder / f"{name}.{suffix}"
        # without the date, equal numbers give equal files
        figure.savefig(path, dpi=DPI, metadata={"CreationDate": None} if suffix == "pdf" else None)
        print(path)


# -- the command


def schedule_config(words: Sequence[str]) -> "CfgNode":
    """P2C's config from a file (or none) and KEY VALUE pairs; leaves with one line if it makes no
    sense."""
    from dassl.utils.errors import Failure
    from train import parse_args as train_args
    from train import setup_cfg
    from trainers.p2c import P2C

    file = words[:1] if len(words) % 2 else []
    pairs = [*words[len(file) :], "TRAINER.NAME", "P2C", "DATASET.NAME", "-"]  # no run: any dataset
    try:
        cfg = setup_cfg(train_args([*(["--config-file", *file] if file else []), *pairs]))
        P2C.check_cfg(object.__new__(P2C), cfg)  # which looks at the config only
    except Failure as error:
        leave(str(error), error.exit_code)
    if not cfg.TRAINER.P2C.DPD.ENABLED:
        leave("TRAINER.P2C.DPD.ENABLED is False: there is no noise to draw", 1)
    return cfg


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    lines = {kind: about.text for kind, about in KINDS.items()}
    lines["schedule"] += "; takes a config file, KEY VALUE pairs or both in place of folders"
    lines["all"] = "each of them that there is something for, the schedule of the P2C runs found"
    kinds = "\n".join(f"  {kind:<11} {text}" for kind, text in lines.items())
    epilog = f"kinds:\n{kinds}\n\n{EXAMPLES}"
    parser = OneLineParser("python -m results.figures", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("kind", choices=lines, metavar="KIND", help=" | ".join(lines))
    add("what", nargs="*", metavar="FOLDER", help="runs are looked for in and below these")
    add(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="draw only these, by trainer or as the legend calls them",
    )
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.kind != "schedule":
        if not args.what:
            parser.error("give the folders of the runs")
        for folder in args.what:
            if not os.path.isdir(folder):  # Path.is_dir raises for names that are too long
                parser.error(f"{folder}: no such folder")
    return args


def only(found: Sequence[Result], methods: Sequence[str] | None) -> list[Result]:
    """The results of these methods; leaves with one line if there is one of which there are
    none."""
    if not methods:
        return list(found)
    names = name_methods(found)
    there = {name: r.trainer for r, name in names.items()}
    for method in methods:
        if method not in there and method not in there.values():
            leave(
                f"--methods {method}: none here; there are {', '.join(sorted(there)) or 'no runs'}",
                2,
            )
    return [r for r in found if names[r] in methods or r.trainer in methods]


def main(argv: Sequence[str] | None = None) -> int:
    """0 or 1 (nothing to draw); leaves with 2 for wrong arguments."""
    args = parse_args(argv)
    log_to_stderr()
    import matplotlib

    matplotlib.rcParams.update(STYLE)
    if args.kind == "schedule":
        drawn = {"schedule": draw_schedule(schedule_config(args.what))}
    else:
        found = only(find_results(map(Path, args.what)), args.methods)
        kinds = KINDS if args.kind == "all" else [args.kind]
        drawn = {kind: figure for kind in kinds if (figure := draw(kind, found))}
    if not drawn:
        needs = KINDS[args.kind].needs if args.kind in KINDS else "results"
        leave(f"nothing to draw in {' '.join(args.what)} (looked for {needs})", 1)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for kind, figure in drawn.items():
            save(figure, kind, args.out)
    except OSError as error:
        leave(f"cannot write to {args.out}: {error.strerror or error}", 1)
    return 0


if __name__ == "__main__":
    command_line(main)
