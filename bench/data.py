"""An epoch of data loading alone, images kept decoded or not: python -m bench.data.

Makes JPEGs of 500 × 400 in a temporary folder and loads them as P2C's ViT-B/16 config
does, an epoch with kept images and one that reads the files, in turns: training images
kept in memory (DATALOADER.CACHE_MB), then test images in one file (DATALOADER.TEST_CACHE),
which includes checking that file's hash and making floats of it.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.kept_images import kept_images
from dassl.data.transforms import build_transform
from dassl.utils import cpu_cores

from .record import Record, add_record
from .timing import alternate, machine, ratios, seconds_of

CONFIG = Path("configs/trainers/P2C/vit_b16_ep5_batch4.yaml")
RATIO = "files / {}: min / median / max"


def make_images(folder: str, count: int) -> list[Datum]:
    """Soft shapes under fine noise: about the bytes a photograph of that size has."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8))
        soft = coarse.resize((500, 400), Image.BICUBIC)
        noisy = np.asarray(soft) + rng.normal(0, 12, (400, 500, 1))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(f"{folder}/{i}.jpg", quality=90)
        items.append(Datum(f"{folder}/{i}.jpg", label=i % 16, classname=str(i % 16)))
    return items


def config(workers: int) -> CfgNode:
    """P2C's transforms, and so many workers."""
    cfg = get_cfg_default()
    cfg.INPUT.merge_from_other_cfg(cfg.load_cfg(CONFIG.read_text()).INPUT)
    cfg.VERBOSE, cfg.DATALOADER.NUM_WORKERS = False, workers
    return cfg


def drain(batches: Iterable) -> None:
    """Reads all batches."""
    for _ in batches:
        pass


def training(items: list[Datum], workers: int, epochs: int) -> dict[str, str]:
    """Seconds of the first epoch, which fills memory and starts workers, and later ones."""

    def epoch(megabytes: int) -> Callable[[], None]:
        cfg = config(workers)
        cfg.DATALOADER.CACHE_MB = megabytes
        tfm = build_transform(cfg)
        return partial(drain, build_data_loader(cfg, "RandomSampler", items, 4, tfm=tfm))

    files, memory = epoch(0), epoch(2048)
    first = seconds_of(files), seconds_of(memory)
    later = alternate(files, memory, rounds=epochs)
    return {
        "first epoch, files": f"{first[0]:.2f}",
        "first, memory": f"{first[1]:.2f}",
        "later, files": f"{median(later[0]):.2f}",
        "later, memory": f"{median(later[1]):.2f}",
        RATIO.format("memory"): ratios(*later),
    }


def testing(items: list[Datum], workers: int, epochs: int) -> dict[str, str]:
    """Images a second from the files, when the one file is made, and when it is there."""
    cfg = config(workers)
    cfg.DATASET.NAME = f"workers_{workers}"
    cfg.DATALOADER.TEST_CACHE = os.path.dirname(items[0].impath)
    tfm = build_transform(cfg, is_train=False)
    loader = build_data_loader(cfg, "SequentialSampler", items, 100, tfm=tfm, is_train=False)

    def one_file() -> None:
        drain(kept_images(loader, "test", torch.device("cpu"))[0])

    with redirect_stdout(None):  # it says where it keeps them
        made = seconds_of(one_file)
        read, found = alternate(partial(drain, loader), one_file, rounds=epochs)
    return {
        "test images/s, files": f"{len(items) / median(read):.0f}",
        "one file, made": f"{len(items) / made:.0f}",
        "one file, found": f"{len(items) / median(found):.0f}",
        RATIO.format("found, seconds"): ratios(read, found),
    }


def main() -> None:
    """Prints a table for training images and one for test images."""
    parser = argparse.ArgumentParser("python -m bench.data", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=7)
    add_record(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = Record(args.record, parser.prog)
    with tempfile.TemporaryDirectory() as folder:
        items = make_images(folder, args.images)
        kilobytes = sum(os.path.getsize(item.impath) for item in items) / len(items) / 1024
        about = f"{args.images} JPEGs of {kilobytes:.0f} KB; medians of {args.epochs} epochs"
        print(f"{machine()}; {about}")
        for measure in (training, testing):
            rows = []
            for workers in sorted({0, 1, min(8, cpu_cores())}):
                rows.append({"workers": workers} | measure(items, workers, args.epochs))
            print(f"\n{record.table(measure.__name__, rows)}", flush=True)


if __name__ == "__main__":
    main()
