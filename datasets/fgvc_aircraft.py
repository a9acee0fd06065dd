from dassl.data.datasets import DATASET_REGISTRY, Datum

from .benchmark import SPLITS, Benchmark, Splits
from .readers import check_present, read_annotations


@DATASET_REGISTRY.register()
class FGVCAircraft(Benchmark):
    """Split by its own files, so there is no split file."""

    dataset_dir = "fgvc_aircraft"
    image_dir = "images"

    def read_or_make_split(self) -> Splits:
        variants = self.folder / "variants.txt"
        labels = {name: i for i, name in enumerate(read_annotations(variants, "class", str))}

        def datum(name: str, classname: str) -> Datum:
            return self.datum(f"{name}.jpg", labels[classname], classname)

        files = [self.folder / f"images_variant_{split}.txt" for split in SPLITS]
        train, val, test = (read_annotations(file, "id class", datum, variants) for file in files)
        for split, file in zip((train, val, test), files, strict=True):
            check_present(split, file)
        return train, val, test
