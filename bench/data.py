"""An epoch of data loading alone, with decoded images kept beside read from their files every time.

    python bench/data.py [--images 256] [--epochs 7]

Makes JPEGs of 500 × 400 in a temporary folder and loads them as P2C's ViT-B/16 config does, an
epoch of each in turns: as training images from memory (DATALOADER.CACHE_MB), then as test images
from one file (DATALOADER.TEST_CACHE), which includes checking that file's hash and making floats of
it.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from dassl.config import get_cfg_default  # noqa: E402
from dassl.data import build_data_loader  # noqa: E402
from dassl.data.datasets import Datum  # noqa: E402
from dassl.data.kept_images import kept_images  # noqa: E402
from dassl.data.transforms import build_transform  # noqa: E402
from dassl.engine.record import device_name  # noqa: E402
from dassl.utils import cpu_cores  # noqa: E402

CONFIG = "configs/trainers/P2C/vit_b16_ep5_batch4.yaml"


def make(folder: str, count: int) -> list[Datum]:
    """Soft shapes under fine noise: about the bytes a photograph of that size has."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(count):
        soft = Image.fromarray(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8)).resize(
            (500, 400), Image.BICUBIC
        )
        noisy = np.asarray(soft) + rng.normal(0, 12, (400, 500, 1))
        items.append(Datum(f"{folder}/{i}.jpg", i % 16, 0, str(i % 16)))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(items[-1].impath, quality=90)
    return items


def epoch(batches: Callable[[], Iterable]) -> float:
    start = time.perf_counter()
    for _ in batches():
        pass
    return time.perf_counter() - start


def config(workers: int) -> CfgNode:
    cfg = get_cfg_default()
    cfg.INPUT.merge_from_other_cfg(cfg.load_cfg((REPO / CONFIG).read_text()).INPUT)
    cfg.VERBOSE, cfg.DATALOADER.NUM_WORKERS = False, workers
    return cfg


def training(items: list[Datum], workers: int, epochs: int) -> str:
    """A row of the table: the first epoch, which fills the memory and starts the workers, and the
    later ones."""
    loaders = []
    for megabytes in (0, 2048):
        cfg = config(workers)
        cfg.DATALOADER.CACHE_MB = megabytes
        loaders.append(build_data_loader(cfg, "RandomSampler", items, 4, tfm=build_transform(cfg)))
    first, *later = [
        [epoch(lambda loader=loader: loader) for loader in loaders] for _ in range(epochs + 1)
    ]
    times = [median(pair[i] for pair in later) for i in (0, 1)]
    return f"{first[0]:.2f} | {first[1]:.2f} | {times[0]:.2f} | {times[1]:.2f} | {spread(later)}"


def testing(items: list[Datum], workers: int, epochs: int) -> str:
    """A row of the table: images a second from the files, when the one file is made and when it is
    there."""
    cfg = config(workers)
    cfg.DATASET.NAME, cfg.DATALOADER.TEST_CACHE = (
        f"workers_{workers}",
        os.path.dirname(items[0].impath),
    )
    tfm = build_transform(cfg, is_train=False)
    files = build_data_loader(cfg, "SequentialSampler", items, 100, tfm=tfm, is_train=False)

    def one_file() -> Iterable:
        return kept_images(files, "test", torch.device("cpu"))[0]

    with redirect_stdout(None):  # it says where it keeps them
        made = epoch(one_file)
        pairs = [(epoch(lambda: files), epoch(one_file)) for _ in range(epochs)]
    speeds = [
        len(items) / seconds
        for seconds in (median(a for a, _ in pairs), made, median(b for _, b in pairs))
    ]
    return " | ".join(f"{speed:.0f}" for speed in speeds) + f" | {spread(pairs)}"


def spread(pairs: list[list[float]]) -> str:
    """Median, least and most of the ratios."""
    ratios = [a / b for a, b in pairs]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        items = make(folder, args.images)
        kilobytes = sum(os.path.getsize(item.impath) for item in items) / len(items) / 1024
        machine = f"{device_name(torch.device('cpu'))}, {cpu_cores()} cores, load {os.getloadavg()[0]:.1f}"
        print(
            f"{machine}; {args.images} JPEGs of {kilobytes:.0f} KB; seconds, medians of {args.epochs} epochs\n"
        )
        for measure, columns in (
            (
                training,
                "workers | first epoch, files | first, memory | later, files | later, memory | files / memory",
            ),
            (
                testing,
                "workers | test images/s, files | one file, made | one file, found | files / found, seconds",
            ),
        ):
            print(f"| {columns} |\n|" + "---|" * (columns.count("|") + 1))
            for workers in sorted({0, 1, min(8, cpu_cores())}):
                print(f"| {workers} | {measure(items, workers, args.epochs)} |", flush=True)
            print()


if __name__ == "__main__":
    main()
