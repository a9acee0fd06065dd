"""Says whether the data folder has each dataset whole, and which command mends it.

Nothing is written there.
"""

import argparse
import os
import shlex
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from itertools import chain
from pathlib import Path
from shlex import quote

from tabulate import tabulate
from tqdm import tqdm

import datasets
from dassl.commands import OneLineParser, command_line, plain
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import (
    Failure,
    UsageError,
    check_availability,
    expand_user,
    print_error,
    read_image,
    tolerate_any_text,
)

from .benchmark import SPLITS, Benchmark, read_lists
from .image_folder import ImageFolder
from .own_doctor import advice, tell
from .own_images import Problems
from .places import find_images, images_alone, misplaced, module_name, move_command, similar_folder
from .readers import absent, nothing_saved, some
from .shapes import DrawnBenchmark

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
NAMED = 10  # broken images that are named
REPLACE = "Replace them; or remove them, and the split file and split_fewshot for a new split"


@dataclass
class Finding:
    """The state of one dataset."""

    name: str
    state: str = "missing"  # or incomplete, found, "not drawn yet"
    wrong: str = ""  # what is not as it should be
    mend: str = ""  # the command for it
    classes: int | None = None  # unknown if it cannot be read
    images: list[str] = field(default_factory=list)
    table: str = ""  # of one's own images: each class

    @property
    def whole(self) -> bool:
        """Whether a run can be made; what is drawn on first use needs nothing."""
        return self.state in ("found", "not drawn yet")

    @property
    def counts(self) -> list[str]:
        """Images, images published, classes, classes published."""
        known = published(self.name)
        classes, images = (known[0], sum(known[1:])) if known else (None, None)
        numbers = (len(self.images), images, self.classes, classes)
        return ["–" if n is None else f"{n:,}" for n in numbers]

    @property
    def line(self) -> str:
        """What `prepare` says in the end."""
        counts = "{} of {} images, {} of {} classes".format(*self.counts).replace(" of –", "")
        return self.with_mend(f"{self.name}: {self.state}, {counts}", self.wrong)

    def with_mend(self, *lines: str) -> str:
        """These lines and the command, where there are any."""
        return "\n  ".join(filter(None, (*lines, self.mend)))


def published(name: str) -> tuple[int, ...] | None:
    """Classes and images of each split; None where nobody knows, as of one's own images."""
    kind = DATASET_REGISTRY.get(name)
    if issubclass(kind, DrawnBenchmark):
        classes = len(kind.classes())
        return classes, *(classes * n for n in kind.parts.values())
    return PUBLISHED.get(name)


def dataset_name(name: str) -> str:
    """DATASET.NAME, of itself or of its config file, in any case. Raises UsageError."""
    kinds = map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())
    names = {kind.__name__: kind for kind in kinds if issubclass(kind, Benchmark)}
    known = {module_name(known): known for known in names}
    known |= {kind.dataset_dir: known for known, kind in names.items() if kind.dataset_dir}
    known |= {known.lower(): known for known in names}
    if name.lower() not in known:
        if os.path.isdir(name):
            remedy = f"for your own images give image_folder --root {quote(name)}"
            raise UsageError(f"{name} is a folder and no dataset's name: {remedy}")
        check_availability(name, names, "dataset")
    return known[name.lower()]


def command(tool: str, name: str, root: Path, *flags: str) -> str:
    """What a user types for this data folder."""
    if str(root) != expand_user(datasets.default_root()):
        flags = ("--root", str(root), *flags)
    return shlex.join(["python", "-m", f"datasets.{tool}", name, *flags])


def examine(name: str, root: Path) -> Finding:
    """Reads a dataset as a run would; if that fails, looks at what lies there."""
    kind = DATASET_REGISTRY.get(name)
    folder = root / kind.dataset_dir
    if kind is ImageFolder:
        return examine_own(root)
    finding = Finding(name, mend=command("prepare", name, root) if published(name) else "")
    if issubclass(kind, DrawnBenchmark) and not split_file(folder, name).exists():
        finding.state, finding.wrong = "not drawn yet", "a run draws it, or at once"
        return finding
    try:
        data = read(name, root)
    except (Failure, OSError) as e:
        finding.images = list(find_images(folder))
        finding.state = "incomplete" if finding.images else "missing"
        explain(finding, kind, root, str(e))
    else:
        found(finding, data)
        compare(finding, split_file(folder, name))
    return finding


def examine_own(root: Path) -> Finding:
    """Reads one's own images; what a run would say of them is said here."""
    finding, said = Finding("ImageFolder"), StringIO()
    try:
        with redirect_stdout(said):
            data = read(finding.name, root)
    except (Failure, OSError) as e:
        finding.images = list(find_images(root))
        finding.state = "incomplete" if root.is_dir() else "missing"
        lines = e.lines if isinstance(e, Problems) else [str(e).removeprefix("ImageFolder: ")]
        finding.wrong = "\n  ".join(lines)
    else:
        found(finding, data)
        finding.table = tell(data)
        finding.wrong = "\n  ".join([*said.getvalue().splitlines(), *advice(data)])
    return finding


def read(name: str, root: Path) -> Benchmark:
    """What a run would read; nothing is saved but what is drawn. Raises Failure or OSError."""
    cfg = get_cfg_default()
    datasets.add_config(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT = name, str(root)
    with nothing_saved():
        return DATASET_REGISTRY.get(name)(cfg)


def found(finding: Finding, data: Benchmark) -> None:
    """Notes that the dataset could be read, and what of."""
    items = chain(data.train_x, data.val or (), data.test)
    finding.images = list(dict.fromkeys(item.impath for item in items))
    finding.state, finding.classes = "found", data.num_classes


def split_file(folder: Path, name: str) -> Path:
    """Benchmark.split_file, of one that cannot be read too."""
    return folder / f"split_zhou_{name}.json"


def compare(finding: Finding, split: Path) -> None:
    """What was read with what was published."""
    if not published(finding.name):
        return
    classes, *splits = published(finding.name)
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
    broken = sorted(path for path, bad in zip(paths, results, strict=True) if bad)
    if not broken:
        return
    line = f"{len(broken):,} images cannot be opened: {some(broken, NAMED)}"
    finding.wrong = "\n  ".join(filter(None, (finding.wrong, line)))
    if finding.state == "found":
        finding.state = "incomplete"
        if published(finding.name):
            finding.mend = command("prepare", finding.name, root, "--again")
        else:
            finding.mend = REPLACE


def report(findings: list[Finding]) -> str:
    """A table, and below it what is wrong."""
    rows = [(f.name, f.state, *f.counts) for f in findings]
    headers = ("dataset", "state", "images", "published", "classes", "published")
    align = ("left", "left", *["right"] * 4)
    table = tabulate(rows, headers, colalign=align, disable_numparse=True)
    tables = [f.table for f in findings if f.table]
    notes = [f.with_mend(f"{f.name}: {f.wrong}") for f in findings if f.wrong]
    return "\n\n".join(filter(None, (table, *tables, "\n".join(notes))))


def run(args: argparse.Namespace) -> int:
    """The exit code."""
    root = Path(expand_user(args.root))
    names = list(dict.fromkeys(map(dataset_name, args.names))) or list(PUBLISHED)
    findings = [examine(name, root) for name in names]
    if args.deep:
        for finding in findings:
            open_all(finding, root)
    print(plain(report(findings), keep="\n"))
    return int(bool(args.names) and any(not f.whole for f in findings))


def add_root(p: argparse.ArgumentParser) -> None:
    """The flag --root."""
    text = "folder of all datasets, or of your image_folder (default: DATA, or data)"
    p.add_argument("--root", default=datasets.default_root(), help=text)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    tolerate_any_text()
    p = OneLineParser("python -m datasets.doctor", description=__doc__)
    text = (
        "DATASET.NAME or config file, image_folder for your own (default: the fifteen benchmarks)"
    )
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
    command_line(main)
