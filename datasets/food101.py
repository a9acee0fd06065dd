from dassl.data.datasets import DATASET_REGISTRY

from .benchmark import Benchmark


@DATASET_REGISTRY.register()
class Food101(Benchmark):
    dataset_dir = "food-101"
    image_dir = "images"
