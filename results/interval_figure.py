"""A figure of intervals: for each row a mean, the interval around it, and what they are made of."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .marks import side_by_side
from .panels import COLOURS, DPI, PAGE, STYLE, cover

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.3  # inches
AROUND = 0.55  # inches, of the axis and its label
CIRCLE = 0.01  # of all values' range: how far apart the circles of equal ones are drawn


class IntervalRow(NamedTuple):
    """A mean with its interval, and the single values (of tasks or seeds) it is the mean of."""

    label: str
    mean: float
    low: float
    high: float
    points: Sequence[float] = ()


def draw_intervals(
    rows: Sequence[IntervalRow], xlabel: str, zero: float | None = 0.0, width: float = PAGE
) -> "Figure":
    """The rows from the top, with a vertical line at `zero` unless it is None.

    `width` is in inches; the height is that of the rows. Raises ValueError if there are none.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("no rows to draw")
    with matplotlib.rc_context(STYLE):
        size = width, AROUND + ROW * len(rows)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        ax = figure.subplots()
        if zero is not None:
            ax.axvline(zero, color="0.5", linewidth=0.8, zorder=1)
        colour = {"color": COLOURS[1]}
        ends = [x for row in rows for x in (row.low, row.high, *row.points)]
        step = CIRCLE * (max(ends) - min(ends))
        for y, row in enumerate(rows):
            if len(row.points):  # below the interval, which would hide them
                open_dots = {"markersize": 3, "markerfacecolor": "none", "markeredgewidth": 0.6}
                x = [
                    p
                    for at, n in Counter(row.points).items()
                    for p in side_by_side(at, n, step * (n - 1))
                ]
                ax.plot(x, [y + 0.25] * len(x), "o", color="0.4", **open_dots)
            ax.plot([row.low, row.high], [y, y], linewidth=1.8, solid_capstyle="butt", **colour)
            ax.plot([row.mean], [y], "o", markersize=4.5, **colour)
        ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
        ax.set_yticks(range(len(rows)), [row.label for row in rows])
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.grid(axis="x", color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)
        cover(figure, [])
        figure.draw_without_rendering()  # makes the ticks while STYLE holds
    return figure
