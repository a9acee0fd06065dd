"""Where a dataset's images lie, if not where they belong."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from shlex import quote

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils.images import IMAGE_SUFFIXES

from .benchmark import Benchmark

DEPTH = 5  # how far below a dataset's folder its images can lie


def module_name(name: str) -> str:
    """The name of a dataset's file here, which is that of its config file."""
    return DATASET_REGISTRY.get(name).__module__.rpartition(".")[2]


def find_images(folder: Path) -> Iterator[str]:
    """All image files below a folder."""
    for path, folders, files in os.walk(folder, followlinks=True):
        deep = len(Path(path).relative_to(folder).parts) >= DEPTH
        folders[:] = [] if deep else [n for n in folders if not is_aside(n)]
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield f"{path}/{name}"


def is_aside(name: str) -> bool:
    """Whether a folder is hidden, or of a Mac's archive."""
    return name.startswith((".", "__MACOSX"))


def similar_folder(root: Path, kind: type[Benchmark]) -> Path | None:
    """A folder that is called nearly like the dataset's: "DTD", "oxford-flowers"."""

    def letters(name: str) -> str:
        return name.lower().replace("-", "").replace("_", "")

    names = (kind.dataset_dir, kind.__name__, module_name(kind.__name__))
    known = set(map(letters, names))
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if letters(path.name) in known and path.name != kind.dataset_dir and path.is_dir():
            return path
    return None


def images_alone(root: Path, kind: type[Benchmark]) -> Path | None:
    """Another site's folder of images: in the data folder, or taken for it."""
    places = [root / name for name in kind.also_called]
    if root.name in kind.also_called:
        places.append(root)
    for place in places:
        if not (place / kind.image_dir).is_dir() and any(find_images(place)):
            return place
    return None


def misplaced(expected: Path, folder: Path, also_called: Collection[str]) -> Path | None:
    """Where the folder `expected` lies instead: inside itself, or elsewhere in `folder`."""
    names = (expected.name, *also_called)
    for name in names:
        if (expected / name).is_dir():
            return expected / name
    if expected.is_dir():
        return None
    for depth in range(DEPTH - 1):
        for path in (p for name in names for p in sorted(folder.glob("*/" * depth + name))):
            aside = any(map(is_aside, path.relative_to(folder).parts))
            # Another process may just have made `expected` itself.
            if not aside and path != expected and path.is_dir() and any(find_images(path)):
                return path
    return None


def move_command(lies: Path, expected: Path) -> str:
    """The shell's, that makes of one folder the other."""
    here, there = quote(str(lies)), quote(str(expected))
    above = quote(str(expected.parent))
    if lies.parent == expected:  # what is left would be taken for a class
        return f"mv {here}/* {there}/ && rmdir {here}"
    if lies.parent in expected.parents:  # imagenet/train, to be imagenet/images/train
        return f"mkdir -p {above} && mv {here} {there}"
    return f"mv {quote(str(lies.parent))}/* {above}/"  # with annotations beside it
