import random

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .benchmark import Benchmark, Splits, split_80_20
from .readers import read_mat


@DATASET_REGISTRY.register()
class StanfordCars(Benchmark):
    dataset_dir = "stanford_cars"
    needed = ("cars_train", "cars_test")

    def make_split(self, rng: random.Random) -> Splits:
        trainval = self.read("cars_train", "devkit/cars_train_annos.mat")
        test = self.read("cars_test", "cars_test_annos_withlabels.mat")
        return *split_80_20(trainval, rng), test

    def read(self, images: str, file: str) -> list[Datum]:
        """The images of a folder, by an annotation file."""
        meta = self.folder / "devkit" / "cars_meta.mat"
        names = [year_first(name) for name in read_mat(meta, "class_names")]
        rows = read_mat(self.folder / file, "annotations", "fname", "class")
        return [
            self.datum(f"{images}/{name}", int(label) - 1, names[int(label) - 1])
            for name, label in rows
        ]


def year_first(name: str) -> str:
    """ "Acura TL Sedan 2012" -> "2012 Acura TL Sedan" """
    car, _, year = name.rpartition(" ")
    return f"{year} {car}"
