"""Sorts ImageNet's validation images into folders of their classes."""

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
    """Moves the images that lie in images/val, as in the archive, to images/val/<wnid>.

    It goes on where it was interrupted. Without labels nothing is done.

    Args:
        folder: the dataset's.
        labels: a list as `read_labels` reads it; else the devkit's.

    Raises: Failure, with nothing moved, if the labels are none or lack an image.
    """
    val = folder / "images" / "val"
    if not val.is_dir() or not unsorted(val):
        return
    labels = labels or find_labels(folder)
    if labels is None:
        return
    wnids = read_labels(labels, folder)
    with locked(folder / ".prepare"):
        found = {path: IMAGE.match(path.name) for path in val.rglob("*.JPEG")}
        images = {int(match[1]): path for path, match in found.items() if match}
        if lacking := images.keys() - wnids.keys():
            line = f"{labels} has no label for {images[min(lacking)]}"
            raise Failure(f"{line}: get the whole list, of {IMAGES:,} labels")
        if max(wnids) not in (IMAGES, max(images)):
            line = f"{labels} has {max(wnids):,} labels, not {IMAGES:,}"
            raise Failure(f"{line}: it is of other images")
        loose = {path: wnids[number] for number, path in images.items() if path.parent == val}
        for path, wnid in tqdm(loose.items(), desc="sorting images/val", disable=None):
            (val / wnid).mkdir(exist_ok=True)
            path.rename(val / wnid / path.name)


def find_labels(folder: Path) -> Path | None:
    """The devkit's list, wherever below the dataset's folder the devkit was extracted."""
    found = (
        file for depth in range(4) for file in sorted(folder.glob("*/" * depth + GROUND_TRUTH))
    )
    return next(found, None)


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
    hint = ""
    if all(WNID.search(line) for _, line in numbered):
        classes = {}
    elif meta.exists():
        rows = read_mat(meta, "synsets", "ILSVRC2012_ID", "WNID")
        classes = {int(number): str(wnid) for number, wnid in rows}
    else:
        classes = dict(enumerate(sorted(read_classnames(folder / "classnames.txt"))))
        hint = f"; for the devkit's numbers put its meta.mat beside {file.name}"
    wnids = {}
    for image, line in numbered:
        wnid, last = WNID.search(line), line.replace(",", " ").split()[-1]
        if wnid:
            wnids[image] = wnid[0]
        elif last.isdecimal() and int(last) in classes:
            wnids[image] = classes[int(last)]
        else:
            raise Failure(f"{file}: {line[:80]!r} names no class of ImageNet{hint}")
    return wnids
