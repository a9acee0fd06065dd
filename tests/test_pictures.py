"""inference/pictures.py: what its pictures show, found in their pixels."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import ndimage

from inference import pictures
from inference.predictions import Prediction

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


@pytest.fixture
def said(tmp_path) -> list[Prediction]:
    """Of five images: of the second and the last another colour than theirs, of the last surer."""
    shares = [("red", 0.5), ("red", 0.6), ("blue", 0.7), ("blue", 0.8), ("green", 0.9)]
    truths = ["red", "green", "blue", "blue", "red"]
    found = []
    for i, ((name, share), truth) in enumerate(zip(shares, truths, strict=True)):
        file = tmp_path / f"{i}.png"
        Image.new("RGB", (60, 30), COLOURS[truth]).save(file)
        rest = [(other, (1 - share) / 2) for other in COLOURS if other != name]
        found.append(Prediction(str(file), [(name, share), *rest], truth))
    return found


def boxes(file: Path, colour: str | tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of the areas of a colour, by rows of the sheet."""
    if isinstance(colour, str):
        colour = tuple(round(255 * c) for c in to_rgb(colour))
    with Image.open(file) as image:
        mask = (np.asarray(image) == colour).all(axis=2)
    found = ndimage.find_objects(ndimage.label(mask)[0])
    areas = [(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in found]
    return sorted((a for a in areas if a[2] * a[3] > 300), key=lambda a: (a[1], a[0]))


def frames(file: Path) -> list[tuple[int, int, int, int]]:
    """Those of the frames around images."""
    return [box for box in boxes(file, pictures.WRONG[0]) if box[3] > 200]


def test_the_pictures(said, tmp_path):
    file = tmp_path / "x.png"
    lines = list(pictures.draw(said, "P2C", file, 40))
    assert lines == [
        f"{file}: 5 images",
        f"{tmp_path}/x-mistakes.png: 2 mistakes among 5 images, the surest first",
        f"{tmp_path}/x-confusion.png: the confusion matrix",
    ]
    (first, last), (green,), blue = (boxes(file, colour) for colour in COLOURS.values())
    assert len(blue) == 2 and first[0] < green[0] < blue[0][0] < blue[1][0] < last[0]
    assert {box[1] for box in (first, last, green, *blue)} == {first[1]}
    assert all(box[2] == 2 * box[3] for box in (first, last, green, *blue))  # not distorted
    around = frames(file)
    assert len(around) == 2
    for frame, image in zip(around, (green, last), strict=True):
        assert frame[0] < image[0] and image[0] + image[2] < frame[0] + frame[2]

    mistakes = tmp_path / "x-mistakes.png"
    assert len(frames(mistakes)) == 2 and not boxes(mistakes, COLOURS["blue"])
    assert boxes(mistakes, COLOURS["red"])[0][0] < boxes(mistakes, COLOURS["green"])[0][0]
    with Image.open(tmp_path / "x-confusion.png") as image:
        assert min(image.size) > 300


def test_bars_are_as_long_as_the_probability(said, tmp_path):
    unknown = [p._replace(truth=None) for p in said[:1]]
    assert len(list(pictures.draw(unknown, "P2C", tmp_path / "x.png", 40))) == 1
    assert not (tmp_path / "x-mistakes.png").exists() and not frames(tmp_path / "x.png")
    image = boxes(tmp_path / "x.png", COLOURS["red"])[0]
    bars = boxes(tmp_path / "x.png", pictures.PLAIN[1])
    assert [bar[0] for bar in bars] == [image[0]] * 3
    assert [bar[2] / image[2] for bar in bars] == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    list(pictures.draw(said[:2], "P2C", tmp_path / "y.png", 40))
    assert [b[2] / image[2] for b in boxes(tmp_path / "y.png", pictures.WRONG[1])] == [0.6]


def test_as_many_as_wanted(said, tmp_path):
    file = tmp_path / "x.png"
    lines = list(pictures.draw(said, "P2C", file, 1))
    assert lines[0] == f"{file}: the first 1 of 5 images"
    assert lines[1].endswith("the first 1 of 2 mistakes among 5 images, the surest first")
    assert len(boxes(file, COLOURS["red"])) == 1 and not boxes(file, COLOURS["blue"])
    list(pictures.draw(said * 5, "P2C", file, 40))  # several rows
    assert len({box[1] for box in frames(file)}) == 5 and len(frames(file)) == 10


def test_no_mistakes(said, tmp_path):
    lines = list(pictures.draw(said[2:4], "P2C", tmp_path / "x.png", 40))
    assert lines[1] == f"{tmp_path}/x-mistakes.png: 0 mistakes among 2 images"
    with Image.open(tmp_path / "x-mistakes.png") as image:
        assert image.height < 100


def test_the_confusion_matrix(said):
    """Rows are true, columns predicted; a class that is only predicted has both."""
    cases = [*said, said[0]._replace(classes=[("never $seen$", 1.0)])]
    axes = pictures.confusion(cases, "P2C").axes[0]
    names = ["blue", "green", "never $seen$", "red"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    assert [tick.get_text() for tick in axes.get_xticklabels()] == names
    cells = {(text.get_position()[1], text.get_position()[0]): text for text in axes.texts}
    counts = {
        (names[row], names[column]): int(text.get_text()) for (row, column), text in cells.items()
    }
    assert counts == {
        ("blue", "blue"): 2, ("green", "red"): 1, ("red", "green"): 1, ("red", "red"): 1,
        ("red", "never $seen$"): 1,
    }  # fmt: skip
    shares = np.array(axes.images[0].get_array())
    assert shares[3] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3]) and not shares[2].any()


def test_long_names_are_cut():
    for name in ("x" * 300, "a name of many words " * 9, "青" * 100):
        cut = pictures.fitted(name, 100)
        assert cut.endswith("…") and name.startswith(cut[:-1]) and len(cut) > 3
        assert pictures.font(pictures.TEXT).getlength(cut) <= 100
    assert pictures.fitted("cat", 100) == "cat" and pictures.fitted("a\nb", 100) == "a\\nb"


def test_many_classes_fit(said):
    """A thousand: the figure does not grow without end."""
    many = [said[0]._replace(truth=f"class {i}", classes=[("x", 1.0)]) for i in range(1000)]
    assert max(pictures.confusion(many, "P2C").get_size_inches()) < 50
