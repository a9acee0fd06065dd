import time
from pathlib import Path
from shlex import quote

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Failure, listdir_nohidden

from .benchmark import Benchmark, Splits
from .pickles import read_pickle
from .readers import ListingCache, check_present, name_folders, read_class_folders


@DATASET_REGISTRY.register()
class ImageNet(Benchmark):
    """Its validation images are the test set, and the validation set too."""

    dataset_dir = "imagenet"
    image_dir = "images"
    needed = ("train", "val")
    few_shot_splits = ("train",)
    equal_names = True  # "missile" is there twice

    def prepare(self) -> None:
        super().prepare()
        val = self.images / "val"
        if loose := unsorted(val):
            line = f"{val} holds {len(loose):,} images that are not in folders of their classes"
            command = f"python -m datasets.prepare imagenet --root {quote(str(self.root))}"
            where = "with the labels that docs/DATASETS.md names"
            raise Failure(f"{line}: {command} sorts them, {where}")

    def read_or_make_split(self) -> Splits:
        # Upstream's list; its order decides which images are picked.
        listed = self.folder / "preprocessed.pkl"
        if listed.exists():
            train, test = read_pickle(listed, ("train", "test"), self.folder)
            check_present(train, listed)
            check_present(test, listed)
            return train, test, test
        now = time.time_ns()
        cache = ListingCache(self.folder / "listing.json")
        classes = name_folders(self.images / "train", classnames_file(self.folder))
        train = read_class_folders(self.images / "train", classes, cache)
        test = read_class_folders(self.images / "val", classes, cache)
        cache.save(now)
        return train, test, test


def unsorted(val: Path) -> list[str]:
    """The names of the validation images that lie in one folder, as in their archive."""
    names = listdir_nohidden(str(val), sort=True)
    return [n for n in names if n.startswith("ILSVRC2012_val_") and n.endswith(".JPEG")]


class ImageNetVariant(Benchmark):
    """All images, whatever the shots and classes; train.py trains on none of them."""

    test_only = True

    def load(self, cfg: CfgNode) -> Splits:
        items = read_class_folders(self.images, self.classes())
        return items, [], items

    def classes(self) -> dict[str, str]:
        return name_folders(self.images, classnames_file(self.folder))


def classnames_file(folder: Path) -> Path:
    """The folder's own class names, or those of the imagenet folder beside it."""
    own = folder / "classnames.txt"
    other = folder.parent / ImageNet.dataset_dir / "classnames.txt"
    return other if other.exists() and not own.exists() else own
