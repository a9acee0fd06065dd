"""Says whether the data folder has each dataset whole, and which command mends it.

Nothing is written there.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from shlex import quote

from tabulate import tabulate
from tqdm import tqdm

import datasets
from dassl.commands import OneLineParser, plain
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import (
    Failure,
    check_availability,
    expand_user,
    print_error,
    read_image,
    tolerate_encoding,
)

from .benchmark import SPLITS, Benchmark, read_lists
from .readers import IMAGE_SUFFIXES, absent, nothing_saved, some

# Classes, and images to train on, validate and test with, as published with CoOp's splits.
# ImageNet validates with its test images.
PUBLISHED = {
    "Caltech101": (100, 4_128, 1_649, 2_465),
    "OxfordPets": (37, 2_944, 736, 3_669),
    "StanfordCars": (196, 6_509, 1_635, 8_041),
    "OxfordFlowers": (102, 4_093, 1_633, 2_463),
    "Food101": (101, 50_500, 20_200, 30_300),
    "FGVCAircraft": (100, 3_334, 3_333, 3_333),
    "SUN397": (397, 15_880, 3_970, 19_850),
    "DescribableTextures": (47, 2_820, 1_128, 1_692),
    "EuroSAT": (10, 13_500, 5_400, 8_100),
    "UCF101": (101, 7_639, 1_898, 3_783),
    "ImageNet": (1_000, 1_281_167, 0, 50_000),
    "ImageNetV2": (1_000, 0, 0, 10_000),
    "ImageNetSketch": (1_000, 0, 0, 50_889),
    "ImageNetA": (200, 0, 0, 7_500),
    "ImageNetR": (200, 0, 0, 30_000),
}
DEPTH = 5  # how far below a dataset's folder its images can lie
NAMED = 10  # broken images that are named


@dataclass
class Finding:
    """The state of one dataset."""

    name: str
    state: str = "missing"  # or incomplete, found
    wrong: str = ""  # what is not as it should be
    mend: str = ""  # the command for it
    classes: int | None = None  # unknown if it cannot be read
    images: list[str] = field(default_factory=list)

    @property
    def counts(self) -> list[str]:
        """Images, images published, classes, classes published."""
        classes, *splits = PUBLISHED[self.name]
        found = "–" if self.classes is None else f"{self.classes:,}"
        return [f"{len(self.images):,}", f"{sum(splits):,}", found, f"{classes:,}"]

    @property
    def line(self) -> str:
        """What `prepare` says in the end."""
        counts = "{} of {} images, {} of {} classes".format(*self.counts)
        return self.with_mend(f"{self.name}: {self.state}, {counts}", self.wrong)

    def with_mend(self, *lines: str) -> str:
        """These lines and the command, where there are any."""
        return "\n  ".join(filter(None, (*lines, self.mend)))


def dataset_name(name: str) -> str:
    """DATASET.NAME, of itself or of its config file, in any case. Raises UsageError."""
    names = {known.lower(): known for known in PUBLISHED}
    names |= {module_name(known): known for known in PUBLISHED}
    if name.lower() not in names:
        check_availability(name, PUBLISHED, "dataset")
    return names[name.lower()]


def module_name(name: str) -> str:
    """The name of a dataset's file here, which is that of its config file."""
    return DATASET_REGISTRY.get(name).__module__.rpartition(".")[2]


def command(tool: str, name: str, root: Path, *flags: str) -> str:
    """What a user types for this data folder."""
    if str(root) != expand_user(datasets.default_root()):
        flags = ("--root", str(root), *flags)
    return shlex.join(["python", "-m", f"datasets.{tool}", name, *flags])


def examine(name: str, root: Path) -> Finding:
    """Reads a dataset as a run would; if that fails, looks at what lies there."""
    kind = DATASET_REGISTRY.get(name)
    folder = root / kind.dataset_dir
    finding = Finding(name, mend=command("prepare", name, root))
    cfg = get_cfg_default()
    datasets.add_config(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, str(root)
    try:
        with nothing_saved():
            data = kind(cfg)
    except (Failure, OSError) as e:
        finding.images = list(find_images(folder))
        finding.state = "incomplete" if finding.images else "missing"
        explain(finding, kind, root, str(e))
    else:
        items = chain(data.train_x, data.val or (), data.test)
        finding.images = list(dict.fromkeys(item.impath for item in items))
        finding.classes = data.num_classes
        compare(finding, split_file(folder, name))
    return finding


def split_file(folder: Path, name: str) -> Path:
    """Benchmark.split_file, of one that cannot be read too."""
    return folder / f"split_zhou_{name}.json"


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


def compare(finding: Finding, split: Path) -> None:
    """What was read with what was published."""
    classes, *splits = PUBLISHED[finding.name]
    fewer = sum(splits) - len(finding.images)
    fewer_classes = classes - finding.classes
    if fewer > 0 or fewer_classes > 0:
        finding.state = "incomplete"
        what = f"{fewer:,} images"
        if fewer_classes > 0:
            what += f" and {fewer_classes:,} whole classes"
        if split.exists():
            why = "it was made of a folder that was not whole"
            finding.wrong = f"{split} lacks {what}: {why}"
        else:
            why = "an archive was extracted only in part, or images were removed"
            finding.wrong = f"{what} are missing: {why}"
        return
    finding.state, finding.mend = "found", ""
    if fewer < 0 or fewer_classes < 0:
        more = f"{-fewer:,} images more than published"
        finding.wrong = f"{more}: results cannot be compared with others'"


def explain(finding: Finding, kind: type[Benchmark], root: Path, error: str) -> None:
    """Why its reader cannot read it: the causes known, else the reader's own line."""
    folder = root / kind.dataset_dir
    if not folder.is_dir():
        explain_no_folder(finding, kind, root)
        return
    for expected in (folder / kind.image_dir / n for n in kind.needed):
        if lies := misplaced(expected, folder, kind.also_called):
            finding.wrong = f"{expected} has to hold the images, but they lie in {lies}"
            finding.mend = move_command(lies, expected)
            return
        if not expected.is_dir():
            finding.wrong = f"There is no folder {expected}"
            return
    split = split_file(folder, kind.__name__)
    finding.wrong = count_absent(split, folder / kind.image_dir) or error


def explain_no_folder(finding: Finding, kind: type[Benchmark], root: Path) -> None:
    """Where a dataset is that has no folder of its name in the data folder."""
    folder = root / kind.dataset_dir
    finding.wrong = f"There is no folder {folder}"
    if images := images_alone(root, kind):
        above = ", and the data folder is above it" * (images == root)
        finding.wrong += f", but {images} has the images{above}"
        expected = images.parent / kind.dataset_dir / kind.image_dir
        finding.mend = move_command(images, expected)
    elif other := similar_folder(root, kind):
        finding.wrong += f", but {other}"
        finding.mend = shlex.join(["mv", str(other), str(folder)])
    elif root.name == kind.dataset_dir:
        finding.wrong += f": {root} is the dataset's own folder"
        finding.wrong += ", the data folder is above it"
        finding.mend = command("doctor", finding.name, root.parent)


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


def count_absent(split: Path, images: Path) -> str:
    """A line on images that a split file names and that are not there; "" if none."""
    try:
        items = [item for part in read_lists(split, SPLITS, images) for item in part]
    except Failure:
        return ""
    gone = list(absent(items))
    line = f"{split} names {len(gone):,} images that are not there"
    return f"{line}, the first is {gone[0]}" if gone else ""


def is_broken(path: str) -> bool:
    """Whether an image cannot be opened."""
    try:
        read_image(path)
    except Failure:
        return True
    return False


def open_all(finding: Finding, root: Path) -> None:
    """Opens every image, whole, and adds to the finding which cannot be."""
    if not (paths := finding.images):
        return
    with ProcessPoolExecutor() as pool:
        results = pool.map(is_broken, paths, chunksize=64)
        results = list(tqdm(results, total=len(paths), desc=finding.name, disable=None))
    broken = [path for path, bad in zip(paths, results, strict=True) if bad]
    if broken:
        line = f"{len(broken):,} images cannot be opened: {some(broken, NAMED)}"
        finding.wrong = f"{finding.wrong}. {line}" if finding.wrong else line
        if finding.state == "found":
            finding.state = "incomplete"
            finding.mend = command("prepare", finding.name, root, "--again")


def report(findings: list[Finding]) -> str:
    """A table, and below it what is wrong."""
    rows = [(f.name, f.state, *f.counts) for f in findings]
    headers = ("dataset", "state", "images", "published", "classes", "published")
    align = ("left", "left", *["right"] * 4)
    table = tabulate(rows, headers, colalign=align, disable_numparse=True)
    notes = [f.with_mend(f"{f.name}: {f.wrong}") for f in findings if f.wrong]
    return "\n\n".join(filter(None, (table, "\n".join(notes))))


def run(args: argparse.Namespace) -> int:
    """The exit code."""
    root = Path(expand_user(args.root))
    names = list(dict.fromkeys(map(dataset_name, args.names))) or list(PUBLISHED)
    findings = [examine(name, root) for name in names]
    if args.deep:
        for finding in findings:
            open_all(finding, root)
    print(plain(report(findings), keep="\n"))
    return int(bool(args.names) and any(f.state != "found" for f in findings))


def add_root(p: argparse.ArgumentParser) -> None:
    """The flag --root."""
    text = "folder that holds all datasets (default: DATA, or data)"
    p.add_argument("--root", default=datasets.default_root(), help=text)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    tolerate_encoding()
    p = OneLineParser("python -m datasets.doctor", description=__doc__)
    text = "DATASET.NAME or config file (default: all fifteen)"
    p.add_argument("names", nargs="*", metavar="NAME", help=text)
    add_root(p)
    p.add_argument("--deep", action="store_true", help="open every image")
    try:
        return run(p.parse_args(argv))
    except Failure as e:
        print_error(f"error: {e}")
        return e.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
