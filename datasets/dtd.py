from dassl.data.datasets import DATASET_REGISTRY

from .benchmark import Benchmark


@DATASET_REGISTRY.register()
class DescribableTextures(Benchmark):
    dataset_dir = "dtd"
    image_dir = "images"
