"""One file per method: importing this package imports them all, and each registers its own."""

import importlib
import pkgutil

from yacs.config import CfgNode

from dassl.config import allow, read_values_by

_modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]


def add_configs(cfg: CfgNode) -> None:
    """Adds every method's config keys to cfg.

    Each file's `add_config` adds its own keys. Where two share a node, as CoOp and KgCoOp share
    TRAINER.COOP, both take it with `setdefault`: the first one makes it, whichever that is.
    """
    for module in _modules:
        if hasattr(module, "add_config"):
            module.add_config(cfg)


# What the methods' keys may be, by the ends of their names.
allow("at most 1000", lambda v: v <= 1000,  # learned vectors, and widths by which layers grow
      "N_CTX N_CTX_TEXT N_CTX_VISION N_ATT1 N_ATT2 N_ATT3 HIDDEN_SCALE ADAPTER_DIM")  # fmt: skip
allow("0 or more", lambda v: v >= 0, "LOSS_WEIGHT KG_WEIGHT COOP.W LOSS.LAMBDA")
allow("words, True or False", lambda v: isinstance(v, str | None), "CTX_INIT")


def ctx_init(value: object) -> object:
    """CTX_INIT as words: that is what it is in CoOp, but in CoOp's forks it is True or False."""
    return {"true": "a photo of a", "false": ""}.get(str(value).lower(), value)


read_values_by("CTX_INIT", ctx_init)
