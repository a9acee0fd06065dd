"""Pictures of predictions: sheets of images with their best classes, and the confusion matrix."""

import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dassl.commands import plain
from dassl.utils import atomic_write, read_image

from .predictions import Prediction

if TYPE_CHECKING:  # slow, so imported where the matrix is drawn
    from matplotlib.figure import Figure

EDGE, GAP, MARGIN = 240, 26, 28  # pixels: of an image, between images, around all
LINE, TEXT, TITLE = 24, 14, 20  # pixels: a line's height, sizes of letters
COLUMNS = 5
BEST = 3  # classes under an image
INK, GREY = "#222222", "#6b6b6b"
# Of the letters and of the bar behind them. Right and wrong are told apart by all eyes.
PLAIN, RIGHT, WRONG = (INK, "#d5e3f0"), ("#006b4e", "#aee0cf"), ("#a84300", "#f7cdb0")


def draw(predictions: Sequence[Prediction], about: str, file: Path, limit: int) -> Iterator[str]:
    """Writes the pictures, and says in a line what each is.

    Args:
        predictions: one or more. Where their true classes are known, FILE-mistakes.png and
            FILE-confusion.png are drawn too.
        about: what all titles begin with.
        limit: as many images are on a sheet at most.

    Raises: Failure if a file cannot be written, or an image not be read any more.
    """
    shown = count(limit, predictions, "image")
    save(sheet(predictions[:limit], f"{about}: {shown}"), file)
    yield f"{file}: {shown}"
    if predictions[0].truth is None:
        return
    wrong = sorted((p for p in predictions if not p.right), key=lambda p: -p.classes[0][1])
    shown = f"{count(limit, wrong, 'mistake')} among {len(predictions):,} images"
    shown += ", the surest first" * (len(wrong) > 1)
    mistakes, matrix = (file.with_name(f"{file.stem}-{x}.png") for x in ("mistakes", "confusion"))
    save(sheet(wrong[:limit], f"{about}: {shown}"), mistakes)
    yield f"{mistakes}: {shown}"
    with atomic_write(str(matrix)) as out:
        confusion(predictions, about).savefig(out, format="png")
    yield f"{matrix}: the confusion matrix"


def count(limit: int, items: Sequence, what: str) -> str:
    """How many are shown of how many."""
    all_of_them = f"{len(items):,} {what}{'s' * (len(items) != 1)}"
    return all_of_them if len(items) <= limit else f"the first {limit:,} of {all_of_them}"


def save(picture: Image.Image, file: Path) -> None:
    """As PNG. Raises: CannotWrite."""
    with atomic_write(str(file)) as out:
        picture.save(out, "PNG")


# A sheet


@cache
def font(size: int, weight: str = "") -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the letters of many languages."""
    import matplotlib

    name = f"DejaVuSans{weight}.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)


def fitted(text: str, width: float, size: int = TEXT, weight: str = "") -> str:
    """The text, or as much of its beginning as `width` pixels hold and an ellipsis."""
    text = plain(text)
    if font(size, weight).getlength(text) <= width:
        return text
    while text and font(size, weight).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def sheet(predictions: Sequence[Prediction], title: str) -> Image.Image:
    """The images in rows, each with its best classes; without predictions only the title."""
    lines = 1 + max((len(p.classes[:BEST]) for p in predictions), default=0)
    lines += bool(predictions) and predictions[0].truth is not None
    height = EDGE + lines * LINE
    rows = -(-len(predictions) // COLUMNS)
    columns = COLUMNS if rows != 1 else max(3, len(predictions))
    width = 2 * MARGIN + columns * (EDGE + GAP) - GAP
    above = 2 * MARGIN + TITLE // 2
    size = width, above + rows * (height + GAP)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    text = fitted(title, width - 2 * MARGIN, TITLE, "-Bold")
    pen.text((MARGIN, MARGIN), text, INK, font(TITLE, "-Bold"), "lm")
    for place, prediction in enumerate(predictions):
        row, column = divmod(place, COLUMNS)
        left, top = MARGIN + column * (EDGE + GAP), above + row * (height + GAP)
        add(picture, pen, prediction, left, top)
    return picture


def add(
    picture: Image.Image, pen: ImageDraw.ImageDraw, prediction: Prediction, left: int, top: int
) -> None:
    """An image, its file's name, its true class if that is known, its best classes."""
    small = ImageOps.contain(read_image(prediction.image), (EDGE, EDGE), Image.Resampling.LANCZOS)
    picture.paste(small, (left + (EDGE - small.width) // 2, top + (EDGE - small.height) // 2))
    known = prediction.truth is not None
    if known and not prediction.right:
        pen.rectangle((left - 5, top - 5, left + EDGE + 4, top + EDGE + 4), None, WRONG[0], 5)

    def write(line: int, text: str, ink: str, at: int = 0, room: float = EDGE) -> None:
        middle = top + EDGE + line * LINE + LINE // 2 + 4
        pen.text((left + at, middle), fitted(text, room), ink, font(TEXT), "lm")

    write(0, Path(prediction.image).name, GREY)
    if known:
        said = "✓ right" if prediction.right else f"✗ true: {prediction.truth}"
        write(1, said, (RIGHT if prediction.right else WRONG)[0])
    for place, (name, share) in enumerate(prediction.classes[:BEST]):
        look = PLAIN
        if known and (name == prediction.truth or not place):
            look = RIGHT if name == prediction.truth else WRONG
        line = 1 + known + place
        y = top + EDGE + line * LINE + 5
        pen.rectangle((left, y, left + max(1, round(EDGE * share)) - 1, y + LINE - 4), look[1])
        percent = f"{share:.1%}"
        room = EDGE - font(TEXT).getlength(percent)
        write(line, percent, look[0], at=round(room) - 4)
        write(line, name, look[0], at=5, room=room - 16)


# The confusion matrix


def confusion(predictions: Sequence[Prediction], about: str) -> "Figure":
    """A row for each true class, a column for each predicted one: how many images, and as blue
    which share of the row. Classes that neither occur nor are predicted are left out."""
    from matplotlib.figure import Figure

    pairs = [(p.truth, p.classes[0][0]) for p in predictions]
    names = sorted({name for pair in pairs for name in pair})
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), int)
    for true, predicted in pairs:
        counts[place[true], place[predicted]] += 1
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)

    side = 3.5 + 0.32 * min(len(names), 120)  # inches; more classes than that are drawn smaller
    letters = 9 * min(1, 120 / len(names))
    figure = Figure((side, side), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    marks = [textwrap.shorten(plain(name), 40, placeholder="…") for name in names]
    style = {"fontsize": letters, "parse_math": False}
    axes.set_xticks(range(len(names)), marks, rotation=90, **style)
    axes.set_yticks(range(len(names)), marks, **style)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right = sum(p.right for p in predictions)
    figure.suptitle(
        f"{about}\n{right:,} of {len(predictions):,} images are right", fontsize=max(11, side)
    )
    for row, column in np.argwhere(counts):
        ink = "white" if shares[row, column] > 0.5 else WRONG[0] if row != column else INK
        here = {"ha": "center", "va": "center", "color": ink, "fontsize": letters}
        axes.text(column, row, counts[row, column], **here)
    return figure
