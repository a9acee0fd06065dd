"""Reads a folder of one's own images, and says in words what keeps it from being read."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

import PIL
from PIL import features

from dassl.data.datasets import Datum
from dassl.utils import Failure
from dassl.utils.images import is_image

from .readers import NO_CLASSES, some

# What folders of training, validation and test images are called, in any case.
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
PARTS |= {"test": ("test", "testing")}
PART_OF = {name: part for part, names in PARTS.items() for name in names}
# What Pillow cannot read -> what to do about it.
REMEDIES = {
    (".heic", ".heif", ".hif"): "convert them to JPEG: on a Mac `sips -s format jpeg FILE --out "
    "NEW.jpg`, elsewhere `heif-convert FILE NEW.jpg`",
    (".svg", ".svgz", ".pdf", ".ai"): "draw them as PNG, as rsvg-convert and pdftoppm do",
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".psb", ".xcf"): "save them "
    "as JPEG in the program that made or shows them",
    (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"): "take single frames: `ffmpeg -i FILE -vf "
    "fps=1 %04d.jpg`",
    (".jxl",): "convert them to PNG: `djxl FILE NEW.png`",
}
if not features.check("avif"):
    REMEDIES[".avif",] = "Pillow reads them from 11.3 on: `pip install -U pillow`"
REMEDY_OF = {suffix: remedy for suffixes, remedy in REMEDIES.items() for suffix in suffixes}
ASIDE = (*NO_CLASSES, "Thumbs.db", "desktop.ini")
LISTS = (".csv", ".json", ".txt", ".xml", ".yaml", ".tsv", ".xlsx")


class Problems(Failure):
    """All that keeps a folder from being read; as a run's error, the first of it."""

    def __init__(self, lines: list[str], root: Path):
        command = f"python -m datasets.doctor image_folder --root {quote(str(root))}"
        more = f". {len(lines) - 1} more like this, which {command} names"
        super().__init__(lines[0] + more * (len(lines) > 1))
        self.lines = lines


@dataclass
class Contents:
    """The names in a folder, sorted, without hidden ones."""

    folder: Path
    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def look(folder: Path) -> Contents:
    """What a folder holds. Raises Failure if it cannot be listed."""
    found = Contents(folder)
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name in ASIDE:
                    continue
                elif os.path.isdir(entry.path):  # of a link in a circle entry.is_dir() raises
                    found.folders.append(entry.name)
                else:
                    (found.images if is_image(entry) else found.others).append(entry.name)
    except OSError as error:
        raise Failure(f"Cannot list the folder {folder}: {error.strerror}") from error
    return found


def count(n: int, what: str) -> str:
    """ "1 image", "2 images"."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def find_parts(top: Contents) -> dict[str, str]:
    """{train, val, test: the folder that is it}; {} if the folders are classes.

    Classes may be called "Train" and "Test": they hold images. Raises Failure for two folders
    of one part, and for a folder beside them that is none.
    """
    parts = {name: PART_OF.get(name.lower()) for name in top.folders}
    training = [name for name, part in parts.items() if part == "train"]
    if not training:
        return {}
    train = look(top.folder / training[0])
    if not set(parts) <= set(PARTS) and (train.images or not train.folders):
        return {}
    folders: dict[str, str] = {}
    for name, part in parts.items():
        if part is None:
            line = f"{train.folder} holds class folders, but {top.folder / name} beside it is"
            raise Failure(f"{line} neither val nor test: move that elsewhere")
        if (other := folders.setdefault(part, name)) != name:
            line = f"{top.folder} holds {other} and {name}, which are both read as {part}"
            raise Failure(f"{line}: make them one, or move one elsewhere")
    return {part: folders[part] for part in PARTS if part in folders}


def check_folders(top: Contents) -> None:
    """Raises Failure for a folder without class folders."""
    folder = top.folder
    if top.folders:
        return
    if not top.images:
        line = f"{folder} holds no class folders"
        raise Failure(f"{line}: make one folder of images for each class")
    line = f"{folder} holds {count(len(top.images), 'image')} and no class folders"
    if lists := [name for name in top.others if name.lower().endswith(LISTS)]:
        line += f" (a list like {lists[0]} is not read)"
    line += ": make one folder for each class and move them there"
    if folder.name.lower() not in PART_OF:
        line += f"; if all are of one class, the root is {folder.parent}"
    raise Failure(line)


def read_folders(
    top: Contents, classes: Mapping[str, str], complete: bool = True
) -> tuple[list[Datum], list[str], list[str]]:
    """All images of class folders; a line for each problem, and for what is left out.

    Args:
        classes: {folder: class name} by label.
        complete: whether it is a problem if the folder of a class is missing.
    """
    items, problems, found = [], [], []
    for label, (name, classname) in enumerate(classes.items()):
        if not complete and name not in top.folders:
            continue
        found.append(inside := look(top.folder / name))
        if not inside.images:
            problems.append(why_no_images(inside, top))
        paths = (f"{inside.folder}/{image}" for image in inside.images)
        items += [Datum(path, label, classname=classname) for path in paths]
    return items, problems, list(left_out(top, found))


def why_no_images(inside: Contents, top: Contents) -> str:
    """The line on a class folder without images."""
    folder, others = inside.folder, inside.others
    if {"images", "labels"} <= set(top.folders):
        line = f"{top.folder} holds images and labels, as for object detection (YOLO)"
        return f"{line}: export the dataset for classification, with a folder for each class"
    if others:
        line = f"{folder} holds no images that Pillow can open, only {some(others, 3)}"
        return f"{line}: {how_to_read(others) or 'put images there, or remove the folder'}"
    if not inside.folders:
        return f"{folder} is empty: put images there, or remove the folder"
    line = f"{folder} holds folders ({some(inside.folders, 3)}) and no images:"
    parts = all(name.lower() in PART_OF for name in inside.folders)
    if parts and top.folders == [folder.name]:
        return f"{line} the root is {folder}"
    if parts:
        path = top.folder / inside.folders[0] / folder.name
        return f"{line} those go above the classes, as in {path}"
    line += " if those are your classes,"
    if top.folders == [folder.name]:
        return f"{line} the root is {folder}"
    return f"{line} move them up into {top.folder}, else set another root"


def how_to_read(names: Iterable[str]) -> str:
    """What to do about files of which Pillow reads none; "" for what is no image."""
    suffixes = (os.path.splitext(name)[1].lower() for name in names)
    return "; ".join(dict.fromkeys(REMEDY_OF[s] for s in suffixes if s in REMEDY_OF))


def left_out(top: Contents, classes: list[Contents]) -> Iterator[str]:
    """A line for each kind of thing in a folder that is not read."""
    parts = [c.folder.name for c in classes if c.images and c.folder.name.lower() in PART_OF]
    if len(parts) > 1:
        line = f"{top.folder}: {' and '.join(parts)} are taken for classes, as they hold images"
        yield f"{line} themselves; to train and test by them, make class folders in each"
    kinds: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name in top.images:
        remedy = "move each to the folder of its class"
        kinds["image", "beside the class folders", remedy].append(name)
    for c in (c for c in classes if c.images):
        for name in c.folders:
            remedy = "move their images up into the class folder"
            kinds["folder", "inside class folders", remedy].append(f"{c.folder.name}/{name}")
        for name in c.others:
            remedy = how_to_read([name]) or "no images, or damaged"
            where = f"that Pillow {PIL.__version__} cannot open"
            kinds["file", where, remedy].append(f"{c.folder.name}/{name}")
    for (what, where, remedy), names in kinds.items():
        line = f"{top.folder}: left out {count(len(names), what)} {where}"
        yield f"{line} ({some(names, 3)}): {remedy}"
