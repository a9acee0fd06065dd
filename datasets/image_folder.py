from pathlib import Path

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Failure, expand_user

from .benchmark import SPLITS, Benchmark, Splits
from .readers import class_folders, name_folders, read_class_folders


@DATASET_REGISTRY.register()
class ImageFolder(Benchmark):
    """Your own images: DATASET.ROOT, or DATASET.FOLDER below it, is a folder of class folders.

    They are split 50/20/30 once, or lie in folders train, val and test (of the last two one is
    enough and serves as the other). A class is called like its folder, or as `classnames.txt` says
    in lines `folder name with spaces`.
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
        return read["train"], read.get("val") or read["test"], read.get("test") or read["val"]

    def classes(self, images: Path | None = None) -> dict[str, str]:
        images, file = images or self.images, self.folder / "classnames.txt"
        if file.exists():
            return name_folders(images, file)
        return {name: name for name in class_folders(images)}

    def say_if_outdated(self, splits: Splits) -> None:
        """The split file is used as it is, whatever has been added or renamed since."""
        split = {item.impath: item.classname for part in splits for item in part}
        items = read_class_folders(self.images, self.classes())
        if new := sorted({item.impath: item.classname for item in items}.items() - split.items()):
            path, name = new[0]
            line = f'{path} of class "{name}", first of {len(new):,} images'
            print(f"{line}, is not in {self.split_file.name} as such. Runs go by the file: "
                  "remove it, and split_fewshot beside it, for a new split")  # fmt: skip
