"""The bundled benchmark: drawn images of "striped red hexagons", made on first use, and its
relatives.

`Shapes` is the base-to-new task and the source of cross-dataset runs; `ShapesBackground` and
`ShapesCount` have other class names; `ShapesBlur`, `ShapesNight` and `ShapesSketch` are its classes
under a shift (test only). All look different from the plain images that the small CLIP was trained
on (scripts/tiny_clip). See docs/SHAPES.md.
"""

import shutil
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils.errors import Failure
from dassl.utils.lock import locked

from .benchmark import Benchmark, Splits, write_split
from .shapes_render import COLORS, COUNTS, GRAY, PATTERNS, SHAPES, Style, render

COLOR_NAMES = tuple(COLORS)
SIZE = 64
IMAGES = {"train": 40, "val": 8, "test": 50}  # of each class
# Faded, warm light from one side on an untidy ground, smaller objects: the same for all images, so
# it can be learned.
LOOK = {
    "size": (0.4, 0.75),
    "gray": 0.4,
    "cast": (1.0, 0.82, 0.6),
    "fade": (0.2, 0.4),
    "shade": 0.3,
    "clutter": 0.12,
    "noise": 0.04,
}
Scene = dict[str, int]


def scene(
    pattern: str, color: str, shape: str, background: str | None = None, count: int = 1
) -> Scene:
    return {
        "pattern": PATTERNS.index(pattern),
        "color": COLOR_NAMES.index(color),
        "shape": SHAPES.index(shape),
        "background": GRAY if background is None else COLOR_NAMES.index(background),
        "count": count,
    }


def combinations() -> dict[str, Scene]:
    """32 classes, base and new alike in colours, patterns and shapes: in each half every colour
    stands twice."""
    rng = np.random.RandomState(7)
    classes = {}
    for _ in ("base", "new"):
        taken: set[tuple[int, int]] = set()
        while len(taken) < 16:
            color = len(taken) // 2
            pattern, shape = int(rng.randint(len(PATTERNS))), int(rng.randint(len(SHAPES)))
            name = f"{PATTERNS[pattern]} {COLOR_NAMES[color]} {SHAPES[shape]}"
            # A hollow ring is drawn like a ring; a (pattern, shape) twice would leave only the
            # colour.
            if (
                (pattern, shape) in taken
                or name in classes
                or name.startswith("hollow")
                and shape == SHAPES.index("ring")
            ):
                continue
            taken.add((pattern, shape))
            classes[name] = scene(PATTERNS[pattern], COLOR_NAMES[color], SHAPES[shape])
    return classes


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
    return {
        f"{COUNTS[n - 1]} {color} {shape}s": scene("solid", color, shape, count=n)
        for color, shape in zip(
            ("red", "green", "blue", "yellow", "purple", "cyan"), SHAPES, strict=False
        )
        for n in (2, 3, 4)
    }


class DrawnBenchmark(Benchmark):
    """Draws its images into the data folder if they are not there."""

    image_dir = "images"
    classes = staticmethod(combinations)
    style = Style(**LOOK)
    parts = IMAGES

    def prepare(self) -> None:
        if self.split_file.exists():
            return
        with locked(self.folder.with_name(f".{self.folder.name}")):
            if self.split_file.exists():  # another run has drawn them while this one waited
                return
            try:
                self.draw()
            except OSError as error:
                line = f"Cannot draw {type(self).__name__} into {self.images}: {error.strerror or error}"
                raise Failure(
                    f"{line}. Free some space, or give a folder you can write to (--root)"
                ) from error

    def draw(self) -> None:
        """Write all images and, last, the split file; a drawing that was broken off is begun
        anew."""
        shutil.rmtree(self.images, ignore_errors=True)
        splits: Splits = ([], [], [])
        name = type(self).__name__
        for label, (classname, attributes) in enumerate(
            tqdm(self.classes().items(), desc=f"Drawing {name}", disable=None)
        ):
            folder = self.images / classname.replace(" ", "_")
            folder.mkdir(parents=True)
            total = sum(self.parts.values())
            # Each class from a seed of its own name, so that classes can be added without changing
            # the others.
            rng = np.random.RandomState(zlib.crc32(f"{name}/{classname}".encode()))
            images = render(
                rng,
                **{k: np.full(total, v) for k, v in attributes.items()},
                size=SIZE,
                style=self.style,
            )
            paths = [save_png(folder / f"{i:04d}.png", image) for i, image in enumerate(images)]
            start = 0
            for split, n in zip(splits, self.parts.values(), strict=True):
                split += [
                    Datum(str(p), label, classname=classname) for p in paths[start : start + n]
                ]
                start += n
        write_split(self.split_file, splits, self.images)


def save_png(path: Path, image: np.ndarray) -> Path:
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
