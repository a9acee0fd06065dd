"""Time and memory of starting on an ImageNet-sized folder: the first time, which lists it, and from
the cached listing.

    python bench/listing.py FOLDER

Makes 1,281,000 + 50,000 empty files in 2 × 1000 folders below FOLDER, measures in a process each,
and removes them.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def make(root: Path) -> None:
    """An ImageNet in its real layout, of empty files."""
    folder = root / "imagenet"
    wnids = [f"n{1440764 + 11 * k:08d}" for k in range(1000)]
    for k, wnid in enumerate(tqdm(wnids, desc="Making the folder", disable=None)):
        for part, count in (("train", 1281), ("val", 50)):
            images = folder / "images" / part / wnid
            images.mkdir(parents=True)
            for i in range(count):
                name = (
                    f"{wnid}_{17 * i}.JPEG"
                    if part == "train"
                    else f"ILSVRC2012_val_{50 * k + i:08d}.JPEG"
                )
                (images / name).touch()
    (folder / "classnames.txt").write_text(
        "".join(f"{w} class number {k}\n" for k, w in enumerate(wnids))
    )


def measure(root: Path, shots: int) -> str:
    """One start, in this process: seconds and the peak of memory."""
    from dassl.config import get_cfg_default
    from datasets.imagenet import ImageNet

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    imports, cfg = peak(), get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.SEED = str(root), shots, 1
    start = time.perf_counter()
    data = ImageNet(cfg)
    seconds = time.perf_counter() - start
    return f"{seconds:.1f} s | {peak():.0f} MB ({imports:.0f} MB imports) | {len(data.train_x):,} + {len(data.test):,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an empty or new folder on the disk to measure")
    parser.add_argument("--shots", type=int, help=argparse.SUPPRESS)  # the measuring process
    args = parser.parse_args()
    if args.shots is not None:
        print(measure(args.folder, args.shots))
        return
    if args.folder.exists() and os.listdir(args.folder):
        sys.exit(f"error: {args.folder} is not empty; choose another folder")
    try:
        make(args.folder)
        print("| start | time | peak memory | images |\n|---|---|---|---|")
        for name, shots in (("first", -1), ("cached", -1), ("cached, 16 shots", 16)):
            command = [sys.executable, __file__, str(args.folder), "--shots", str(shots)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(f"| {name} | {out.splitlines()[-1]} |", flush=True)
    finally:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
