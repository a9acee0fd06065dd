"""An epoch of data loading alone, with the decoded images kept in memory beside read from their files every time.

    python scripts/measure_data.py [--images 256] [--epochs 7]

Makes JPEGs of 500 × 400 in a temporary folder and loads them as P2C's ViT-B/16 config does, an epoch of each in turns;
then as test images, of which nothing is kept.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from dassl.config import get_cfg_default  # noqa: E402
from dassl.data import build_data_loader  # noqa: E402
from dassl.data.datasets import Datum  # noqa: E402
from dassl.data.transforms import build_transform  # noqa: E402
from dassl.engine.record import device_name  # noqa: E402
from dassl.utils import cpu_cores  # noqa: E402

CONFIG = "configs/trainers/P2C/vit_b16_ep5_batch4.yaml"


def make(folder: str, count: int) -> list[Datum]:
    """Soft shapes under fine noise: about the bytes a photograph of that size has."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(count):
        soft = Image.fromarray(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8)).resize((500, 400), Image.BICUBIC)
        noisy = np.asarray(soft) + rng.normal(0, 12, (400, 500, 1))
        items.append(Datum(f"{folder}/{i}.jpg", i % 16, 0, str(i % 16)))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(items[-1].impath, quality=90)
    return items


def epoch(loader: torch.utils.data.DataLoader) -> float:
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def measure(items: list[Datum], workers: int, epochs: int) -> str:
    """A row of the table: the first epoch, which fills the memory and starts the workers, and the later ones."""
    loaders = []
    for megabytes in (0, 2048):
        cfg = get_cfg_default()
        values = cfg.load_cfg((REPO / CONFIG).read_text())
        cfg.INPUT.merge_from_other_cfg(values.INPUT)
        cfg.VERBOSE, cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.CACHE_MB = False, workers, megabytes
        batch = values.DATALOADER.TRAIN_X.BATCH_SIZE
        loaders.append(build_data_loader(cfg, "RandomSampler", items, batch, tfm=build_transform(cfg)))
    pairs = [[epoch(loader) for loader in loaders] for _ in range(epochs + 1)]
    (first_files, first_memory), *later = pairs
    ratios = [files / memory for files, memory in later]
    times = [median(pair[i] for pair in later) for i in (0, 1)]
    spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    tests = build_data_loader(
        cfg, "SequentialSampler", items, 100, tfm=build_transform(cfg, is_train=False), is_train=False
    )
    tested = len(items) / median([epoch(tests) for _ in range(epochs + 1)][1:])
    return f"{first_files:.2f} | {first_memory:.2f} | {times[0]:.2f} | {times[1]:.2f} | {spread} | {tested:.0f}"


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
        print(f"{machine}; {args.images} JPEGs of {kilobytes:.0f} KB; seconds, medians of {args.epochs} epochs\n")
        columns = "workers | 1st epoch, files | memory | later, files | memory | files / memory | test, images/s"
        print(f"| {columns} |\n" + "|---" * 7 + "|")
        for workers in sorted({0, 1, min(8, cpu_cores())}):
            print(f"| {workers} | {measure(items, workers, args.epochs)} |", flush=True)


if __name__ == "__main__":
    main()
