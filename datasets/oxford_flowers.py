import random

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import read_json

from .benchmark import Benchmark, Splits, split_50_20_30
from .readers import read_mat


@DATASET_REGISTRY.register()
class OxfordFlowers(Benchmark):
    dataset_dir = "oxford_flowers"
    image_dir = "jpg"

    def make_split(self, rng: random.Random) -> Splits:
        names = read_json(str(self.folder / "cat_to_name.json"))
        # of image_00001.jpg, image_00002.jpg, …
        labels = map(int, read_mat(self.folder / "imagelabels.mat", "labels"))
        items = [
            self.datum(f"image_{i:05d}.jpg", n - 1, names[str(n)])
            for i, n in enumerate(labels, start=1)
        ]
        return split_50_20_30(items, rng)
