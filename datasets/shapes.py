"""The bundled benchmarks: drawn images of "striped red hexagons", made on first use.

`Shapes` is the base-to-new task and the source of cross-dataset runs; `ShapesBackground` and
`ShapesCount` have other class names; `ShapesBlur`, `ShapesNight` and `ShapesSketch` are its
classes under a shift. All look different from the plain images that the small
CLIP was trained on (scripts/tiny_clip). See docs/SHAPES.md.
"""

import re
import shutil
import zlib
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import Failure, write_json
from dassl.utils.lock import locked

from .benchmark import SPLITS, Benchmark, Splits, to_lists
from .own_images import ASIDE
from .shapes_render import COLORS, COUNTS, GRAY, PATTERNS, SHAPES, Style, render

COLOR_NAMES = tuple(COLORS)
SIZE = 64
NUMBERED = re.compile(r"\d{4}\.png")
# Faded, warm light from one side on an untidy ground, smaller objects: the same for all
# images, so it can be learned.
LOOK = {"size": (0.4, 0.75), "gray": 0.4, "cast": (1.0, 0.82, 0.6), "fade": (0.2, 0.4)}
LOOK |= {"shade": 0.3, "clutter": 0.12, "noise": 0.04}
Scene = dict[str, int]


def scene(
    pattern: str, color: str, shape: str, background: str | None = None, count: int = 1
) -> Scene:
    """The attributes that `render` takes."""
    return {
        "pattern": PATTERNS.index(pattern),
        "color": COLOR_NAMES.index(color),
        "shape": SHAPES.index(shape),
        "background": GRAY if background is None else COLOR_NAMES.index(background),
        "count": count,
    }


# What a class may be, drawn at random: its name, the two attributes besides the colour, its scene.
Choice = tuple[str, tuple, Scene]


def halves(
    seed: int, choose: Callable[[np.random.RandomState, int, str], Choice]
) -> dict[str, Scene]:
    """16 base and 16 new classes: in each half every colour stands twice, and nothing else alone.

    Args:
        choose: gives a class of the half (0 or 1) with that colour.
    """
    rng = np.random.RandomState(seed)
    classes = {}
    for half in (0, 1):
        taken: set[tuple] = set()
        while len(taken) < 16:
            name, pair, attributes = choose(rng, half, COLOR_NAMES[len(taken) // 2])
            # The same pair twice would leave only the colour; a hollow ring is drawn like a ring.
            if pair in taken or name in classes or is_hollow_ring(attributes):
                continue
            taken.add(pair)
            classes[name] = attributes
    return classes


def is_hollow_ring(attributes: Scene) -> bool:
    """Whether the objects are rings with the pattern `hollow`."""
    return (PATTERNS[attributes["pattern"]], SHAPES[attributes["shape"]]) == ("hollow", "ring")


def pick(rng: np.random.RandomState, words: Sequence[str]) -> str:
    """One of them."""
    return words[rng.randint(len(words))]


def patterned(
    rng: np.random.RandomState, half: int, color: str, shapes: Sequence[str] = SHAPES
) -> Choice:
    """As "striped red hexagon"."""
    pattern, shape = pick(rng, PATTERNS), pick(rng, shapes)
    return f"{pattern} {color} {shape}", (pattern, shape), scene(pattern, color, shape)


def combinations() -> dict[str, Scene]:
    """The classes of Shapes, and of its shifts."""
    return halves(7, patterned)


def backgrounds() -> dict[str, Scene]:
    """24 classes: four colours, three shapes and two grounds, all combinations."""
    return {
        f"{color} {shape} on {ground} background": scene("solid", color, shape, ground)
        for color in ("red", "green", "purple", "pink")
        for shape in ("circle", "hexagon", "diamond")
        for ground in ("orange", "cyan")
    }


def counts() -> dict[str, Scene]:
    """18 classes: two, three or four equal objects."""
    colors = ("red", "green", "blue", "yellow", "purple", "cyan")
    return {
        f"{COUNTS[n - 1]} {color} {shape}s": scene("solid", color, shape, count=n)
        for color, shape in zip(colors, SHAPES, strict=False)
        for n in (2, 3, 4)
    }


class DrawnBenchmark(Benchmark):
    """Draws its images into the data folder if they are not there."""

    image_dir = "images"
    classes = staticmethod(combinations)
    style = Style(**LOOK)
    parts = {"train": 40, "val": 8, "test": 50}  # images of each class
    restore = "remove the folder of the dataset, and the next run draws it"

    def prepare(self) -> None:
        if self.split_file.exists():
            return
        with locked(self.folder.with_name(f".{self.folder.name}")):
            if self.split_file.exists():  # another run has drawn them while this one waited
                return
            try:
                self.draw()
            except OSError as error:
                why = error.strerror or error
                line = f"Cannot draw {type(self).__name__} into {self.images}: {why}"
                remedy = "Free some space, or give a folder you can write to (--root)"
                raise Failure(f"{line}. {remedy}") from error

    def draw(self) -> None:
        """Writes all images and, last, the split file, which says that all are there."""
        self.refuse_strangers()
        shutil.rmtree(self.images, ignore_errors=True)
        splits: Splits = ([], [], [])
        name, total = type(self).__name__, sum(self.parts.values())
        classes = tqdm(self.classes().items(), desc=f"Drawing {name}", disable=None)
        for label, (classname, attributes) in enumerate(classes):
            folder = self.images / classname.replace(" ", "_")
            folder.mkdir(parents=True)
            # A seed of its own: a class can be added without changing others.
            rng = np.random.RandomState(zlib.crc32(f"{name}/{classname}".encode()))
            arrays = {key: np.full(total, value) for key, value in attributes.items()}
            images = render(rng, **arrays, size=SIZE, style=self.style)
            numbered = enumerate(images)
            for split, n in zip(splits, self.parts.values(), strict=True):
                for i, image in islice(numbered, n):
                    path = save_png(folder / f"{i:04d}.png", image)
                    split.append(Datum(str(path), label, classname=classname))
        write_json(to_lists(SPLITS, splits, self.images), str(self.split_file))

    def refuse_strangers(self) -> None:
        """Raises Failure if what is to be drawn over is not of an earlier drawing."""
        ours = {name.replace(" ", "_") for name in self.classes()}
        for path in sorted(self.images.glob("[!.]*")) + sorted(self.images.glob("*/[!.]*")):
            drawn = path.name in ours or path.parent.name in ours and NUMBERED.fullmatch(path.name)
            if not drawn and path.name not in ASIDE:
                line = f"{path} is none of the images that are drawn there"
                raise Failure(f"{line}: move it elsewhere, or give another folder (--root)")


def save_png(path: Path, image: np.ndarray) -> Path:
    """Writes (H, W, 3) uint8; returns the path."""
    Image.fromarray(image).save(path, compress_level=1)
    return path


@DATASET_REGISTRY.register()
class Shapes(DrawnBenchmark):
    dataset_dir = "shapes"


@DATASET_REGISTRY.register()
class ShapesBackground(DrawnBenchmark):
    dataset_dir = "shapes_background"
    classes = staticmethod(backgrounds)


@DATASET_REGISTRY.register()
class ShapesCount(DrawnBenchmark):
    dataset_dir = "shapes_count"
    classes = staticmethod(counts)


class ShiftedShapes(DrawnBenchmark):
    """Test only: there is little for training and validation, and class names come from it."""

    parts = {"train": 1, "val": 1, "test": 50}


@DATASET_REGISTRY.register()
class ShapesBlur(ShiftedShapes):
    dataset_dir = "shapes_blur"
    style = Style(**LOOK | {"blur": 0.03})


@DATASET_REGISTRY.register()
class ShapesNight(ShiftedShapes):
    dataset_dir = "shapes_night"
    style = Style(**LOOK | {"cast": (0.5, 0.55, 0.75), "fade": (0.1, 0.2), "noise": 0.06})


@DATASET_REGISTRY.register()
class ShapesSketch(ShiftedShapes):
    dataset_dir = "shapes_sketch"
    style = Style(**LOOK | {"drawing": True})
