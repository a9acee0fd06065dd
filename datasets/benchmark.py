"""What the benchmarks share: split files, few-shot files, base and new classes."""

import gc
import math
import os
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import check_availability, expand_user, read_json, write_json
from dassl.utils.errors import Failure, UsageError

from .pickles import read_pickle
from .readers import EXTRACT, check_present, class_folders, read_class_folders, save_cache

SPLIT_SEED = 1  # a made split is the same for all runs' seeds, so that they share a test set
SPLITS = ("train", "val", "test")
# What other kinds of datasets are told by the config, with its defaults: domains, unlabeled images.
NO_EFFECT = {"SOURCE_DOMAINS": (), "TARGET_DOMAINS": (), "NUM_LABELED": -1, "ALL_AS_UNLABELED": False, "STL10_FOLD": -1,
             "CIFAR_C_TYPE": ""}  # fmt: skip
Splits = tuple[list[Datum], list[Datum], list[Datum]]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Inside, nothing looks for cycles again and again among a million objects that all stay: twice
    as fast."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Benchmark(DatasetBase):
    """A dataset with a split file in the family's form, few-shot training, and base and new
    classes.

    A subclass names its folder (`dataset_dir`) and the folder below it that paths in its split file
    start from (`image_dir`), and says in `classes` or in `make_split` what its images are when
    there is no split file.
    """

    image_dir = ""
    needed: Collection[str] = ("",)  # folders below image_dir without which nothing works
    new_names: Mapping[str, str] = {}  # class names that are not those of their folders
    no_classes: Collection[str] = ()  # folders among the class folders that are none
    few_shot_splits = ("train", "val")  # what is picked from
    equal_names = False  # whether two classes may be called the same
    also_called: Collection[str] = ()  # image_dir in other sites' archives
    restore = EXTRACT  # what to do about images that a split file names and that are not there
    remedy = (
        "Put the dataset there or set DATA (--root) to the folder that holds all datasets. "
        "The bundled `shapes` needs no data"
    )

    @collector_paused()
    def __init__(self, cfg: CfgNode):
        """Raises Failure or UsageError with one line for a folder that is missing or wrong."""
        subset = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        check_availability(subset, SUBSETS, "DATASET.SUBSAMPLE_CLASSES")
        for key, usual in NO_EFFECT.items():
            if cfg.DATASET.get(key, usual) != usual:
                raise UsageError(
                    f"DATASET.{key} {cfg.DATASET[key]}: has no effect on {type(self).__name__}; leave it out"
                )
        self.root = Path(expand_user(cfg.DATASET.ROOT)).absolute()
        self.folder = Path(expand_user(self.root / self.dataset_dir))
        self.images = self.folder / self.image_dir
        self.prepare()
        train, val, test = self.load(cfg)
        super().__init__(train_x=train, val=val, test=test)

    def prepare(self) -> None:
        """Make sure that the images are there."""
        for folder in (self.images / name for name in self.needed):
            if not folder.is_dir():
                raise Failure(f"{type(self).__name__}: no folder {folder}. {self.remedy}")

    def load(self, cfg: CfgNode) -> Splits:
        """The images of this run."""
        train, val, test = self.read_or_make_split()
        names = {item.label: item.classname for item in train}
        check_names(names, self.equal_names)
        say_classes_without("validation", names, val)
        say_classes_without("test", names, test)
        if cfg.DATASET.NUM_SHOTS >= 1:
            train, val = self.few_shots(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        subset = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        if subset == "new" and len(names) == 1:
            raise UsageError(
                f"{cfg.DATASET.NAME} has one class, a base class: there are no new ones to take"
            )
        return subsample_classes(train, val, test, subset=subset)

    @property
    def split_file(self) -> Path:
        return self.folder / f"split_zhou_{type(self).__name__}.json"

    def read_or_make_split(self) -> Splits:
        """(train, val, test) from the split file; made and saved if there is none."""
        if self.split_file.exists():
            return read_split(self.split_file, self.images, self.restore)
        try:
            splits = self.make_split(random.Random(SPLIT_SEED))
        except (LookupError, ValueError) as e:
            raise Failure(
                f"The annotation files in {self.folder} do not fit together ({e!r}): get them again"
            ) from e
        for split in splits:
            check_present(split, f"The annotation of {self.folder}")
        save_cache(to_lists(SPLITS, splits, self.images), self.split_file)
        return splits

    def make_split(self, rng: random.Random) -> Splits:
        """By default 50/20/30 of each class folder of `images`."""
        return split_50_20_30(read_class_folders(self.images, self.classes()), rng)

    def classes(self) -> dict[str, str]:
        """{class folder: class name} in the order of the labels."""
        return {
            c: self.new_names.get(c, c)
            for c in class_folders(self.images)
            if c not in self.no_classes
        }

    def datum(self, path: str, label: int, classname: str) -> Datum:
        """An image by its path below `images`."""
        return Datum(f"{self.images}/{path}", label, classname=classname)

    def few_shots(
        self, train: list[Datum], val: list[Datum], shots: int, seed: int
    ) -> tuple[list[Datum], list[Datum]]:
        """The run's few-shot training and validation images, the same for a seed: upstream's if it
        has picked some."""
        whole = dict(zip(self.few_shot_splits, (train, val), strict=False))
        numbers = {"train": shots, "val": min(shots, 4)}
        source = self.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
        cached = source.with_suffix(".json")
        if source.exists():
            picks = read_pickle(source, whole, self.folder)
        elif cached.exists():
            source, picks = cached, read_lists(cached, whole, self.images)
        else:
            picks = [
                self.generate_fewshot_dataset(split, num_shots=numbers[name])
                for name, split in whole.items()
            ]
            if seed >= 0:
                save_cache(to_lists(whole, picks, self.images), cached)
        few = {
            name: find(items, whole[name], source, numbers[name])
            for name, items in zip(whole, picks, strict=True)
        }
        return few["train"], few.get("val", val)


SUBSETS = ("all", "base", "new")


def subsample_classes(*splits: list[Datum], subset: str = "all") -> list[list[Datum]]:
    """Of the first split's labels, sorted, the first half (rounded up: base) or the rest (new),
    numbered from 0."""
    if subset == "all":
        return list(splits)
    labels = sorted({item.label for item in splits[0]})
    half = math.ceil(len(labels) / 2)
    chosen = labels[:half] if subset == "base" else labels[half:]
    number = {label: i for i, label in enumerate(chosen)}
    return [
        [
            Datum(d.impath, number[d.label], d.domain, d.classname)
            for d in split
            if d.label in number
        ]
        for split in splits
    ]


def find(picks: Iterable[Datum], split: Iterable[Datum], source: Path, shots: int) -> list[Datum]:
    """The split's own items that were picked, `shots` of each class if it has so many, in the order
    of the picks.

    Raises: Failure, naming `source`, for an image that the split does not have, or has under
        another label, and for
    a class with fewer or more. Picks from another split are among this one's test images.
    """
    remedy = "Put the split file back that it was made with, or remove it for new picks"
    items = {item.impath: item for item in split}
    for pick in picks:
        if pick.impath not in items or items[pick.impath].label != pick.label:
            line = f"{source} picks {pick.impath} for class {pick.label}, which is no such image of this split"
            raise Failure(f"{line}. {remedy}")
    different = Counter({pick.impath: pick.label for pick in picks}.values())
    picked = Counter(pick.label for pick in picks)
    for label, there in Counter(item.label for item in items.values()).items():
        if not different[label] == picked[label] == min(there, shots):
            line = (
                f"{source} picks {different[label]} images of class {label} ({picked[label]} lines)"
            )
            raise Failure(f"{line}, not {min(there, shots)}. {remedy}")
    return [items[pick.impath] for pick in picks]


def check_names(names: Mapping[int, str], equal: bool = False) -> None:
    """Raises Failure for a class without a name, and unless they may be `equal` for two that no
    prompt tells apart.

    `names` are {label: class name}.
    """
    labels: dict[str, int] = {}
    for label, name in names.items():
        words = " ".join(name.replace("_", " ").lower().split())
        if not words:
            raise Failure(
                f"The class {label} has no name: give it one in the split file or classnames.txt"
            )
        if not equal and (other := labels.setdefault(words, label)) != label:
            raise Failure(
                f'The classes {other} and {label} are both called "{name}": rename one, or make them one'
            )


def say_classes_without(what: str, names: Mapping[int, str], split: Iterable[Datum]) -> None:
    """A line about the classes that have images to train on and none in a split; `names` are
    {label: class name}."""
    if without := sorted(names.keys() - {item.label for item in split}):
        some = ", ".join(names[label] for label in without[:5]) + ", …" * (len(without) > 5)
        print(
            f"{len(without):,} of {len(names):,} classes have no {what} images and do not count there: {some}"
        )


def to_lists(
    names: Iterable[str], splits: Iterable[list[Datum]], images: Path
) -> dict[str, list[list]]:
    """{name: [[path below images, label, class name], …]}, the family's form."""
    return {
        name: [[os.path.relpath(d.impath, images), d.label, d.classname] for d in split]
        for name, split in zip(names, splits, strict=True)
    }


def write_split(path: Path, splits: Splits, images: Path) -> None:
    write_json(to_lists(SPLITS, splits, images), str(path))


def read_lists(path: Path, names: Iterable[str], images: Path) -> tuple[list[Datum], ...]:
    """Lists of Datums in a file of the family's form, in its order.

    Raises: Failure naming the file if it has another form.
    """

    def datum(name: str, label: int, classname: str) -> Datum:
        if not isinstance(classname, str):
            raise TypeError(f"class name {classname!r}")
        # A split written on Windows has backslashes; elsewhere a file's own name may have some.
        if "\\" in name and not os.path.exists(os.path.join(images, name)):
            name = name.replace("\\", "/")
        return Datum(os.path.join(images, name), int(label), classname=classname)

    content = read_json(str(path))
    try:
        return tuple([datum(*item) for item in content[name]] for name in names)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise Failure(f"{path}: not a split file ({e!r}); remove it and it is made again") from e


def read_split(path: Path, images: Path, restore: str = EXTRACT) -> Splits:
    """(train, val, test), whose images must all be there. Says if some are to train on and to test
    with.

    Raises: Failure naming the first missing image.
    """
    splits = read_lists(path, SPLITS, images)
    for split in splits:
        check_present(split, path, restore)
    if both := {item.impath for item in splits[0]} & {item.impath for item in splits[2]}:
        print(
            f"{path}: {len(both):,} images are to train on and to test with as well, the first is {min(both)}"
        )
    return splits


def split_50_20_30(items: list[Datum], rng: random.Random) -> Splits:
    """Per class after a shuffle: round(.5n) train, round(.2n) val, the rest test; one of each if
    there are three.

    Raises: Failure for a class that has none to train on.
    """
    train, val, test = cut(items, rng, 0.5, 0.2)
    if without := {d.label: d for d in items}.keys() - {d.label for d in train}:
        alone = next(d for d in items if d.label in without)
        raise Failure(
            f'The class "{alone.classname}" has only the image {alone.impath}, a split needs 2: add some'
        )
    return train, val, test


def split_80_20(items: list[Datum], rng: random.Random) -> tuple[list[Datum], list[Datum]]:
    """(train, val). Per class after a shuffle the first round(.2n) are val."""
    val, train = cut(items, rng, 0.2)
    return train, val


def cut(items: list[Datum], rng: random.Random, *shares: float) -> tuple[list[Datum], ...]:
    """Parts with these rounded shares of each class after a shuffle, and a last one with what is
    left.

    No part takes the last images of those behind it: 3 images are 1, 1 and 1, not 2, 1 and 0.
    """
    parts = tuple([] for _ in (*shares, None))
    for group in DatasetBase.split_dataset_by_label(items).values():
        left = rng.sample(group, len(group))
        for i, (part, share) in enumerate(zip(parts, shares, strict=False)):
            n = min(round(share * len(group)), max(1, len(left) - len(shares) + i))
            part.extend(left[:n])
            left = left[n:]
        parts[-1].extend(left)
    return parts
