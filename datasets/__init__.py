"""One file per benchmark. Importing this package registers them all."""

import importlib
import pkgutil

from yacs.config import CfgNode

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def add_config(cfg: CfgNode) -> None:
    """Adds the datasets' own keys."""
    cfg.DATASET.FOLDER = ""  # ImageFolder: its folder below DATASET.ROOT, or an absolute one
