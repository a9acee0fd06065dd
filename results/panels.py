"""How figures are drawn: methods' colours, panels side by side, lines and bars, one legend."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from .records import Result

if TYPE_CHECKING:  # slow, so imported where a figure is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A method looks the same in all figures: it is found by its trainer's place here; variants follow.
TRAINERS = (
    "P2C MaPLe MaPLe_ATP PromptSRC CoOp CoCoOp KgCoOp ProGrad TCP MultiModalAdapter CoOp_ATP "
    "CoCoOp_ATP ZeroshotCLIP ZeroshotCLIP2"
).split()
# told apart by all eyes
COLOURS = "#D55E00 #0072B2 #009E73 #CC79A7 #E69F00 #56B4E9 #000000".split()
MARKERS = "osD^vPX"
LINES = ("-", "--", ":")
DPI = 200
HEIGHT = 1.7  # inches, of a panel without what is written around it
PAGE = 5.5  # inches, of a page's text
# A serif font that comes with matplotlib, so figures are the same everywhere. Text in a PDF is
# text; equal SVGs are equal bytes; a $ in a name is a $.
STYLE = {"font.family": ["STIXGeneral"], "font.size": 9, "pdf.fonttype": 42}
STYLE |= {"svg.hashsalt": "p2c", "text.parse_math": False}

Look = dict[str, dict[str, str]]  # method -> color, marker, linestyle


def styles(methods: Mapping[str, str]) -> Look:
    """Colour, marker and line of each method, given {method: trainer}; no two are the same."""
    known = {trainer: place for place, trainer in enumerate(TRAINERS)}
    used = {known.get(trainer) for trainer in methods.values()}
    free = (place for place in count() if place not in used)
    taken: dict[int, str] = {}
    for method, trainer in sorted(methods.items()):
        place = known.get(trainer)
        taken[next(free) if place is None or place in taken else place] = method
    n = len(COLOURS)
    return {
        method: {
            "color": COLOURS[i % n],
            "marker": MARKERS[(i + i // n) % n],
            "linestyle": LINES[i // n % len(LINES)],
        }
        for i, method in sorted(taken.items())
    }


def styles_of(names: Mapping[Result, str]) -> Look:
    """The same for results and the names of their methods."""
    return styles({name: r.trainer for r, name in names.items()})


def panels(
    titles: Sequence[str], x: str, y: str, width: float = 2.6, most: int = 4
) -> tuple["Figure", list["Axes"]]:
    """A figure with a panel for each title, `most` in a row; to be ended by `legend`."""
    from matplotlib.figure import Figure  # not pyplot, so no window and no state

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
    """One legend for all panels, below them; its title says what lines and bands are.

    The figure gets the width that takes, and the height that gives all panels theirs.
    """
    shown = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        shown |= zip(labels, handles, strict=True)
    if len(shown) > 6:
        figure.set_figwidth(max(6.4, figure.get_figwidth()))
    place = {"loc": "outside lower center", "frameon": False, "handlelength": 3}
    place |= {"fontsize": "small", "title_fontsize": "small"}
    one_column = figure.legend(shown.values(), shown.keys(), **place)
    width = one_column.get_window_extent().width
    one_column.remove()
    rows = -(-len(shown) // max(1, int(figure.bbox.width / width)))
    columns = -(-len(shown) // rows)
    made = figure.legend(shown.values(), shown.keys(), title=title, ncols=columns, **place)
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
    """The mean of rows (one for each seed) and a band of their population std.

    Shorter rows count as far as they go.
    """
    table = np.full((len(rows), len(x)), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    known = ~np.isnan(table).all(axis=0)
    x, table = np.asarray(x)[known], table[:, known]
    mean, std = np.nanmean(table, axis=0), np.nanstd(table, axis=0)
    style = {"linewidth": 1.5, "markersize": 4, "markevery": max(1, len(x) // 10), **style}
    ax.plot(x, mean, label=label, **style)
    if len(rows) > 1:
        band(ax, x, mean, std, style["color"])


def band(ax: "Axes", x: np.ndarray, mean: np.ndarray, std: np.ndarray, colour: str) -> None:
    """Mean ± std, behind a line."""
    ax.fill_between(x, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)


def wide(look: Sized, names: Sized) -> float:
    """Inches for a mark of each method for each name."""
    return min(12.0, 2.4 + 0.2 * len(look) * len(names))


def groups(
    ax: "Axes",
    names: Sequence[str],
    values: Mapping[tuple[str, str], Sequence[float]],
    look: Look,
    bars: bool,
) -> None:
    """For each name a mark for each method, of {(name, method): a value for each seed}.

    The marks are bars from 0 or means; the seeds are points.
    """
    step = 0.8 / len(look)
    colours = []
    for k, (method, style) in enumerate(look.items()):
        colour = style["color"]
        there = [(i, values[n, method]) for i, n in enumerate(names) if values.get((n, method))]
        at = [i - 0.4 + (k + 0.5) * step for i, _ in there]
        means = [np.mean(seeds) for _, seeds in there]
        if bars:
            look_of = {"color": colour, "edgecolor": "white", "hatch": "//" * (colour in colours)}
            ax.bar(at, means, step * 0.9, label=method, **look_of)
        else:
            ax.plot(at, means, style["marker"], color=colour, markersize=6, label=method)
        colours.append(colour)
        several = [(x, seeds) for x, (_, seeds) in zip(at, there, strict=True) if len(seeds) > 1]
        xs = [x for x, seeds in several for _ in seeds]
        ys = [value for _, seeds in several for value in seeds]
        ax.plot(xs, ys, ".", color="0.25" if bars else colour, markersize=3)
    too_long = 0.085 * max(map(len, names)) > (wide(look, names) - 0.8) / len(names)  # inches
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if too_long else {}
    ax.set_xticks(range(len(names)), names, **slanted)
    ax.set_xlim(-0.6, len(names) - 0.4)
