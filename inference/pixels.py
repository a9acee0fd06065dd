"""A model's input from an image, as a run's test reads it: Pillow and numpy, no PyTorch.

Bit for bit what dassl/data/transforms gives for testing (with instance_norm, whose sums have
another order, up to rounding).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from dassl.utils.images import read_image


def read_pixels(path: str, preprocessing: Mapping[str, Any]) -> np.ndarray:
    """`to_pixels` of a file. Raises: Failure if it cannot be read."""
    return to_pixels(read_image(path), preprocessing)


def to_pixels(image: Image.Image, preprocessing: Mapping[str, Any]) -> np.ndarray:
    """An RGB image -> (3, H, W) float32, resized, cropped and normalised.

    preprocessing: the one in a model's self-description (dassl.data.transforms.preprocessing_of).
    """
    how = Image.Resampling[preprocessing["interpolation"].upper()]
    image = center_crop(resize(image, preprocessing["resize"], how), *preprocessing["crop"])
    pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    if preprocessing["mean"] is not None:
        mean, std = (np.array(preprocessing[key], np.float32) for key in ("mean", "std"))
        pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    if preprocessing.get("instance_norm"):
        mean, std = pixels.mean((1, 2), keepdims=True), pixels.std((1, 2), keepdims=True, ddof=1)
        pixels = (pixels - mean) / (std + np.float32(1e-8))
    return pixels


def resize(image: Image.Image, edge: int, how: Image.Resampling) -> Image.Image:
    """To `edge` pixels at the shorter edge; the longer one's length is rounded down."""
    shorter = min(image.size)
    size = tuple(int(edge * length / shorter) for length in image.size)
    return image if size == image.size else image.resize(size, how)


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle (height, width) of an image that is as large or larger; halves round to even."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
