"""Looks at the data folder and says, per dataset, whether it is whole, what is wrong and which
command mends it.

Nothing is written there.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

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
from .readers import IMAGE_SUFFIXES, absent, nothing_saved

# Classes, and images to train on, validate and test with, as published with CoOp's splits. A 0 is
# an empty split; ImageNet validates with its test images.
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
    """What there is of a dataset; `wrong` says what is not as it should be, `mend` is the command
    for it."""

    name: str
    state: str = "missing"
    wrong: str = ""
    mend: str = ""
    classes: int | None = None  # unknown if it cannot be read
    images: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        classes, *splits = PUBLISHED[self.name]
        found = "–" if self.classes is None else f"{self.classes:,}"
        counts = f"{len(self.images):,} of {sum(splits):,} images, {found} of {classes:,} classes"
        return "\n  ".join(
            filter(None, (f"{self.name}: {self.state}, {counts}", self.wrong, self.mend))
        )


def dataset_name(name: str) -> str:
    """DATASET.NAME for itself or the name of its config file, in whatever case. Raises
    UsageError."""
    names = {alias.lower(): known for known in PUBLISHED for alias in (known, module_name(known))}
    if name.lower() not in names:
        check_availability(name, PUBLISHED, "dataset")
    return names[name.lower()]


def module_name(name: str) -> str:
    """Of a dataset's file, which is called like its config file."""
    return DATASET_REGISTRY.get(name).__module__.rpartition(".")[2]


def command(tool: str, name: str, root: Path, *flags: str) -> str:
    """What a user types for this data folder."""
    where = () if str(root) == expand_user(datasets.default_root()) else ("--root", str(root))
    return shlex.join(["python", "-m", f"datasets.{tool}", name, *where, *flags])


def examine(name: str, root: Path) -> Finding:
    """A dataset as its own reader sees it, or if that cannot read it, as it lies there."""
    kind = DATASET_REGISTRY.get(name)
    folder = root / kind.dataset_dir
    finding = Finding(name, mend=command("prepare", name, root))
    try:
        with nothing_saved():
            data = load(name, root)
    except (Failure, OSError) as e:
        finding.images = find_images(folder)
        finding.state = "incomplete" if finding.images else "missing"
        explain(finding, kind, root, str(e))
    else:
        splits = (data.train_x, data.val or (), data.test)
        finding.images = list(dict.fromkeys(item.impath for split in splits for item in split))
        finding.classes = data.num_classes
        compare(finding, folder / f"split_zhou_{name}.json")
    return finding


def load(name: str, root: Path) -> Benchmark:
    cfg = get_cfg_default()
    datasets.add_config(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, str(root)
    return DATASET_REGISTRY.get(name)(cfg)


def find_images(folder: Path) -> list[str]:
    """All image files below a folder."""
    found = []
    for path, folders, files in os.walk(folder, followlinks=True):
        deep = len(Path(path).relative_to(folder).parts) >= DEPTH
        folders[:] = [] if deep else [n for n in folders if not n.startswith((".", "__MACOSX"))]
        found += [
            f"{path}/{n}"
            for n in files
            if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith(".")
        ]
    return found


def compare(finding: Finding, split_file: Path) -> None:
    """What was read with what was published."""
    classes, *splits = PUBLISHED[finding.name]
    more, fewer = len(finding.images) - sum(splits), sum(splits) - len(finding.images)
    if fewer > 0 or finding.classes < classes:
        finding.state = "incomplete"
        what = f"{fewer:,} images" + (
            f" and {n:,} whole classes" if (n := classes - finding.classes) > 0 else ""
        )
        finding.wrong = (
            f"{split_file} lacks {what}: it was made of a folder that was not whole"
            if split_file.exists()
            else f"{what} are missing: an archive was extracted only in part, or images were removed"
        )
        return
    finding.state, finding.mend = "found", ""
    if more > 0 or finding.classes > classes:
        finding.wrong = (
            f"{more:,} images more than published: results cannot be compared with others'"
        )


def explain(finding: Finding, kind: type[Benchmark], root: Path, error: str) -> None:
    """Why its reader cannot read it: the causes known, else the reader's own line."""
    folder = root / kind.dataset_dir
    if not folder.is_dir():
        finding.wrong = f"There is no folder {folder}"
        if images := images_alone(root, kind):
            above = ", and the data folder is above it" * (images == root)
            finding.wrong += f", but {images} has the images{above}"
            finding.mend = move_command(images, images.parent / kind.dataset_dir / kind.image_dir)
        elif other := similar_folder(root, kind):
            finding.wrong += f", but {other}"
            finding.mend = shlex.join(["mv", str(other), str(folder)])
        elif root.name == kind.dataset_dir:
            finding.wrong += f": {root} is the dataset's own folder, the data folder is above it"
            finding.mend = command("doctor", finding.name, root.parent)
        return
    for expected in (folder / kind.image_dir / n for n in kind.needed):
        if lies := misplaced(expected, folder, kind.also_called):
            finding.wrong = f"{expected} has to hold the images, but they lie in {lies}"
            finding.mend = move_command(lies, expected)
            return
        if not expected.is_dir():
            finding.wrong = f"There is no folder {expected}"
            return
    split_file = folder / f"split_zhou_{kind.__name__}.json"
    finding.wrong = (
        count_absent(split_file, folder / kind.image_dir) if split_file.exists() else ""
    ) or error


def similar_folder(root: Path, kind: type[Benchmark]) -> Path | None:
    """A folder that is called nearly like the dataset's: "DTD", "oxford-flowers"."""

    def plain(name: str) -> str:
        return name.lower().replace("-", "").replace("_", "")

    names = {plain(n) for n in (kind.dataset_dir, kind.__name__, module_name(kind.__name__))}
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return next(
        (
            f
            for f in folders
            if f.is_dir() and plain(f.name) in names and f.name != kind.dataset_dir
        ),
        None,
    )


def images_alone(root: Path, kind: type[Benchmark]) -> Path | None:
    """The folder of images, as another site's archive has it: in the data folder, or taken for
    that."""
    places = [root / name for name in kind.also_called] + [root] * (root.name in kind.also_called)
    own = (place for place in places if place.is_dir() and not (place / kind.image_dir).is_dir())
    return next((place for place in own if find_images(place)), None)


def misplaced(expected: Path, folder: Path, also_called: Collection[str]) -> Path | None:
    """Where an archive's folder lies that should be `expected`: inside itself, or elsewhere below
    `folder`."""
    names = (expected.name, *also_called)
    if inside := next((expected / name for name in names if (expected / name).is_dir()), None):
        return inside
    if expected.is_dir():
        return None
    found = (
        p
        for depth in range(DEPTH - 1)
        for name in names
        for p in sorted(folder.glob("*/" * depth + name))
    )
    own = (
        path
        for path in found
        if not any(n.startswith((".", "__MACOSX")) for n in path.relative_to(folder).parts)
    )
    # It may be `expected` itself, that another process has just made.
    return next(
        (path for path in own if path != expected and path.is_dir() and find_images(path)), None
    )


def move_command(lies: Path, expected: Path) -> str:
    def quoted(path: Path) -> str:
        return shlex.quote(str(path))

    if lies.parent == expected:  # what is left would be taken for a class
        return f"mv {quoted(lies)}/* {quoted(expected)}/ && rmdir {quoted(lies)}"
    if lies.parent in expected.parents:  # imagenet/train, to be imagenet/images/train
        return f"mkdir -p {quoted(expected.parent)} && mv {quoted(lies)} {quoted(expected)}"
    return f"mv {quoted(lies.parent)}/* {quoted(expected.parent)}/"  # with the annotation that lies beside it


def count_absent(split_file: Path, images: Path) -> str:
    """How many images a split file names that are not there; "" if none or it is no split file."""
    try:
        items = [item for split in read_lists(split_file, SPLITS, images) for item in split]
    except Failure:
        return ""
    gone = list(absent(items))
    return (
        f"{split_file} names {len(gone):,} images that are not there, the first is {gone[0]}"
        if gone
        else ""
    )


def broken_images(paths: list[str], name: str) -> list[str]:
    """Those of the images that cannot be opened, each opened whole."""
    with ProcessPoolExecutor() as pool:
        results = tqdm(
            pool.map(is_broken, paths, chunksize=64), total=len(paths), desc=name, disable=None
        )
        return [path for path, broken in zip(paths, results, strict=True) if broken]


def is_broken(path: str) -> bool:
    try:
        read_image(path)
    except Failure:
        return True
    return False


def look_inside(finding: Finding, root: Path) -> None:
    """Opens every image."""
    if finding.images and (broken := broken_images(finding.images, finding.name)):
        some = ", ".join(broken[:NAMED]) + (", …" if len(broken) > NAMED else "")
        line = f"{len(broken):,} images cannot be opened: {some}"
        finding.wrong = f"{finding.wrong}. {line}" if finding.wrong else line
        if finding.state == "found":
            finding.state, finding.mend = (
                "incomplete",
                command("prepare", finding.name, root, "--again"),
            )


def report(findings: Iterable[Finding]) -> str:
    """A table, and below it what is wrong."""
    rows, notes = [], []
    for f in findings:
        classes, *splits = PUBLISHED[f.name]
        found = None if f.classes is None else f"{f.classes:,}"
        rows.append(
            (f.name, f.state, f"{len(f.images):,}", f"{sum(splits):,}", found, f"{classes:,}")
        )
        if f.wrong:
            notes.append("\n  ".join(filter(None, (f"{f.name}: {f.wrong}", f.mend))))
    headers = ("dataset", "state", "images", "published", "classes", "published")
    align = ("left", "left", *["right"] * 4)
    table = tabulate(rows, headers, colalign=align, disable_numparse=True, missingval="–")
    return "\n\n".join(filter(None, (table, "\n".join(notes))))


def run(args: argparse.Namespace) -> int:
    root = Path(expand_user(args.root))
    names = list(dict.fromkeys(map(dataset_name, args.names))) or list(PUBLISHED)
    findings = [examine(name, root) for name in names]
    if args.deep:
        for finding in findings:
            look_inside(finding, root)
    print(plain(report(findings), keep="\n"))
    return int(bool(args.names) and any(f.state != "found" for f in findings))


def main(argv: list[str] | None = None) -> int:
    tolerate_encoding()
    p = OneLineParser("python -m datasets.doctor", description=__doc__)
    p.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="DATASET.NAME or config file (default: all fifteen)",
    )
    p.add_argument(
        "--root",
        default=datasets.default_root(),
        help="folder that holds all datasets (default: DATA, or data)",
    )
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
