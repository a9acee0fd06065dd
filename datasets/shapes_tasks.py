"""Four more drawn tasks by the rules of `Shapes`: 16 base and 16 new classes, another look.

With `Shapes` they are the bundled benchmark's five tasks. They were frozen before any method ran on
them; see docs/SHAPES.md.
"""

from functools import partial

import numpy as np

from dassl.data.datasets import DATASET_REGISTRY

from .shapes import COLOR_NAMES, Choice, DrawnBenchmark, halves, patterned, pick, scene
from .shapes_render import COUNTS, PATTERNS, SHAPES, Style

OTHER_SHAPES = (
    ("circle", "triangle", "hexagon", "cross", "ring"),
    ("square", "pentagon", "star", "crescent", "diamond"),
)


def with_other_shapes(rng: np.random.RandomState, half: int, color: str) -> Choice:
    """As "striped red hexagon": the new classes have shapes that the base classes have not."""
    return patterned(rng, half, color, OTHER_SHAPES[half])


def on_ground(rng: np.random.RandomState, half: int, color: str) -> Choice:
    """As "red circle on cyan background"."""
    shape, ground = pick(rng, SHAPES), pick(rng, [c for c in COLOR_NAMES if c != color])
    name = f"{color} {shape} on {ground} background"
    return name, (shape, ground), scene("solid", color, shape, ground)


def several(rng: np.random.RandomState, half: int, color: str) -> Choice:
    """As "three striped blue triangles"."""
    count, pattern, shape = rng.randint(2, 5), pick(rng, PATTERNS), pick(rng, SHAPES)
    plural = "crosses" if shape == "cross" else f"{shape}s"
    name = f"{COUNTS[count - 1]} {pattern} {color} {plural}"
    return name, (count, shape), scene(pattern, color, shape, count=count)


@DATASET_REGISTRY.register()
class ShapesFog(DrawnBenchmark):
    """Pale, bluish and a little out of focus."""

    dataset_dir = "shapes_fog"
    classes = staticmethod(partial(halves, 11, patterned))
    style = Style(
        size=(0.4, 0.75),
        gray=0.3,
        cast=(0.82, 0.93, 1.1),
        fade=(0.45, 0.65),
        clutter=0.1,
        blur=0.015,
    )


@DATASET_REGISTRY.register()
class ShapesDusk(DrawnBenchmark):
    """Purple light, strong from one side, on tilted objects."""

    dataset_dir = "shapes_dusk"
    classes = staticmethod(partial(halves, 13, with_other_shapes))
    style = Style(
        size=(0.45, 0.8),
        rotation=45,
        gray=0.3,
        cast=(0.9, 0.6, 0.85),
        fade=(0.1, 0.3),
        shade=0.5,
        clutter=0.1,
        noise=0.05,
    )


@DATASET_REGISTRY.register()
class ShapesGarden(DrawnBenchmark):
    """Green light on small objects on coloured grounds."""

    dataset_dir = "shapes_garden"
    classes = staticmethod(partial(halves, 17, on_ground))
    style = Style(
        size=(0.35, 0.65),
        gray=0.4,
        cast=(0.75, 1.0, 0.65),
        fade=(0.2, 0.4),
        shade=0.4,
        clutter=0.18,
        blur=0.015,
        noise=0.05,
    )


@DATASET_REGISTRY.register()
class ShapesCrowd(DrawnBenchmark):
    """Several tilted objects in a warm, uneven light."""

    dataset_dir = "shapes_crowd"
    classes = staticmethod(partial(halves, 19, several))
    style = Style(
        size=(0.5, 0.85),
        rotation=40,
        gray=0.45,
        cast=(1.0, 0.85, 0.7),
        fade=(0.3, 0.5),
        shade=0.4,
        clutter=0.12,
        blur=0.01,
        noise=0.05,
    )
