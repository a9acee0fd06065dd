"""Finding and reading image files."""

import os

import numpy as np
from PIL import ExifTags, Image, features

from dassl.files import regular

from .errors import Failure

# Files called so are images; of others Pillow is asked, which takes longer.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
IMAGE_SUFFIXES += (".webp", *[".avif"] * features.check("avif"))
# What brings an image upright, by its EXIF orientation.
UPRIGHT = dict(enumerate(
    (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180,
     Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270,
     Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90), start=2))  # fmt: skip


def is_image(entry: os.DirEntry) -> bool:
    """Whether it is called like an image, or else Pillow can open it."""
    if entry.name.lower().endswith(IMAGE_SUFFIXES):
        # A broken link is an image that is missing.
        return entry.is_file() or not os.path.exists(entry.path)
    try:
        with open_image(entry.path):
            return True
    except Exception:  # what is no image can raise anything
        return False


def open_image(path: str) -> Image.Image:
    """Pillow's open, of files only: a pipe would be waited for."""
    return Image.open(regular(path))


def read_image(path: str) -> Image.Image:
    """Reads any image as upright RGB of 8 bits; transparent parts become white.

    Raises Failure naming the file if it is missing or cannot be decoded.
    """
    try:
        with open_image(path) as image:
            image.load()
            image = upright(image)
            plain = image.mode == "RGB" and not image.has_transparency_data
            return image if plain else _to_rgb(image)
    except FileNotFoundError as error:
        line = f"The image {path} does not exist: check DATASET.ROOT and the split file"
        raise Failure(line) from error
    except Exception as error:  # a damaged image can raise anything
        lines = str(getattr(error, "strerror", None) or error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise Failure(f"Cannot read the image {path}: {reason}. Replace or remove it") from error


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; ImageOps' would also write that anew, which can fail."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged notes make no damaged image
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are fractions, of a range that it does not say")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow itself makes all above 255 white
        grey = np.asarray(image).clip(0, 65535) / 257
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
