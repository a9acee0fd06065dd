"""Which images a command line names, and which class each one's folder is called like."""

import os
from collections.abc import Iterator, Sequence

from dassl.utils import Failure
from dassl.utils.images import is_image

# Photos that Pillow may not know, so that reading them has to say so.
PHOTOS = (".heic", ".heif", ".hif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw")


def find_images(paths: Sequence[str]) -> list[str]:
    """The files themselves, and all images in and below the folders, in the order of their names.

    Raises: Failure for a folder without images, or one that cannot be listed or is nested too deep.
    """
    found = []
    for path in paths:
        try:
            images = list(images_below(path, set())) if os.path.isdir(path) else [path]
        except RecursionError as error:
            raise Failure(f"{path}: its folders are nested too deep") from error
        if not images:
            raise Failure(f"{path}: no images in it or below it")
        found += images
    return found


def images_below(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Photos in a form that Pillow cannot read are among them: to be named, not passed over.

    Hidden files and folders are left out; `seen`, (device, inode), ends the circles of links.
    """
    try:
        here = os.stat(folder)
        if (place := (here.st_dev, here.st_ino)) in seen:
            return
        seen.add(place)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise Failure(f"Cannot list the folder {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):  # not of a link to itself, where is_dir raises
            yield from images_below(entry.path, seen)
        elif is_image(entry) or entry.name.lower().endswith(PHOTOS):
            yield entry.path


def true_classes(images: Sequence[str], classnames: Sequence[str]) -> tuple[list[str] | None, str]:
    """The class that each image's folder is called like, and "".

    A class is called like its folder, or so with spaces for underscores, as methods read names.
    If one folder is called otherwise, there are none: None, and its name where others are classes.
    """
    classes = {name.replace("_", " "): name for name in classnames}
    classes |= {name: name for name in classnames}
    folders = [os.path.basename(os.path.dirname(os.path.abspath(image))) for image in images]
    found = [classes.get(name, classes.get(name.replace("_", " "))) for name in folders]
    if None not in found:
        return found, ""
    return None, folders[found.index(None)] if any(found) else ""
