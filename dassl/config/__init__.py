from collections.abc import Callable
from difflib import get_close_matches

from yacs.config import CfgNode

from dassl.utils.errors import UsageError

from .defaults import _C

__all__ = ["clean_cfg", "get_cfg_default", "merge_checked"]


def get_cfg_default() -> CfgNode:
    """A fresh copy of the default config, not frozen."""
    return _C.clone()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drops the other trainers' nodes from cfg.TRAINER, in place, so that a log shows only what counts."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]


def merge_checked(cfg: CfgNode, source: str, merge: Callable[[], None]) -> None:
    """Runs one of yacs's merges into cfg; `source` says where the values come from.

    Raises UsageError with one line for an unknown key (naming the nearest), a value of the wrong type or a broken file.
    """
    try:
        merge()
    except (
        Exception
    ) as error:  # yacs asserts and raises KeyErrors and ValueErrors, the yaml reader has errors of its own
        problem = " ".join(str(error).split()).strip("'")
        if "Non-existent key: " in problem:
            key = problem.rsplit(": ", 1)[-1]
            nearest = get_close_matches(key, _all_keys(cfg), n=1)
            problem = f"there is no config key {key}" + (f"; did you mean {nearest[0]}?" if nearest else "")
            problem += " (flags come before KEY VALUE pairs)" * key.startswith("--")
        raise UsageError(f"{source}: {problem}") from error


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items():
        keys += _all_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys
