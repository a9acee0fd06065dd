"""The datasets of the family's protocols: the usual targets of a source, and registered names."""

from functools import cache
from pathlib import Path

import yaml

from .layout import usual_source

CONFIGS = Path(__file__).parents[1] / "configs" / "datasets"
TEN = ("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
       "sun397", "dtd", "eurosat", "ucf101")  # fmt: skip
VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
# (protocol, source) -> the usual targets: cross-dataset and domain generalisation
TARGETS = {
    ("xd", "imagenet"): TEN,
    ("xd", "shapes"): ("shapes_background", "shapes_count"),
    ("dg", "imagenet"): VARIANTS,
    ("dg", "shapes"): ("shapes_blur", "shapes_night", "shapes_sketch"),
}


@cache
def dataset_names() -> dict[str, str]:
    """Map the names of the yamls, which are those of the folders, to the registered names."""
    files = sorted(CONFIGS.glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text())["DATASET"]["NAME"] for file in files}


def dataset_name(folder: str) -> str:
    """Return a folder's dataset by its registered name; a name that is not known stays."""
    return dataset_names().get(folder, folder)


@cache
def transfers() -> dict[str, tuple[str, str]]:
    """Map each usual target to its (protocol, source), in the papers' order; registered names."""
    return {
        dataset_name(target): (protocol, dataset_name(source))
        for (protocol, source), targets in TARGETS.items()
        for target in targets
    }


def transfer_of(target: str) -> tuple[str, str]:
    """Return protocol and source of a model's test on another dataset.

    The source of an unusual target is the usual one (layout.py).
    """
    return transfers().get(target) or ("xd", dataset_name(usual_source(target)))
