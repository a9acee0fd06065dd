"""Starting on a folder of ImageNet's size: python -m bench.listing FOLDER.

The first start lists the folder, later ones have its cached listing. Makes 1,281,000 + 50,000
empty files in 2 × 1000 folders below FOLDER, measures in a process each, and removes them.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from .record import Record, add_record
from .timing import seconds_of


def make_imagenet(root: Path) -> None:
    """An ImageNet in its real layout, of empty files."""
    folder = root / "imagenet"
    wnids = [f"n{1440764 + 11 * k:08d}" for k in range(1000)]
    for k, wnid in enumerate(tqdm(wnids, desc="Making the folder", disable=None)):
        names = {
            "train": [f"{wnid}_{17 * i}.JPEG" for i in range(1281)],
            "val": [f"ILSVRC2012_val_{50 * k + i:08d}.JPEG" for i in range(50)],
        }
        for part, files in names.items():
            images = folder / "images" / part / wnid
            images.mkdir(parents=True)
            for name in files:
                (images / name).touch()
    lines = [f"{wnid} class number {k}\n" for k, wnid in enumerate(wnids)]
    (folder / "classnames.txt").write_text("".join(lines))


def measure(root: Path, shots: int) -> str:
    """One start, in this process: seconds, the peak of memory, images."""
    from dassl.config import get_cfg_default
    from dassl.engine.record import peak_memory
    from datasets.imagenet import ImageNet

    imports = peak_memory()
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.SEED = str(root), shots, 1
    made = []
    seconds = seconds_of(lambda: made.append(ImageNet(cfg)))
    memory = f"{peak_memory():.0f} MB ({imports:.0f} MB imports)"
    images = f"{len(made[0].train_x):,} + {len(made[0].test):,}"
    return f"{seconds:.1f} s|{memory}|{images}"


def main() -> None:
    """Makes the folder, prints the table, removes the folder."""
    parser = argparse.ArgumentParser("python -m bench.listing", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an empty or new folder on the disk to measure")
    parser.add_argument("--shots", type=int, help=argparse.SUPPRESS)  # the measuring process
    add_record(parser)
    args = parser.parse_args()
    if args.shots is not None:
        print(measure(args.folder, args.shots))
        return
    if args.folder.exists() and os.listdir(args.folder):
        sys.exit(f"error: {args.folder} is not empty; choose another folder")
    record = Record(args.record, parser.prog)
    columns = ("start", "time", "peak memory", "images")
    rows = []
    try:
        make_imagenet(args.folder)
        for name, shots in (("first", -1), ("cached", -1), ("cached, 16 shots", 16)):
            command = [sys.executable, "-m", "bench.listing", str(args.folder), "--shots"]
            done = subprocess.run(
                [*command, str(shots)], check=True, capture_output=True, text=True
            )
            row = [name, *done.stdout.splitlines()[-1].split("|")]
            rows.append(dict(zip(columns, row, strict=True)))
    finally:
        shutil.rmtree(args.folder)
    print(record.table("starts", rows))


if __name__ == "__main__":
    main()
