"""Decoded images in memory: a few-shot training set is read only once."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dassl.utils import cpu_cores, read_image
from dassl.utils.images import open_image

CHUNK = 1024  # headers read at once: a large training set ends the reading early


class ImageCache:
    """`read_image`, from memory for what `fill` has put into `limit` bytes.

    The pixels lie in one tensor. Workers forked after `fill` share it; where workers are spawned,
    torch moves it to shared memory, so they share it too.
    """

    def __init__(self, limit: int):
        self.limit = limit
        # (bytes,) uint8: the images one after the other, each (H, W, 3)
        self.pixels: Tensor | None = None
        self.where: dict[str, tuple[int, tuple[int, int]]] = {}  # path: first byte, (W, H)

    def fill(self, paths: Iterable[str]) -> None:
        """Decodes the first images that fit, once; raises Failure if one is broken."""
        if not self.limit or self.pixels is not None:
            return
        # threads: Pillow decodes outside the interpreter's lock
        with ThreadPoolExecutor(cpu_cores()) as pool:
            paths = list(dict.fromkeys(paths))
            starts = self._plan(paths, pool)
            paths = paths[: len(starts) - 1]
            pixels = torch.empty(starts[-1], dtype=torch.uint8)
            sizes = pool.map(_decode_into, [pixels.numpy()] * len(paths), paths, starts, starts[1:])
            sizes = tqdm(sizes, desc="reading images", total=len(paths), leave=False, disable=None)
            for path, start, size in zip(paths, starts, sizes, strict=False):
                if size:
                    self.where[path] = start, size
        self.pixels = pixels

    def _plan(self, paths: Sequence[str], pool: ThreadPoolExecutor) -> list[int]:
        """The first byte of each image that fits, then the end of the last."""
        starts = [0]
        for begin in range(0, len(paths), CHUNK):
            for size in pool.map(_decoded_bytes, paths[begin : begin + CHUNK]):
                if starts[-1] + size > self.limit:
                    return starts
                starts.append(starts[-1] + size)
        return starts

    def read(self, path: str) -> Image.Image:
        """A copy of the image; raises Failure as `read_image` does."""
        if path not in self.where:
            return read_image(path)
        start, (width, height) = self.where[path]
        pixels = self.pixels[start : start + 3 * width * height]
        return Image.fromarray(pixels.view(height, width, 3).numpy())


def _decoded_bytes(path: str) -> int:
    """What `read_image` will give for a file, from its header."""
    try:
        with open_image(path) as image:
            return 3 * image.width * image.height
    except Exception:
        read_image(path)  # says in one line what is wrong
        raise


def _decode_into(pixels: np.ndarray, path: str, start: int, end: int) -> tuple[int, int] | None:
    """Fills pixels[start:end]; gives (W, H), or None if the header was wrong."""
    image = read_image(path)
    if 3 * image.width * image.height != end - start:
        return None
    pixels[start:end] = np.asarray(image).reshape(-1)
    return image.size
