from dassl.data.datasets import DATASET_REGISTRY

from .benchmark import Benchmark


@DATASET_REGISTRY.register()
class EuroSAT(Benchmark):
    dataset_dir = "eurosat"
    image_dir = "2750"
    also_called = ("EuroSAT_RGB",)
    new_names = {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    }
