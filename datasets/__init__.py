"""One file per benchmark. Importing this package registers them all."""

import importlib
import pkgutil

from yacs.config import CfgNode

_TOOLS = ("doctor", "imagenet_val", "prepare", "sources")  # commands (python -m datasets.doctor) and what they need

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in _TOOLS:
        importlib.import_module(f"{__name__}.{_module.name}")


def add_config(cfg: CfgNode) -> None:
    """Adds the datasets' own keys."""
    cfg.DATASET.FOLDER = ""  # ImageFolder: its folder below DATASET.ROOT, or an absolute one
    cfg.DATASET.TEMPLATE = ""  # zero-shot prompt, {} stands for the class; "" is the dataset's own
