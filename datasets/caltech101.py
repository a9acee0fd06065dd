from dassl.data.datasets import DATASET_REGISTRY

from .benchmark import Benchmark


@DATASET_REGISTRY.register()
class Caltech101(Benchmark):
    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    no_classes = ("BACKGROUND_Google", "Faces_easy")
    new_names = {"airplanes": "airplane", "Faces": "face"}
    new_names |= {"Leopards": "leopard", "Motorbikes": "motorbike"}
