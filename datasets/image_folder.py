import random
from collections import Counter
from os.path import basename, dirname, isdir

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import Failure, UsageError, expand_user

from .benchmark import SPLITS, Benchmark, Splits, read_lists, split_50_20_30
from .own_images import Contents, Problems, check_folders, count, find_parts, look, read_folders
from .readers import name_folders, some

NEW_SPLIT = "for a new split remove the file, and split_fewshot beside it"


@DATASET_REGISTRY.register()
class ImageFolder(Benchmark):
    """Your own images, in class folders in DATASET.ROOT, or DATASET.FOLDER below it.

    They are split 50/20/30 once, or lie in folders train, val and test (one of the last two
    can serve as both), of which the usual spellings are known. A class is called like its
    folder, or as `classnames.txt` says in lines `folder name with spaces`.
    """

    remedy = (
        "DATASET.ROOT (--root), or DATASET.FOLDER below it, "
        "must be the folder of your class folders"
    )
    restore = "put it back, or remove the file, and split_fewshot beside it, for a new split"

    def __init__(self, cfg: CfgNode):
        for key in ("FEATURES", "TEST_CACHE"):
            kept = expand_user(cfg.DATALOADER.get(key, ""))
            if kept and not kept.startswith((".", "/")):
                line = f"DATALOADER.{key} {kept}: would be a folder among those of your classes"
                raise UsageError(f"{line}: call it .{kept}, or give a whole path")
        self.dataset_dir = expand_user(cfg.DATASET.get("FOLDER", ""))
        super().__init__(cfg)

    def read_or_make_split(self) -> Splits:
        self.top = look(self.images)
        check_folders(self.top)
        self.parts = find_parts(self.top)
        if self.parts:
            splits = self.read_parts()
        elif self.split_file.exists():
            splits = self.read_old_split()
        else:
            splits = super().read_or_make_split()
        if len({item.label for item in splits[0]}) == 1:
            line = f"{self.images} has one class, so every image is right"
            print(f"{line}: add a folder of images to tell it from")
        return splits

    def make_split(self, rng: random.Random) -> Splits:
        return split_50_20_30(self.read(self.top, self.classes_in(self.top)), rng)

    def read_parts(self) -> Splits:
        """The images below train, val and test."""
        spelled = [f"{folder} as {part}" for part, folder in self.parts.items() if folder != part]
        if spelled:
            print(f"{self.images}: read {', '.join(spelled)}")
        if set(self.parts) == {"train"}:
            train = self.images / self.parts["train"]
            line = f"{self.images} holds {train.name}, but neither val nor test"
            raise Failure(f"{line}. To have {train} split, set it as root")
        tops = {part: look(self.images / folder) for part, folder in self.parts.items()}
        for top in tops.values():
            check_folders(top)
        classes = self.classes_in(tops["train"])
        for top in tops.values():
            check_counterparts(top, classes)
        read = {part: self.read(top, classes, part == "train") for part, top in tops.items()}
        val, test = read.get("val"), read.get("test")
        return read["train"], val or test, test or val

    def classes_in(self, top: Contents) -> dict[str, str]:
        """{class folder: class name} of the class folders in `top`."""
        file = self.folder / "classnames.txt"
        if file.exists():
            return name_folders(top.folder, file)
        return {name: name for name in top.folders}

    def read(self, top: Contents, classes: dict[str, str], complete: bool = True) -> list[Datum]:
        items, problems, notes = read_folders(top, classes, complete)
        if problems:
            raise Problems(problems, self.images)
        for note in notes:
            print(note)
        return items

    def read_old_split(self) -> Splits:
        """The split file is used as it is, whatever has been added or renamed since."""
        try:
            splits = super().read_or_make_split()
        except Failure:
            self.check_class_folders()
            raise
        items, problems, notes = read_folders(self.top, self.classes_in(self.top))
        for line in (*problems, *notes, *self.changes(splits, items)):
            print(line)
        return splits

    def check_class_folders(self) -> None:
        """Raises Failure for a class of the split file whose folder is not there."""
        splits = read_lists(self.split_file, SPLITS, self.images)
        paths = [item.impath for split in splits for item in split]
        sizes = Counter(map(dirname, paths))
        for folder in (folder for folder in sizes if not isdir(folder)):
            lost = {basename(path) for path in paths if dirname(path) == folder}
            new = [n for n in self.top.folders if f"{self.images}/{n}" not in sizes]
            like = [n for n in new if lost <= set(look(self.images / n).images)]
            line = f"{self.split_file} names {count(len(lost), 'image')} in the class folder "
            line += f"{folder}, which is not there"
            line += f" (perhaps it is {like[0]} now)" if like else ""
            raise Failure(f"{line}: call it so again, or {NEW_SPLIT}")

    def changes(self, splits: Splits, items: list[Datum]) -> list[str]:
        """Lines on images that are there and not in the split, or there in another class."""
        named = {item.impath: item.classname for split in splits for item in split}
        known = set(map(dirname, named))
        new = [item.impath for item in items if item.impath not in named]
        images = [path for path in new if dirname(path) in known]
        folders = Counter(basename(f) for path in new if (f := dirname(path)) not in known)
        pairs = {(named[d.impath], d.classname) for d in items if d.impath in named}
        file = self.split_file
        found = {
            f"{file} does not know {count(len(folders), 'class folder')}": [
                f"{name} ({count(n, 'image')})" for name, n in folders.items()
            ],
            f"{file} does not know {count(len(images), 'image')}": images,
            f"{file} has other class names": [
                f'"{old}" (now "{name}")' for old, name in sorted(pairs) if old != name
            ],
        }
        rest = f"Runs go by the file; {NEW_SPLIT}"
        return [f"{line}: {some(which, 3)}. {rest}" for line, which in found.items() if which]

    def few_shots(
        self, train: list[Datum], val: list[Datum], shots: int, seed: int
    ) -> tuple[list[Datum], list[Datum]]:
        if line := too_few(train, shots):
            print(line)
        return super().few_shots(train, val, shots, seed)


def too_few(train: list[Datum], shots: int) -> str:
    """The line on classes with fewer training images than shots; "" if there are none."""
    sizes = Counter(item.classname for item in train)
    fewer = [f"{name} ({n})" for name, n in sizes.items() if n < shots]
    line = f"{len(fewer):,} of {len(sizes):,} classes have fewer images to train on"
    return f"{line} than {shots} shots take: {some(fewer, 5)}" if fewer else ""


def check_counterparts(top: Contents, classes: dict[str, str]) -> None:
    """Raises Failure for a class to validate or test with and not to train on."""
    for name in top.folders:
        if name not in classes:
            line = f"{top.folder / name} has no counterpart in train"
            like = [known for known in classes if known.lower() == name.lower()]
            remedy = f"call it {like[0]}" if like else "add images to learn from, or remove it"
            raise Failure(f"{line}: {remedy}")
