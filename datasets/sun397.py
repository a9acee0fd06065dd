import random

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .benchmark import Benchmark, Splits, split_80_20
from .readers import read_annotations


@DATASET_REGISTRY.register()
class SUN397(Benchmark):
    """Folders are /a/abbey or /c/church/indoor, which is "indoor church"."""

    dataset_dir = "sun397"
    image_dir = "SUN397"
    also_called = ("SUN397",)  # in the data folder itself, as torchvision has it

    def make_split(self, rng: random.Random) -> Splits:
        names = self.folder / "ClassName.txt"
        folders = read_annotations(names, "/letter/class", str)
        labels = {folder: i for i, folder in enumerate(folders)}

        def datum(path: str) -> Datum:
            folder = path.rpartition("/")[0]
            name = " ".join(reversed(folder.split("/")[2:]))
            return self.datum(path[1:], labels[folder], name)

        trainval, test = (
            read_annotations(self.folder / file, "/letter/class/image", datum, names)
            for file in ("Training_01.txt", "Testing_01.txt")
        )
        return *split_80_20(trainval, rng), test
