"""How figures are drawn: methods' colours, panels side by side, one legend, the page's size."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .fonts import families_for
from .names import fold
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
DPI = 300
# inches
COLUMN, PAGE, WIDE = 3.25, 5.5, 6.875  # of text: a column's, a page's, of both columns
NARROW = 1.5  # a panel that is still to be read
HEIGHT, LOW = 1.5, 0.6  # of a panel without what is written around it; the least
# A serif font that comes with matplotlib, so figures are the same everywhere. Text in a PDF is
# text; equal SVGs are equal bytes; a $ in a name is a $.
STYLE = {"font.family": ["STIXGeneral"], "font.size": 9, "pdf.fonttype": 42}
STYLE |= {"xtick.labelsize": "small", "ytick.labelsize": "small"}
STYLE |= {"svg.hashsalt": "p2c", "text.parse_math": False}

Look = dict[str, dict[str, str]]  # method -> color, marker, linestyle


class Page(NamedTuple):
    """What a figure is made for."""

    width: float | None = None  # inches; None: what its panels and names take
    height: float | None = None
    font: str | None = None  # its family
    caveats: bool = True  # what the figure would mislead without is written into it

    @property
    def style(self) -> dict[str, Any]:
        """Matplotlib's settings."""
        return STYLE | {"font.family": [*filter(None, [self.font]), *STYLE["font.family"]]}


class TooSmall(ValueError):
    """The page has no room for the figure; the text says how much it takes."""


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
    titles: Sequence[str], x: str, y: str, page: Page, width: float = PAGE / 3, most: int = 3
) -> tuple["Figure", list["Axes"]]:
    """A figure with a panel for each title, `most` in a row; to be ended by `finish`.

    Args:
        width: of a panel in inches, where the page has none.
    """
    from matplotlib.figure import Figure  # not pyplot, so no window and no state

    columns = min(most, len(titles))
    if page.width:
        columns = min(columns, max(1, int(page.width / NARROW)))
    rows = -(-len(titles) // columns)
    whole = page.width or max(COLUMN, width * columns)
    figure = Figure(figsize=(whole, 6.0 * rows), dpi=DPI, layout="constrained")
    letters = int(15 * whole / columns)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[len(titles) :]:
        ax.remove()
    for i, (ax, title) in enumerate(zip(axes, titles, strict=False)):
        ax.set_title(textwrap.fill(title, letters), fontsize="medium", linespacing=1.0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)
        if i + columns >= len(titles):
            ax.set_xlabel(textwrap.fill(x, letters), linespacing=1.0)
        ax.set_ylabel(y if i % columns == 0 else "")
    return figure, axes[: len(titles)]


def same_range(axes: Sequence["Axes"], unless_flat: bool = False) -> bool:
    """Give all panels the y range that holds what is in any; only the first of a row says it.

    With `unless_flat` each keeps its own where one would have less than a fifth of it: False.
    """
    limits = np.array([ax.get_ylim() for ax in axes])
    low, high = limits[:, 0].min(), limits[:, 1].max()
    if unless_flat and np.ptp(limits, axis=1).min() < (high - low) / 5:
        return False
    for ax in axes:
        ax.set_ylim(low, high)
        if not ax.get_subplotspec().is_first_col():
            ax.tick_params(axis="y", labelleft=False, length=0)
    return True


def finish(
    figure: "Figure", axes: Iterable["Axes"], note: str, page: Page, caveat: str = ""
) -> None:
    """One legend for all panels, below them, and fonts for all that is written.

    The figure gets the width that takes, and the height that gives all panels theirs, or the
    page's; its label is what a caption says of it. Raises TooSmall.
    """
    shown = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        shown |= zip(labels, handles, strict=True)
    title = caveat if page.caveats else ""
    family = cover(figure, [*shown, title])
    size = legend(figure, shown, title, family, page)
    figure.set_label(f"{note} {caveat}".strip())
    figure.set_size_inches(
        page.width or max(figure.get_figwidth(), size[0]), figure.get_figheight() + size[1]
    )
    figure.draw_without_rendering()
    ax = figure.axes[0]
    rows = ax.get_gridspec().nrows
    around = figure.get_figheight() - rows * ax.get_window_extent().height / figure.dpi
    least = around + rows * LOW
    if page.height and page.height < least:
        raise TooSmall(
            f"--height {page.height:g}: too low for this figure, which takes {least + 0.05:.1f}"
        )
    figure.set_figheight(page.height or around + rows * HEIGHT)


def cover(figure: "Figure", more: Iterable[str]) -> list[str]:
    """Give the figure's texts fonts that have their letters, and those of `more`; returns them."""
    import matplotlib
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    usual = matplotlib.rcParams["font.family"]
    families = families_for([*(text.get_text() for text in texts), *more], usual)
    for text in texts if families != usual else ():
        text.set_fontfamily(families)
    return families


def legend(
    figure: "Figure", shown: Mapping[str, Any], title: str, family: list[str], page: Page
) -> np.ndarray:
    """Draw it in as many columns as there is room for; its width and height in inches."""
    small = {"family": family, "size": "small"}
    place = {"loc": "outside lower center", "frameon": False, "handlelength": 2.2}
    place |= {"prop": small, "title_fontproperties": small}
    room = page.width or max(figure.get_figwidth(), PAGE if len(shown) > 6 else 0)
    widest = page.width or WIDE
    one_column = figure.legend(shown.values(), shown.keys(), **place)
    width = one_column.get_window_extent().width / figure.dpi
    one_column.remove()
    names = list(shown)
    if width > widest:  # the line before a name takes some of it
        most = max(8, int(max(map(len, names)) * (widest - 0.5) / (width - 0.4)))
        names = [fold(name, most) for name in names]
        width = widest
    columns = max(1, int(max(room, width) / width))
    rows = -(-len(names) // columns)
    title = textwrap.fill(title, int(18 * room))
    made = figure.legend(
        shown.values(), names, title=title, ncols=-(-len(names) // max(1, rows)), **place
    )
    # some more than it takes: each file format has its own widths of letters
    size = 1.03 * made.get_window_extent().size / figure.dpi + 0.1
    return np.array([max(room, size[0]), size[1]])
