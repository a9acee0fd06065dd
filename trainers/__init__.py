"""One file per method. Importing this package registers them all; a file that is not there is
simply no method."""

import importlib
import pkgutil

from yacs.config import CfgNode

_modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]


def add_configs(cfg: CfgNode) -> None:
    """Add every method's config node to cfg."""
    for module in _modules:
        if hasattr(module, "add_config"):
            module.add_config(cfg)
