from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from yacs.config import CfgNode

from dassl.utils import UsageError, atomic_write, mkdir_if_missing

from .defaults import _C

__all__ = ["all_keys", "check_output_dir", "clean_cfg", "get_cfg_default", "merge_checked", "record_config"]


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
            nearest = get_close_matches(key, all_keys(cfg), n=1)
            problem = f"there is no config key {key}" + (f"; did you mean {nearest[0]}?" if nearest else "")
            problem += " (flags come before KEY VALUE pairs)" * key.startswith("--")
        raise UsageError(f"{source}: {problem}") from error


def all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    """The dotted keys of all values."""
    keys = []
    for key, value in node.items():
        keys += all_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


RECORD = "config.yaml"
# What may differ between two runs that share an output folder: it changes no result.
_FREE = ("OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS", "DATALOADER.CACHE_MB",
         "TRAIN.", "TEST.")  # fmt: skip


def check_output_dir(cfg: CfgNode) -> None:
    """Raises UsageError, naming the first key that differs, if the output folder holds a run of another config."""
    file = Path(cfg.OUTPUT_DIR) / RECORD
    if not file.exists():
        return
    before = CfgNode()
    merge_checked(before, str(file), lambda: before.update(CfgNode.load_cfg(file.read_text())))
    for key in all_keys(cfg):
        was, now = _get(before, key), _get(cfg, key)
        if was != now and was is not None and not key.startswith(_FREE):
            line = f"{cfg.OUTPUT_DIR} holds another run ({key} {was}; now {now})"
            raise UsageError(f"{line}: choose another --output-dir, or remove that folder")


def record_config(cfg: CfgNode) -> None:
    """Writes cfg to its output folder, for check_output_dir; to be called when the run really begins."""
    mkdir_if_missing(cfg.OUTPUT_DIR)
    with atomic_write(f"{cfg.OUTPUT_DIR}/{RECORD}", "w") as file:
        file.write(cfg.dump())


def _get(node: CfgNode, key: str) -> object:
    """The value of a dotted key, sequences as lists, None if there is none."""
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return None
        node = node[part]
    return list(node) if isinstance(node, tuple) else node
