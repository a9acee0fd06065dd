"""What the doctor tells of one's own images that could be read."""

import re
from collections import Counter
from itertools import chain
from os.path import basename, dirname

from tabulate import tabulate

from .image_folder import ImageFolder, too_few
from .readers import read_classnames, some

ROWS = 50  # classes that are listed
SHOTS = 16  # the scripts' and the papers' most
# "snow_owl", "002", "n01440764", "AnnualCrop": names that are perhaps no words.
NO_WORDS = re.compile(r"_|\d|[a-z][A-Z]")


def tell(data: ImageFolder) -> str:
    """A table of the classes, and how they are split."""
    splits = [data.train_x, data.val, data.test]
    items = {item.impath: item for item in chain(*splits)}.values()
    folders = {item.label: basename(dirname(item.impath)) for item in data.train_x}
    counts = [Counter(item.label for item in part) for part in (items, *splits)]
    numbers = [[f"{count[label]:,}" for count in counts] for label in folders]
    called = [name.replace("_", " ") for name in data.classnames]
    rows = [[folders[label], name, *numbers[label]] for label, name in enumerate(called)]
    rows[ROWS:] = [[f"… {len(rows) - ROWS:,} more"]] * (len(rows) > ROWS)
    rows.append(["all", "", *(f"{count.total():,}" for count in counts)])
    headers = ("folder", "called", "images", "train", "val", "test")
    align = ("left", "left", *["right"] * 4)
    table = tabulate(rows, headers, colalign=align, disable_numparse=True)
    return f"{table}\n\n{how_split(data)}"


def how_split(data: ImageFolder) -> str:
    """Where the split comes from."""
    if data.parts:
        same = "; val and test are the same images" * (data.val == data.test)
        return f"Split by its folders {', '.join(data.parts.values())}{same}."
    if data.split_file.exists():
        return f"Split as {data.split_file} says."
    return f"Split 50/20/30; the first run keeps that in {data.split_file}."


def advice(data: ImageFolder) -> list[str]:
    """Lines on what could be better."""
    lines = [too_few(data.train_x, SHOTS)]
    file = data.folder / "classnames.txt"
    folders = {basename(dirname(item.impath)) for item in data.train_x}
    if file.exists():
        if other := sorted(read_classnames(file, folders).keys() - folders):
            lines.append(f"{file} names folders that are no classes: {some(other, 3)}")
    elif odd := [name for name in data.classnames if NO_WORDS.search(name)]:
        line = f'CLIP reads the folder {odd[0]} as "{odd[0].replace("_", " ")}". If other names'
        line += f" say more, write {file} in lines `folder name with spaces`"
        lines.append(line)
    return [line for line in lines if line]
