from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Failure, expand_user

from .benchmark import SPLITS, Benchmark, Splits
from .readers import class_folders, name_folders, read_class_folders


@DATASET_REGISTRY.register()
class ImageFolder(Benchmark):
    """Your own images, in class folders in DATASET.ROOT, or DATASET.FOLDER below it.

    They are split 50/20/30 once, or lie in folders train, val and test (one of the last two
    can serve as both). A class is called like its folder, or as `classnames.txt` says in
    lines `folder name with spaces`.
    """

    remedy = (
        "DATASET.ROOT (--root), or DATASET.FOLDER below it, "
        "must be the folder of your class folders"
    )
    restore = "put it back, or remove the file, and split_fewshot beside it, for a new split"

    def __init__(self, cfg: CfgNode):
        self.dataset_dir = expand_user(cfg.DATASET.get("FOLDER", ""))
        super().__init__(cfg)

    def read_or_make_split(self) -> Splits:
        parts = set(class_folders(self.images))
        if "train" not in parts or not parts <= set(SPLITS):  # a class may be called "train"
            old = self.split_file.exists()
            splits = super().read_or_make_split()
            if old:
                self.say_if_outdated(splits)
            return splits
        if parts == {"train"}:
            remedy = f"To have {self.images / 'train'} split, set it as root"
            raise Failure(f"{self.images} holds train, but neither val nor test. {remedy}")
        classes = self.classes(self.images / "train")
        read = {}
        for part in parts:
            folder = self.images / part
            if unknown := set(class_folders(folder)) - set(classes):
                line = f"{folder / min(unknown)} has no counterpart in train"
                raise Failure(f"{line}: add images to learn from, or remove it")
            read[part] = read_class_folders(folder, classes, complete=part == "train")
        val, test = read.get("val"), read.get("test")
        return read["train"], val or test, test or val

    def classes(self, images: Path | None = None) -> dict[str, str]:
        images, file = images or self.images, self.folder / "classnames.txt"
        if file.exists():
            return name_folders(images, file)
        return {name: name for name in class_folders(images)}

    def say_if_outdated(self, splits: Splits) -> None:
        """The split file is used as it is, whatever has been added or renamed since."""
        split = {item.impath: item.classname for part in splits for item in part}
        items = read_class_folders(self.images, self.classes())
        there = {item.impath: item.classname for item in items}
        if new := sorted(there.items() - split.items()):
            path, name = new[0]
            line = f'{path} of class "{name}", first of {len(new):,} images'
            line += f", is not in {self.split_file.name} as such"
            hint = "remove it, and split_fewshot beside it, for a new split"
            print(f"{line}. Runs go by the file: {hint}")
