import random

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .benchmark import Benchmark, Splits, split_80_20
from .readers import read_annotations


@DATASET_REGISTRY.register()
class OxfordPets(Benchmark):
    dataset_dir = "oxford_pets"
    image_dir = "images"

    def make_split(self, rng: random.Random) -> Splits:
        return *split_80_20(self.read("trainval.txt"), rng), self.read("test.txt")

    def read(self, file: str) -> list[Datum]:
        """The images of an annotation file."""

        def datum(name: str, label: str, species: str, breed: str) -> Datum:
            return self.datum(f"{name}.jpg", int(label) - 1, name.rpartition("_")[0].lower())

        path = self.folder / "annotations" / file
        return read_annotations(path, "name label species breed", datum)
