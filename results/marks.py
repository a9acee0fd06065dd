"""What is drawn into a panel: lines with bands, and marks side by side; single seeds are seen."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from .names import fold
from .panels import COLUMN, MARKERS, WIDE, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger("results.figures")

SEED = {"linewidth": 0.5, "alpha": 0.45, "marker": ".", "markersize": 1.5, "zorder": 1.5}
HATCHES = ("", "//", "xx", "..", "++")  # of bars of one colour
FEW = 4  # methods whose bands can be told apart
NAME = 22  # letters in a line of a name below an axis


def too_few(kind: str, what: str) -> None:
    """Warns in place of a figure of one point."""
    log.warning("%s: %s: no figure", kind, what)


def hollow(style: Mapping[str, str], size: float = 4) -> dict[str, Any]:
    """A method's marker without a filling, which would hide another."""
    return {**style, "markersize": size, "markerfacecolor": "none", "markeredgewidth": 0.9}


def seeds(values: Iterable[Sized]) -> str:
    """How many there are: one seed, 3 seeds, 2 to 5 seeds."""
    counts = sorted({len(some) for some in values})
    if counts == [1]:
        return "one seed"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def spread(values: Collection[Sized], bands: bool, of: str = "") -> str:
    """A sentence on what lines of so many seeds are, and over what else they are a mean."""
    if (n := seeds(values)) == "one seed" and not of:
        return "One seed."
    what = "Lines and bands: mean ± population std" if bands else "Lines: mean"
    return f"{what} over {n}{of}; thin lines: single seeds."


def line(
    ax: "Axes",
    x: Sequence[float],
    rows: Sequence[Sequence[float]],
    label: str,
    style: dict[str, str],
    bands: bool,
) -> None:
    """The mean of rows (one for each seed), a band of their population std, and thin the rows.

    Shorter rows count as far as they go.
    """
    table = np.full((len(rows), len(x)), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    known = ~np.isnan(table).all(axis=0)
    x, table = np.asarray(x)[known], table[:, known]
    mean, std = np.nanmean(table, axis=0), np.nanstd(table, axis=0)
    mean_line(ax, x, mean, label, style)
    if len(rows) > 1:
        if bands:
            band(ax, x, mean, std, style["color"])
        single(ax, x, table, style["color"])


def mean_line(
    ax: "Axes", x: Sequence[float], mean: Sequence[float], label: str, style: dict[str, str]
) -> None:
    """A method's line; where there are many, its markers are not at those of another."""
    every = max(1, len(x) // 10)
    first = MARKERS.index(style["marker"]) * every // len(MARKERS)
    ax.plot(x, mean, label=label, linewidth=1.1, markevery=(first, every), **hollow(style))


def band(ax: "Axes", x: np.ndarray, mean: np.ndarray, std: np.ndarray, colour: str) -> None:
    """Mean ± std, behind a line."""
    ax.fill_between(x, mean - std, mean + std, color=colour, alpha=0.13, linewidth=0)


def single(ax: "Axes", x: Sequence[float], rows: Iterable[Sequence[float]], colour: str) -> None:
    """Each seed's own line, thin."""
    for row in rows:
        ax.plot(x, row, color=colour, **SEED)


def wide(look: Sized, names: Sized) -> float:
    """Inches for a mark of each method for each name."""
    return min(WIDE, max(COLUMN, 1.2 + 0.15 * len(look) * len(names)))


def groups(
    ax: "Axes",
    names: Sequence[str],
    values: Mapping[tuple[str, str], Sequence[float]],
    look: Look,
    bars: bool,
) -> None:
    """For each name a mark for each method, of {(name, method): a value for each seed}.

    The marks are bars from 0 or means; the seeds are points on them, side by side.
    """
    step = 0.8 / len(look)
    drawn = Counter()  # how many have this colour
    for k, (method, style) in enumerate(look.items()):
        colour = style["color"]
        there = [(i, values[n, method]) for i, n in enumerate(names) if values.get((n, method))]
        at = [i - 0.4 + (k + 0.5) * step for i, _ in there]
        means = [np.mean(seeds) for _, seeds in there]
        if bars:
            hatch = HATCHES[drawn[colour] % len(HATCHES)]
            look_of = {"color": colour, "edgecolor": "white", "hatch": hatch}
            ax.bar(at, means, step * 0.9, label=method, alpha=0.75, **look_of)
        else:
            mark = hollow({"color": colour, "marker": style["marker"]}, 5.5)
            ax.plot(at, means, linestyle="none", label=method, **mark)
        drawn[colour] += 1
        several = [(x, seeds) for x, (_, seeds) in zip(at, there, strict=True) if len(seeds) > 1]
        xs = [x for at_x, seeds in several for x in side_by_side(at_x, len(seeds), step / 2)]
        ys = [value for _, seeds in several for value in seeds]
        ax.plot(xs, ys, ".", color="0.1" if bars else colour, markersize=2.5)
    name_groups(ax, names)


def side_by_side(middle: float, n: int, width: float) -> np.ndarray:
    """n places around the middle."""
    return middle + np.linspace(-width / 2, width / 2, n) if n > 1 else np.array([middle])


def name_groups(ax: "Axes", names: Sequence[str]) -> None:
    """The names below an axis, slanted where they are too long for their places."""
    figure, columns = ax.figure, ax.get_gridspec().ncols
    place = (figure.get_figwidth() / columns - 0.6) / len(names)  # inches
    too_long = 0.065 * max(map(len, names)) > place
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if too_long else {}
    shown = names if too_long else [fold(name, NAME) for name in names]
    ax.set_xticks(range(len(names)), shown, **slanted)
    ax.set_xlim(-0.6, len(names) - 0.4)
