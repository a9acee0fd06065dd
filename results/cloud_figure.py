"""The figure of inference.cloud: accuracy as prompts are moved by noise, or drawn."""

import textwrap
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .attribute_figure import attribute_length
from .curves import POSTERIOR, read_cloud
from .marks import FEW, band, mean_line, single, spread, too_few
from .names import name_methods
from .panels import Page, finish, panels, same_range, styles_of
from .records import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDES = {"base": "base classes", "new": "new classes", "all": "all classes"}
# From the text tower's second block on their deep prompts take the place of what noise moves.
DEEP = {"P2C", "MaPLe", "PromptSRC", "ReBaPL_P2C", "ReBaPL_MaPLe"}
UNFAIR = "no fair baseline, as deep prompts take the place of the vectors that are perturbed."

Clouds = Mapping[Result, dict]


def draw_cloud(found: Sequence[Result], page: Page) -> "Figure | None":
    """A panel for each dataset, side and noise; a line for each method over σ.

    With a posterior's draws a star is the accuracy of their averaged prediction.
    """
    clouds = {r: cloud for r in found if (cloud := read_cloud(r))}
    if not clouds:
        return None
    if all(len(cloud["sigmas"]) < 2 for cloud in clouds.values()):
        return too_few("cloud", "measured at one σ; a curve takes two")
    names = name_methods(list(clouds))
    look = styles_of(names)
    moved = {r: name for r, name in names.items() if clouds[r]["noise"] != POSTERIOR}
    unfair = no_fair_baselines(moved)
    of_panel = defaultdict(list)
    for r, cloud in clouds.items():
        classes = r.classes.replace(r.side, SIDES[r.side])
        of_panel[(r.dataset, classes), cloud["noise"]].append(r)
    keys = sorted(of_panel)
    mixed = len({noise for _, noise in keys}) > 1
    titles = [", ".join(place) + f", {noise} noise" * mixed for place, noise in keys]
    figure, axes = panels(titles, noise_axis(keys[0][1]), "accuracy, %", page)
    runs_of, bands = defaultdict(list), len(look) <= FEW
    for ax, key in zip(axes, keys, strict=True):
        if mixed:
            ax.set_xlabel(textwrap.fill(noise_axis(key[1]), 24), linespacing=1.0)
        here = of_panel[key]
        for method, style in look.items():
            if runs := [clouds[r] for r in here if names[r] == method]:
                mark = " †" * (method in unfair and page.caveats)
                draw_method(ax, runs, method + mark, style, bands)
                runs_of[key, method] = runs
        draw_axis(ax, [clouds[r] for r in here])
    same_range(axes)
    note = spread(runs_of.values(), bands, " and draws")
    finish(figure, axes, note, page, caveat_of(unfair))
    return figure


def draw_method(
    ax: "Axes", clouds: Sequence[dict], label: str, style: dict[str, str], bands: bool
) -> None:
    """A method's mean over seeds and draws, their spread, and each seed's mean over draws."""
    draws, colour = pooled(clouds), style["color"]
    mean, std = (np.array(list(map(f, draws.values()))) for f in (np.mean, np.std))
    mean_line(ax, list(draws), mean, label, style)
    if len(draws) > 1 and bands:
        band(ax, list(draws), mean, std, colour)
    elif len(draws) == 1:  # ReBaPL's samples
        ax.errorbar(list(draws), mean, std, color=colour)
    for cloud in clouds if len(clouds) > 1 else ():
        single(ax, cloud["sigmas"], [list(map(np.mean, cloud["accuracy"]))], colour)
    averages = [cloud.get("average") for cloud in clouds]
    if clouds[0]["noise"] == POSTERIOR and None not in averages:
        ax.plot([1], np.mean(averages), "*", color=colour, markersize=8)


def draw_axis(ax: "Axes", clouds: Sequence[dict]) -> None:
    """The axis of σ, and what the panel has besides the methods."""
    if clouds[0]["noise"] == POSTERIOR:
        ax.plot([], [], "*", color="0.5", markersize=8, label="averaged prediction of draws")
    positive = sorted({sigma for cloud in clouds for sigma in cloud["sigmas"] if sigma > 0})
    if positive:
        ax.set_xscale("symlog", linthresh=positive[0])
        ticks = [0, *positive[:: -(-len(positive) // 5)]]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    style = {"color": "0.5", "linewidth": 0.8, "linestyle": ":"}
    for sigma in {cloud.get("trained_sigma") for cloud in clouds} - {None}:
        ax.axvline(sigma, label="P2C's σ_max in training", **style)


def no_fair_baselines(names: Mapping[Result, str]) -> set[str]:
    """Of methods moved by noise those that it hardly reaches, beside some that it does."""
    deep = {name for r, name in names.items() if r.trainer in DEEP and not attribute_length(r)}
    return deep if set(names.values()) - deep else set()


def caveat_of(unfair: Collection[str]) -> str:
    """What a table or figure says of them; nothing if there are none."""
    return f"† {', '.join(sorted(unfair))}: {UNFAIR}" if unfair else ""


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
