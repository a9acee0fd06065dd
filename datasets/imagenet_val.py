"""Sorts ImageNet's validation images, which its archive has in one folder, into folders of their
classes."""

import re
from pathlib import Path

from tqdm import tqdm

from dassl.utils import Failure
from dassl.utils.lock import locked

from .imagenet import unsorted
from .readers import read_annotations, read_classnames, read_mat

IMAGES = 50_000
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
IMAGE, WNID = re.compile(r"ILSVRC2012_val_(\d{8})"), re.compile(r"\bn\d{8}\b")


def sort_validation_images(folder: Path, labels: Path | None = None) -> None:
    """Moves images/val/ILSVRC2012_val_….JPEG of the dataset's folder to images/val/<wnid>/; goes on
    if interrupted.

    Args:
        labels: a list as `read_labels` reads it; else the devkit's. If there is none, nothing is
            done.

    Raises: Failure, with nothing moved, if the labels are none or lack an image.
    """
    val = folder / "images" / "val"
    if not val.is_dir() or not unsorted(val) or not (labels := labels or find_labels(folder)):
        return
    wnids = read_labels(labels, folder)
    with locked(folder / ".prepare"):
        images = {
            int(found[1]): path for path in val.rglob("*.JPEG") if (found := IMAGE.match(path.name))
        }
        if lacking := images.keys() - wnids.keys():
            raise Failure(
                f"{labels} has no label for {images[min(lacking)]}: get the whole list, of {IMAGES:,} labels"
            )
        if max(wnids) not in (IMAGES, max(images)):
            raise Failure(
                f"{labels} has {max(wnids):,} labels, not {IMAGES:,}: it is of other images"
            )
        loose = {path: wnids[number] for number, path in images.items() if path.parent == val}
        for path, wnid in tqdm(loose.items(), desc="sorting images/val", disable=None):
            (val / wnid).mkdir(exist_ok=True)
            path.rename(val / wnid / path.name)


def find_labels(folder: Path) -> Path | None:
    """The devkit's list, wherever below the dataset's folder the devkit was extracted."""
    return next(
        (f for depth in range(4) for f in sorted(folder.glob("*/" * depth + GROUND_TRUTH))), None
    )


def read_labels(file: Path, folder: Path) -> dict[int, str]:
    """{number of a validation image: wnid} of a list.

    Its lines name images, or belong to images 1, 2, …; they name a wnid, or end in the number of a
    class: the devkit's if its meta.mat lies beside the list, else the place from 0 among all wnids,
    sorted, as Caffe counts them.
    Raises: Failure naming the line that has no label.
    """
    lines = read_annotations(file, "label", str)
    if any(map(IMAGE.search, lines)):  # headings and other commands then name none
        numbered = [(int(image[1]), line) for line in lines if (image := IMAGE.search(line))]
    else:
        numbered = list(enumerate(lines, start=1))
    meta = file.with_name("meta.mat")
    if all(WNID.search(line) for _, line in numbered):
        classes = {}
    elif meta.exists():
        classes = {
            int(number): str(wnid)
            for number, wnid in read_mat(meta, "synsets", "ILSVRC2012_ID", "WNID")
        }
    else:
        classes = dict(enumerate(sorted(read_classnames(folder / "classnames.txt"))))
    wnids = {}
    for image, line in numbered:
        wnid = WNID.search(line)
        last = line.replace(",", " ").split()[-1]
        if not wnid and not (last.isdecimal() and int(last) in classes):
            with_meta = (
                ""
                if meta.exists()
                else f"; for the devkit's numbers put its meta.mat beside {file.name}"
            )
            raise Failure(f"{file}: {line[:80]!r} names no class of ImageNet{with_meta}")
        wnids[image] = wnid[0] if wnid else classes[int(last)]
    return wnids
