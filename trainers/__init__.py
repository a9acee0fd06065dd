"""One file per method: importing this package imports them all, and each registers its own."""

import importlib
import pkgutil

from yacs.config import CfgNode

_modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]


def add_configs(cfg: CfgNode) -> None:
    """Adds every method's config keys to cfg.

    Each file's `add_config` adds its own keys. Where two share a node, as CoOp and KgCoOp share
    TRAINER.COOP, both take it with `setdefault`: the first one makes it, whichever that is.
    """
    for module in _modules:
        if hasattr(module, "add_config"):
            module.add_config(cfg)
