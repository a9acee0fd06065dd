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
from dassl.utils import check_availability, expand_user, read_json
from dassl.utils.errors import Failure, UsageError

from .pickles import read_pickle
from .readers import EXTRACT, check_present, class_folders, read_class_folders, save_cache, some

SPLIT_SEED = 1  # not the run's: all runs share a test set
SPLITS = ("train", "val", "test")
SUBSETS = ("all", "base", "new")
# Keys and defaults for other kinds of datasets: domains, unlabeled images.
NO_EFFECT = {"SOURCE_DOMAINS": (), "TARGET_DOMAINS": (), "NUM_LABELED": -1}
NO_EFFECT |= {"ALL_AS_UNLABELED": False, "STL10_FOLD": -1, "CIFAR_C_TYPE": ""}
Splits = tuple[list[Datum], list[Datum], list[Datum]]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without garbage collection: a million objects that stay are made twice as fast."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Benchmark(DatasetBase):
    """A dataset with CoOp's split file, few-shot training, and base and new classes.

    A subclass names its folder (`dataset_dir`) and in it the folder that paths in its split
    file start from (`image_dir`). Without a split file, `classes` or `make_split` says what
    its images are.
    """

    image_dir = ""
    needed: Collection[str] = ("",)  # folders below image_dir that must be there
    new_names: Mapping[str, str] = {}  # {class folder: name}, where they differ
    no_classes: Collection[str] = ()  # folders among the class folders that are none
    few_shot_splits = ("train", "val")  # what is picked from
    equal_names = False  # whether two classes may have the same name
    also_called: Collection[str] = ()  # image_dir in other sites' archives
    restore = EXTRACT  # what to do about images of the split file that are not there
    remedy = (
        "Put the dataset there or set DATA (--root) to the folder that holds all datasets. "
        "The bundled `shapes` needs no data"
    )

    @collector_paused()
    def __init__(self, cfg: CfgNode):
        """Raises Failure or UsageError for a folder that is missing or wrong."""
        self.subset = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        check_availability(self.subset, SUBSETS, "DATASET.SUBSAMPLE_CLASSES")
        for key, default in NO_EFFECT.items():
            if (value := cfg.DATASET.get(key, default)) != default:
                line = f"DATASET.{key} {value}: has no effect on {type(self).__name__}"
                raise UsageError(f"{line}; leave it out")
        self.root = Path(expand_user(cfg.DATASET.ROOT)).absolute()
        self.folder = Path(expand_user(self.root / self.dataset_dir))
        self.images = self.folder / self.image_dir
        self.prepare()
        train, val, test = self.load(cfg)
        super().__init__(train_x=train, val=val, test=test)

    def prepare(self) -> None:
        """Makes sure that the images are there. Raises Failure."""
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
        if self.subset == "new" and len(names) == 1:
            line = "has one class, a base class: there are no new ones to take"
            raise UsageError(f"{cfg.DATASET.NAME} {line}")
        return subsample_classes(train, val, test, subset=self.subset)

    @property
    def split_file(self) -> Path:
        """It is called as CoOp's authors call theirs."""
        return self.folder / f"split_zhou_{type(self).__name__}.json"

    def read_or_make_split(self) -> Splits:
        """(train, val, test) from the split file; made and saved if there is none."""
        if self.split_file.exists():
            return read_split(self.split_file, self.images, self.restore)
        try:
            splits = self.make_split(random.Random(SPLIT_SEED))
        except (LookupError, ValueError) as e:
            line = f"The annotation files in {self.folder} do not fit together ({e!r})"
            raise Failure(f"{line}: get them again") from e
        for split in splits:
            check_present(split, f"The annotation of {self.folder}")
        save_cache(to_lists(SPLITS, splits, self.images), self.split_file)
        return splits

    def make_split(self, rng: random.Random) -> Splits:
        """By default 50/20/30 of each class folder of `images`."""
        return split_50_20_30(read_class_folders(self.images, self.classes()), rng)

    def classes(self) -> dict[str, str]:
        """{class folder: class name} in the order of the labels."""
        folders = class_folders(self.images)
        classes = [name for name in folders if name not in self.no_classes]
        return {name: self.new_names.get(name, name) for name in classes}

    def datum(self, path: str, label: int, classname: str) -> Datum:
        """An image by its path below `images`."""
        return Datum(f"{self.images}/{path}", label, classname=classname)

    def few_shots(
        self, train: list[Datum], val: list[Datum], shots: int, seed: int
    ) -> tuple[list[Datum], list[Datum]]:
        """The run's few-shot training and validation images, the same for a seed.

        They are upstream's if its file is there, else ours, which are saved when first picked.
        """
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


def subsample_classes(*splits: list[Datum], subset: str = "all") -> list[list[Datum]]:
    """The splits' images of base or new classes, labels numbered from 0.

    Base is the first half of the first split's labels, rounded up; new is the rest.
    """
    if subset == "all":
        return list(splits)
    labels = sorted({item.label for item in splits[0]})
    half = math.ceil(len(labels) / 2)
    chosen = labels[:half] if subset == "base" else labels[half:]
    number = {label: i for i, label in enumerate(chosen)}

    def renumbered(split: list[Datum]) -> list[Datum]:
        taken = (d for d in split if d.label in number)
        return [Datum(d.impath, number[d.label], d.domain, d.classname) for d in taken]

    return [renumbered(split) for split in splits]


def find(picks: Iterable[Datum], split: Iterable[Datum], source: Path, shots: int) -> list[Datum]:
    """The split's own items that were picked, in the order of the picks.

    Raises: Failure, naming `source`, for an image that the split does not have under this
        label: those of another split could be test images here. Also for a class without
        `shots` different images, or as many as it has.
    """
    hint = "Put the split file back that it was made with, or remove it for new picks"
    items = {item.impath: item for item in split}
    for pick in picks:
        if pick.impath not in items or items[pick.impath].label != pick.label:
            line = f"{source} picks {pick.impath} for class {pick.label}"
            raise Failure(f"{line}, which is no such image of this split. {hint}")
    different = Counter({pick.impath: pick.label for pick in picks}.values())
    picked = Counter(pick.label for pick in picks)
    for label, there in Counter(item.label for item in items.values()).items():
        if not different[label] == picked[label] == min(there, shots):
            line = f"{source} picks {different[label]} images of class {label}"
            line += f" ({picked[label]} lines), not {min(there, shots)}"
            raise Failure(f"{line}. {hint}")
    return [items[pick.impath] for pick in picks]


def check_names(names: Mapping[int, str], equal: bool = False) -> None:
    """Raises Failure for a class without a name, and unless `equal` for two of one name.

    `names` are {label: class name}.
    """
    labels: dict[str, int] = {}
    for label, name in names.items():
        words = " ".join(name.replace("_", " ").lower().split())
        if not words:
            line = f"The class {label} has no name"
            raise Failure(f"{line}: give it one in the split file or classnames.txt")
        if not equal and (other := labels.setdefault(words, label)) != label:
            line = f'The classes {other} and {label} are both called "{name}"'
            line += ": rename one, or make them one"
            same = f'"{names[other]}" is no other name, upper case and _ are not told apart'
            raise Failure(line + f" ({same})" * (names[other] != name))


def say_classes_without(what: str, names: Mapping[int, str], split: list[Datum]) -> None:
    """Prints which classes have no images in a split; `names` are {label: class name}."""
    without = sorted(names.keys() - {item.label for item in split})
    if without:
        line = f"{len(without):,} of {len(names):,} classes have no {what} images"
        which = some([names[label] for label in without], 5)
        print(f"{line} and do not count there: {which}")


def to_lists(
    names: Iterable[str], splits: Iterable[list[Datum]], images: Path
) -> dict[str, list[list]]:
    """{name: [[path below images, label, class name], …]}, as in CoOp's split files."""
    return {
        name: [[os.path.relpath(d.impath, images), d.label, d.classname] for d in split]
        for name, split in zip(names, splits, strict=True)
    }


def read_lists(path: Path, names: Iterable[str], images: Path) -> tuple[list[Datum], ...]:
    """The lists of these names in a file of that form, in its order.

    Raises: Failure naming the file if it has another form.
    """

    def datum(name: str, label: int, classname: str) -> Datum:
        if not isinstance(classname, str):
            raise TypeError(f"class name {classname!r}")
        # Written on Windows; elsewhere a file's own name may have backslashes.
        if "\\" in name and not os.path.exists(os.path.join(images, name)):
            name = name.replace("\\", "/")
        return Datum(os.path.join(images, name), int(label), classname=classname)

    content = read_json(str(path))
    try:
        return tuple([datum(*item) for item in content[name]] for name in names)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        line = f"{path}: not a split file ({e!r})"
        raise Failure(f"{line}; remove it and it is made again") from e


def read_split(path: Path, images: Path, restore: str = EXTRACT) -> Splits:
    """(train, val, test); prints if images are both to train on and to test with.

    Raises: Failure naming the first image that is missing, and the remedy `restore`.
    """
    splits = read_lists(path, SPLITS, images)
    for split in splits:
        check_present(split, path, restore)
    train, _, test = ({item.impath for item in split} for split in splits)
    if both := train & test:
        line = f"{path}: {len(both):,} images are to train on and to test with as well"
        print(f"{line}, the first is {min(both)}")
    return splits


def split_50_20_30(items: list[Datum], rng: random.Random) -> Splits:
    """Per class after a shuffle: round(.5n) train, round(.2n) val, the rest test.

    A class of three has one of each. Raises: Failure for a class without training images.
    """
    train, val, test = cut(items, rng, 0.5, 0.2)
    if without := {d.label: d for d in items}.keys() - {d.label for d in train}:
        alone = next(d for d in items if d.label in without)
        line = f'The class "{alone.classname}" has only the image {alone.impath}'
        raise Failure(f"{line}, a split needs 2: add some")
    return train, val, test


def split_80_20(items: list[Datum], rng: random.Random) -> tuple[list[Datum], list[Datum]]:
    """(train, val). Per class after a shuffle the first round(.2n) are val."""
    val, train = cut(items, rng, 0.2)
    return train, val


def cut(items: list[Datum], rng: random.Random, *shares: float) -> tuple[list[Datum], ...]:
    """Parts with these shares of each class, rounded, after a shuffle; last what is left.

    No part takes the last image of those behind it: 3 images are 1, 1 and 1, not 2, 1 and 0.
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
