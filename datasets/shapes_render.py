"""Draws the bundled benchmark's images: equal objects of one pattern, colour and shape.

All is drawn for a batch of images at once, from a numpy RandomState: its stream is frozen by
numpy's compatibility policy, so a seed gives the same images everywhere.
"""

from dataclasses import dataclass

import numpy as np

# fmt: off
COLORS = {
    "red": (215, 40, 40), "orange": (240, 140, 30), "yellow": (235, 220, 50),
    "green": (50, 165, 60), "cyan": (60, 205, 215), "blue": (45, 75, 205),
    "purple": (130, 55, 170), "pink": (240, 130, 190),
}
# fmt: on
COUNTS = ("one", "two", "three", "four")
GRAY = len(COLORS)  # background index: a random shade of gray instead of a colour
PALETTE = np.array(list(COLORS.values()), dtype=np.float32) / 255


@dataclass(frozen=True)
class Style:
    """How a scene is photographed; by default as the small CLIP's training images."""

    rotation: float = 20.0  # largest tilt of an object, degrees
    size: tuple[float, float] = (0.55, 0.9)  # radius of a single object, half image widths
    noise: float = 0.03  # standard deviation of pixel noise
    fade: tuple[float, float] = (0.0, 0.15)  # how much contrast is taken away
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)  # colour of the light
    gray: float = 0.0  # how much colour is taken away
    shade: float = 0.1  # strength of a light falling in from one side
    clutter: float = 0.0  # strength of soft blobs in the background
    blur: float = 0.0  # standard deviation of a blur, share of the image's width
    drawing: bool = False  # outlines, thinly filled


def polygon(x: np.ndarray, y: np.ndarray, n: int, inner: float | None = None) -> np.ndarray:
    """Signed distance to an n-gon of radius 1, or an n-pointed star with an inner radius."""
    half = np.pi / n
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    r = np.hypot(x, y)
    px, py = r * np.cos(angle), r * np.sin(angle)
    inner = np.cos(half) if inner is None else inner
    edge = np.array([inner * np.cos(half) - 1, inner * np.sin(half)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (px - 1) * normal[0] + py * normal[1]


def box(x: np.ndarray, y: np.ndarray, w: float, h: float) -> np.ndarray:
    """Signed distance (about) to a rectangle of half width w and half height h."""
    return np.maximum(np.abs(x) - w, np.abs(y) - h)


# Signed distance (about) to the outline of a shape of radius 1 at the origin; y points down.
OUTLINES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.85,
    "square": lambda x, y: box(x, y, 0.72, 0.72),
    "triangle": lambda x, y: polygon(x, y + -0.15, 3),
    "pentagon": lambda x, y: polygon(x, y, 5),
    "hexagon": lambda x, y: polygon(x, y, 6),
    "star": lambda x, y: polygon(x, y, 5, inner=0.42),
    "cross": lambda x, y: np.minimum(box(x, y, 0.9, 0.3), box(x, y, 0.3, 0.9)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.66) - 0.22,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.85, 0.72 - np.hypot(x - 0.42, y)),
    "diamond": lambda x, y: (np.abs(x) / 0.58 + np.abs(y) / 0.95 - 1) * 0.5,
}
# Where a point has the object's colour, not its second tone; coordinates are object radii, d
# the distance to the outline.
FILLS = {
    "solid": lambda x, y, d: np.ones_like(x),
    "striped": lambda x, y, d: np.sin(x * 9.5 + y * 4) > 0,
    "dotted": lambda x, y, d: np.hypot((x * 2.1) % 1 - 0.5, (y * 2.1) % 1 - 0.5) > 0.3,
    "checkered": lambda x, y, d: (np.floor(x * 2.6) + np.floor(y * 2.6)) % 2,
    "hollow": lambda x, y, d: d > -0.2,
}
SHAPES, PATTERNS = tuple(OUTLINES), tuple(FILLS)
# Where n objects go (half image widths) and how much smaller they get.
LAYOUTS = {
    1: ([(0.0, 0.0)], 1.0),
    2: ([(-0.46, -0.1), (0.46, 0.1)], 0.56),
    3: ([(-0.46, 0.42), (0.46, 0.42), (0.0, -0.45)], 0.54),
    4: ([(-0.46, -0.46), (0.46, -0.46), (-0.46, 0.46), (0.46, 0.46)], 0.54),
}


def coverage(d: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The share of each pixel inside an outline at distance d; pixels are a unit's."""
    return (0.5 - d * pixels).clip(0, 1)


def uniform(rng: np.random.RandomState, n: int, low: float, high: float) -> np.ndarray:
    """(n, 1, 1) float32 numbers."""
    return rng.uniform(low, high, n).astype(np.float32)[:, None, None]


def draw_objects(
    rng: np.random.RandomState,
    pattern: np.ndarray,
    shape: np.ndarray,
    count: np.ndarray,
    size: int,
    style: Style,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, size, size, 1) coverage by the objects and by their first tone, both 0…1."""
    n = len(pattern)
    axis = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
    gx, gy = np.meshgrid(axis, axis)
    cover, tone = np.zeros((2, n, size, size), dtype=np.float32)
    for slot in range(max(LAYOUTS)):
        angle = np.deg2rad(uniform(rng, n, -style.rotation, style.rotation))
        scale = uniform(rng, n, *style.size)
        dx, dy = uniform(rng, n, -1, 1), uniform(rng, n, -1, 1)
        for c, (centres, shrink) in LAYOUTS.items():
            rows = np.flatnonzero(count == c)
            if slot >= c or not len(rows):
                continue
            s, a = scale[rows] * shrink, angle[rows]
            room = 0.6 * (shrink - s).clip(0)
            x0 = gx - centres[slot][0] - dx[rows] * room
            y0 = gy - centres[slot][1] - dy[rows] * room
            x = (x0 * np.cos(a) + y0 * np.sin(a)) / s
            y = (y0 * np.cos(a) - x0 * np.sin(a)) / s
            for k in {*zip(shape[rows], pattern[rows], strict=True)}:
                pick = np.flatnonzero((shape[rows] == k[0]) & (pattern[rows] == k[1]))
                px, py, pixels = x[pick], y[pick], s[pick] * size / 2
                d = OUTLINES[SHAPES[k[0]]](px, py)
                inside = coverage(d, pixels)
                if style.drawing:
                    line = coverage(np.abs(d + 0.06) - 0.06, pixels)
                    inside = np.maximum(line, 0.5 * inside)
                first = FILLS[PATTERNS[k[1]]](px, py, d).astype(np.float32)
                at = rows[pick]
                cover[at] = np.maximum(cover[at], inside)
                tone[at] = np.where(inside > 0, first, tone[at])
    return cover[..., None], tone[..., None]


def render(
    rng: np.random.RandomState,
    pattern: np.ndarray,
    color: np.ndarray,
    shape: np.ndarray,
    background: np.ndarray,
    count: np.ndarray,
    size: int = 64,
    style: Style = Style(),
) -> np.ndarray:
    """(N, size, size, 3) uint8 images of N scenes.

    The attributes are (N,) integers: indices into PATTERNS, COLORS, SHAPES, COLORS (or GRAY),
    and 1…4 objects.
    """
    n = len(pattern)
    cover, tone = draw_objects(rng, pattern, shape, count, size, style)
    gray = uniform(rng, n, 0.05, 0.95)[..., None] * np.ones(3, dtype=np.float32)  # (N, 1, 1, 3)
    is_gray = (background == GRAY)[:, None, None, None]
    back = np.where(is_gray, gray, PALETTE[background % GRAY][:, None, None])
    ink = PALETTE[color][:, None, None] * uniform(rng, n, 0.85, 1.1)[..., None]
    # The second tone of a pattern is dark or light, so that it is not the background's.
    second = np.where(rng.rand(n) < 0.5, 0.08, 0.95).astype(np.float32)[:, None, None, None]
    image = back * np.ones((n, size, size, 3), dtype=np.float32)
    if style.clutter:
        blobs = rng.standard_normal((n, size, size, 1)).astype(np.float32)
        image += style.clutter * blur(blobs, 0.08 * size) * size * 0.2
    hollow = (pattern == PATTERNS.index("hollow"))[:, None, None, None]
    inner = np.where(hollow, image, second)
    image = image * (1 - cover) + cover * (tone * ink + (1 - tone) * inner)
    return photograph(rng, image, size, style)


def photograph(
    rng: np.random.RandomState, image: np.ndarray, size: int, style: Style
) -> np.ndarray:
    """Light, contrast, focus and sensor: float scenes (N, size, size, 3) to uint8 images."""
    n = len(image)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle = uniform(rng, n, 0, 2 * np.pi)
    side = np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None]
    image = image * (1 + style.shade * side)[..., None]
    image += style.gray * (image.mean(-1, keepdims=True) - image)
    image *= np.array(style.cast, dtype=np.float32)
    image += uniform(rng, n, *style.fade)[..., None] * (0.55 - image)
    if style.blur:
        image = blur(image, style.blur * size)
    image += style.noise * rng.standard_normal(image.shape).astype(np.float32)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (N, H, W, channels) with a standard deviation in pixels."""
    from scipy.ndimage import gaussian_filter1d  # slow to import, and few images need it

    return gaussian_filter1d(gaussian_filter1d(image, sigma, axis=1), sigma, axis=2)
