"""The figure of inference.gap: a panel of features for each method, and two of their gaps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from results.marks import seeds
from results.panels import Page, finish, panels, styles

from .gap_numbers import Picture

if TYPE_CHECKING:  # slow, so imported where a figure is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 30
TEXT = "black"


class Shown(NamedTuple):
    """A method's trainer, by which it is coloured, and what is drawn of it."""

    trainer: str
    picture: Picture


def draw(methods: Mapping[str, Sequence[Shown]], page: Page) -> "Figure":
    """The figure of one dataset's test images, given {method: what is shown of each seed}.

    Raises TooSmall.
    """
    import matplotlib

    look = styles({method: shown[0].trainer for method, shown in methods.items()})
    with matplotlib.rc_context(page.style):
        titles = [*methods, "Size of the gaps", "Direction of the gaps"]
        figure, axes = panels(titles, "", "first principal direction", page)
        for ax in axes:
            ax.title.set_fontsize("small")  # names of methods with their prompts are long
        *of_methods, of_sizes, of_cosines = axes
        for ax, (method, shown) in zip(of_methods, methods.items(), strict=True):
            scatter(ax, shown[0].picture, look[method]["color"])
        same_scale(of_methods)
        for ax, key, x in (
            (of_sizes, "size", "|d|"),
            (of_cosines, "cosine", "cosine to the mean gap"),
        ):
            values = {
                method: [getattr(seed.picture, key).numpy() for seed in shown]
                for method, shown in methods.items()
            }
            histograms(ax, values, look, x)
        finish(figure, axes, note(methods), page)
    return figure


def note(methods: Mapping[str, Sequence[Shown]]) -> str:
    """What a caption says of the figure."""
    text = "Points: the first seed; lines join the means of each class's images and texts."
    n = seeds(methods.values())
    return text if n == "one seed" else f"{text} Histograms: mean over {n}, thin: single seeds."


def scatter(ax: "Axes", picture: Picture, colour: str) -> None:
    """Images, their classes' text features, and a line between the means of each class."""
    image, own, label = picture.image.numpy(), picture.own.numpy(), picture.label.numpy()
    # as pixels in a PDF: there may be many
    dots = {"linestyle": "none", "rasterized": True, "zorder": 1}
    ax.plot(*image.T, marker=".", markersize=2, alpha=0.4, color=colour, **dots)
    for c in np.unique(label):
        ends = np.stack([image[label == c].mean(axis=0), own[label == c].mean(axis=0)])
        ax.plot(*ends.T, color="0.35", linewidth=0.5, zorder=2)
    ax.plot(*own.T, marker="D", markersize=2.5, color=TEXT, **dots | {"zorder": 3})
    about = {"linestyle": "none", "markersize": 4}
    ax.plot([], [], marker="o", color="0.6", label="images, in the method's colour", **about)
    ax.plot([], [], marker="D", color=TEXT, label="their classes' text features", **about)


def same_scale(axes: list["Axes"]) -> None:
    """The same limits for all."""
    limits = np.array([[ax.get_xlim(), ax.get_ylim()] for ax in axes])
    for ax in axes:
        ax.set_xlim(limits[:, 0].min(), limits[:, 0].max())
        ax.set_ylim(limits[:, 1].min(), limits[:, 1].max())
        ax.set_xlabel("along the mean gap")


def histograms(
    ax: "Axes",
    values: Mapping[str, Sequence[np.ndarray]],
    look: Mapping[str, dict[str, str]],
    x: str,
) -> None:
    """A line for each method: the share of images in bins that are the same for all.

    Where there are several seeds it is their mean, and each is a thin one.
    """
    known = {m: [some[~np.isnan(some)] for some in each] for m, each in values.items()}
    every = np.concatenate([some for each in known.values() for some in each])
    low, high = (every.min(), every.max()) if len(every) else (0, 1)
    edges = np.linspace(low, max(high, low + 0.01), BINS + 1)  # all may be equal but for rounding
    for method, each in known.items():
        shares = [100 * np.histogram(some, edges)[0] / max(1, len(some)) for some in each]
        style = {key: look[method][key] for key in ("color", "linestyle")}
        for share in shares if len(shares) > 1 else ():
            ax.stairs(share, edges, linewidth=0.5, alpha=0.45, **style)
        ax.stairs(np.mean(shares, axis=0), edges, label=method, linewidth=1.2, **style)
    ax.set_xlabel(x)
    ax.set_ylabel("images, %")
