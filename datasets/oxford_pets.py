import random

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .benchmark import Benchmark, Splits, split_80_20
from .readers import read_annotations


@DATASET_REGISTRY.register()
class OxfordPets(Benchmark):
    dataset_dir = "oxford_pets"
    image_dir = "images"

    def make_split(self, rng: random.Random) -> Splits:
        train, val = split_80_20(self.read("trainval.txt"), rng)
        return train, val, self.read("test.txt")

    def read(self, file: str) -> list[Datum]:
        def datum(name: str, label: str, species: str, breed: str) -> Datum:
            return self.datum(f"{name}.jpg", int(label) - 1, name.rpartition("_")[0].lower())

        return read_annotations(
            self.folder / "annotations" / file, "name label species breed", datum
        )
