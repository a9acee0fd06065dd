"""What the benchmarks share: split files, few-shot files, base and new classes."""

import math
import os
import random
from collections.abc import Iterable
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import UsageError, check_availability, listdir_nohidden, read_json, write_json
from dassl.utils.errors import Failure

SPLIT_SEED = 1  # a made split is the same for all runs' seeds, so that they share a test set
Splits = tuple[list[Datum], list[Datum], list[Datum]]


class Benchmark(DatasetBase):
    """A dataset with a split file in the family's form, few-shot training, and base and new classes.

    A subclass names its folder (`dataset_dir`) and the folder below it that paths in its split file start from
    (`image_dir`), and says in `make_split` how its images are split when there is no split file.
    """

    image_dir = ""

    def __init__(self, cfg: CfgNode):
        """Raises Failure or UsageError with one line for a folder that is missing or wrong."""
        check_availability(cfg.DATASET.SUBSAMPLE_CLASSES, SUBSETS, "DATASET.SUBSAMPLE_CLASSES")
        self.root = Path(cfg.DATASET.ROOT).expanduser().absolute()
        self.folder = self.root / self.dataset_dir
        self.images = self.folder / self.image_dir
        self.prepare()
        train, val, test = self.read_or_make_split()
        if cfg.DATASET.NUM_SHOTS >= 1:
            train, val = self.few_shots(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        train, val, test = subsample_classes(train, val, test, subset=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    def prepare(self) -> None:
        """Make sure that the images are there."""
        if not self.images.is_dir():
            raise Failure(
                f"{type(self).__name__}: no folder {self.images}. Put the dataset there or set DATA (--root) to the "
                "folder that holds all datasets. The bundled `shapes` needs no data"
            )

    @property
    def split_file(self) -> Path:
        return self.folder / f"split_zhou_{type(self).__name__}.json"

    def read_or_make_split(self) -> Splits:
        """(train, val, test) from the split file; made and saved if there is none."""
        if not self.split_file.exists():
            write_split(self.split_file, self.make_split(random.Random(SPLIT_SEED)), self.images)
        return read_split(self.split_file, self.images)

    def make_split(self, rng: random.Random) -> Splits:
        """By default 50/20/30 of each class folder of `images`."""
        return split_50_20_30(read_class_folders(self.images), rng)

    def few_shots(self, train: list[Datum], val: list[Datum], shots: int, seed: int) -> tuple[list[Datum], list[Datum]]:
        """The run's few-shot training and validation images, the same for a seed."""
        cached = self.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"
        if cached.exists():
            return read_lists(cached, ("train", "val"), self.images)
        train = self.generate_fewshot_dataset(train, num_shots=shots)
        val = self.generate_fewshot_dataset(val, num_shots=min(shots, 4))
        if seed >= 0:
            write_json({"train": to_rows(train, self.images), "val": to_rows(val, self.images)}, str(cached))
        return train, val


SUBSETS = ("all", "base", "new")


def subsample_classes(*splits: list[Datum], subset: str = "all") -> list[list[Datum]]:
    """Of the labels in the first split, sorted, the first half (rounded up: base) or the rest (new), numbered from 0."""
    if subset == "all":
        return list(splits)
    labels = sorted({item.label for item in splits[0]})
    half = math.ceil(len(labels) / 2)
    chosen = labels[:half] if subset == "base" else labels[half:]
    number = {label: i for i, label in enumerate(chosen)}
    return [
        [Datum(d.impath, number[d.label], d.domain, d.classname) for d in split if d.label in number]
        for split in splits
    ]


def to_rows(items: Iterable[Datum], images: Path) -> list[list]:
    """[path below images, label, class name] of each item."""
    return [[Path(d.impath).relative_to(images).as_posix(), d.label, d.classname] for d in items]


def write_split(path: Path, splits: Splits, images: Path) -> None:
    write_json(
        {name: to_rows(s, images) for name, s in zip(("train", "val", "test"), splits, strict=True)},
        str(path),
    )


def read_lists(path: Path, names: Iterable[str], images: Path) -> tuple[list[Datum], ...]:
    """Lists of Datums in a file of the family's form, in its order.

    Raises: Failure naming the file if it has another form.
    """
    content = read_json(str(path))
    try:
        # A split written on Windows has backslashes.
        return tuple(
            [
                Datum(os.path.join(images, p.replace("\\", "/")), int(label), classname=c)
                for p, label, c in content[name]
            ]
            for name in names
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise Failure(f"{path}: not a split file ({e!r}); remove it and it is made again") from e


def read_split(path: Path, images: Path) -> Splits:
    """(train, val, test), whose images must all be there.

    Raises: Failure naming the first missing image.
    """
    splits = read_lists(path, ("train", "val", "test"), images)
    present: dict[str, set[str]] = {}
    for item in (item for split in splits for item in split):
        folder, name = os.path.split(item.impath)
        if folder not in present:  # one listing a folder, not one look-up an image
            present[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in present[folder]:
            raise Failure(
                f"{path} names {item.impath}, which is not there: extract the images again, or remove the file"
            )
    return splits


def read_class_folders(images: Path) -> list[Datum]:
    """All images of a folder of class folders, both sorted; class names are the folders'."""
    classes = [c for c in listdir_nohidden(str(images), sort=True) if (images / c).is_dir()]
    items = [
        Datum(str(images / c / name), label, classname=c)
        for label, c in enumerate(classes)
        for name in listdir_nohidden(str(images / c), sort=True)
    ]
    if not items:
        raise UsageError(f"{images} holds no class folders with images")
    return items


def split_50_20_30(items: list[Datum], rng: random.Random) -> Splits:
    """Per class after a shuffle: round(.5n) train, round(.2n) val, the rest test."""
    splits: Splits = ([], [], [])
    for group in DatasetBase.split_dataset_by_label(items).values():
        group = rng.sample(group, len(group))
        a = round(0.5 * len(group))
        b = a + round(0.2 * len(group))
        for split, part in zip(splits, (group[:a], group[a:b], group[b:]), strict=True):
            split.extend(part)
    return splits
