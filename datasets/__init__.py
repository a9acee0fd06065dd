"""One file per benchmark. Importing this package registers them all."""

import importlib
import os
import pkgutil

from yacs.config import CfgNode

from dassl.commands import quiet_imports

quiet_imports(__name__)
# Commands (python -m datasets.doctor) and what only they need.
_TOOLS = ("doctor", "imagenet_val", "own_doctor", "places", "prepare", "sources")

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in _TOOLS:
        importlib.import_module(f"{__name__}.{_module.name}")


def default_root() -> str:
    """The folder that holds all datasets, unless another is given."""
    return os.environ.get("DATA") or "data"


def add_config(cfg: CfgNode) -> None:
    """Adds the datasets' own keys, and the folder that the scripts take too."""
    cfg.DATASET.ROOT = cfg.DATASET.ROOT or default_root()
    cfg.DATASET.FOLDER = ""  # ImageFolder: its folder below DATASET.ROOT, or an absolute one
    cfg.DATASET.TEMPLATE = ""  # zero-shot prompt, {} stands for the class; "" is the dataset's own
