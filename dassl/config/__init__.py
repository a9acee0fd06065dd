import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path

from torch import nn
from yacs.config import CfgNode

from dassl import strict_yaml
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UsageError, atomic_write, mkdir_if_missing

from .defaults import _C

__all__ = [
    "check_output_dir",
    "check_resume",
    "check_schedule",
    "check_values",
    "clean_cfg",
    "get_cfg_default",
    "merge_command_line",
    "merge_file",
    "notes_on_training",
    "record_config",
]


def get_cfg_default() -> CfgNode:
    """A fresh copy of the default config, not frozen."""
    return _C.clone()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drops the other trainers' nodes from cfg.TRAINER, in place, so that a log shows only what counts."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merges a YAML file into cfg.

    Raises UsageError with one line for an unknown key (naming the nearest), a key that is there twice, a value of the
    wrong type or a broken file.
    """
    with _checked(cfg, path):
        cfg.merge_from_other_cfg(_read(path))


def merge_command_line(cfg: CfgNode, flags: Sequence[tuple[str, str, object]], opts: Sequence[str]) -> None:
    """Merges flags, as (flag, key, value or None), then KEY VALUE pairs into cfg.

    Raises UsageError as merge_file, and for a key that has no value or two that differ.
    """
    known = set(all_keys(cfg))
    pairs = list(zip_longest(opts[::2], opts[1::2]))
    for key, value in pairs:
        if key.startswith("--"):
            raise UsageError(f"flags come before KEY VALUE pairs: move {key}")
        if value is None or value in known:
            raise UsageError(f"config keys and values come in pairs, but {key} has no value")
    given: dict[str, tuple[object, str]] = {}
    words = [(f"by {flag}", key, value) for flag, key, value in flags if value is not None]
    for how, key, value in [*words, *((f"as {value}", key, value) for key, value in pairs)]:
        with _checked(cfg, f"{key} {value}"):
            cfg.merge_from_list([key, _words(key, value)])
        now = _get(cfg, key)
        before, how_before = given.setdefault(key, (now, how))
        if now != before:
            hint = "; the scripts take it from SHOTS" * (key == "DATASET.NUM_SHOTS")
            raise UsageError(f"{key} is given twice, {how_before} and {how}{hint}")


def _words(key: str, value: object) -> object:
    """CTX_INIT is words in CoOp and a bool in its forks, which yacs would refuse where the other is: always words."""
    if not key.endswith("CTX_INIT"):
        return value
    return {"true": "a photo of a", "false": ""}.get(str(value).lower(), value)


def _read(path: str | Path) -> CfgNode:
    """A file's values; whatever it is called it is read as YAML (yacs would run Python)."""
    values = strict_yaml.load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(values, dict | None):
        raise ValueError("it holds no keys with values")
    return _in_words(CfgNode(values))


def _in_words(node: CfgNode) -> CfgNode:
    """The node, each CTX_INIT in it as words."""
    for key, value in node.items():
        if not isinstance(key, str):  # `1: …`, or `on: …`, which YAML reads as True
            raise ValueError(f"there is no config key {key}")
        node[key] = _in_words(value) if isinstance(value, CfgNode) else _words(key, value)
    return node


@contextmanager
def _checked(cfg: CfgNode, source: str) -> Iterator[None]:
    """Inside, one of yacs's merges into cfg raises UsageErrors; `source` says where the values come from."""
    try:
        yield
    except Exception as error:  # yacs asserts and raises KeyError and ValueError, and the yaml reader errors of its own
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


# What a value must be, the test of it, and the keys, by their ends. Others are checked where they are used.
_ALLOWED = (
    (
        "1 or more",
        lambda v: v >= 1,
        ("OPTIM.MAX_EPOCH", "TRAIN.PRINT_FREQ", "DATALOADER.K_TRANSFORMS", "DATALOADER.TRAIN_X.BATCH_SIZE",
         "DATALOADER.TRAIN_U.BATCH_SIZE", "DATALOADER.TEST.BATCH_SIZE", "TRAIN_X.N_INS", "TRAIN_U.N_INS"),
    ),
    (
        "0 or more",
        lambda v: v >= 0,
        ("OPTIM.LR", "OPTIM.MOMENTUM", "OPTIM.WEIGHT_DECAY", "OPTIM.RMSPROP_ALPHA", "DATALOADER.NUM_WORKERS",
         "DATALOADER.CACHE_MB"),
    ),
    ("0 or more and below 1", lambda v: 0 <= v < 1, ("OPTIM.ADAM_BETA1", "OPTIM.ADAM_BETA2")),
    ("1 or more, or -1 for all images", lambda v: v >= 1 or v == -1, ("DATASET.NUM_SHOTS",)),
    ("height and width in pixels", lambda v: [*map(type, v)] == [int, int] and min(v) >= 1, ("INPUT.SIZE",)),
    ("three numbers", lambda v: len(v) == 3 and max(v) < math.inf, ("INPUT.PIXEL_MEAN",)),
    ("three numbers above 0", lambda v: len(v) == 3 and min(v) > 0, ("INPUT.PIXEL_STD",)),
    ("below 1", lambda v: v < 1, ("OPTIM.MOMENTUM", "OPTIM.RMSPROP_ALPHA")),
    ("0 or more", lambda v: v >= 0, ("OPTIM.WARMUP_CONS_LR",)),
    ("words, True or False", lambda v: isinstance(v, str | None), ("CTX_INIT",)),
)  # fmt: skip


def check_values(cfg: CfgNode) -> None:
    """Raises UsageError, naming key, value and what it must be, for a value that no run can have."""
    for key in all_keys(cfg):
        value = _get(cfg, key)
        for allowed, test, keys in _ALLOWED:
            try:
                fine = not key.endswith(keys) or test(value)
            except TypeError:
                fine = False
            if not fine:
                raise UsageError(f"{key} {value}: must be {allowed}")


def check_schedule(cfg: CfgNode) -> None:
    """Raises UsageError for an optimizer or schedule that cannot be, or whose warm-up leaves nothing to train in."""
    c = cfg.OPTIM
    if c.WARMUP_EPOCH >= c.MAX_EPOCH:
        line = f"OPTIM.WARMUP_EPOCH is {c.WARMUP_EPOCH} and OPTIM.MAX_EPOCH {c.MAX_EPOCH}"
        raise UsageError(f"{line}: the warm-up leaves no epoch to train in. Lower it, or set it to -1 for none")
    try:
        build_lr_scheduler(build_optimizer(nn.Linear(1, 1), c), c)
    except (ValueError, LookupError, TypeError) as error:  # PyTorch's own checks
        raise UsageError(f"OPTIM: {c.NAME} and {c.LR_SCHEDULER} cannot be built ({error})") from error


RECORD = "config.yaml"
# What may differ between two runs that share an output folder: it changes no result.
_FREE = ("OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS", "DATALOADER.CACHE_MB",
         "DATALOADER.TEST.", "TRAIN.", "TEST.")  # fmt: skip


# What else may differ where a training goes on in another folder.
_SCHEDULE = ("OPTIM.", "DATALOADER.")
_OPTIMIZER = ("OPTIM.NAME", "OPTIM.STAGED_LR", "OPTIM.NEW_LAYERS")
# What makes a model what it is.
_LEARNED = ("MODEL.BACKBONE.", "TRAINER.")


def check_output_dir(cfg: CfgNode) -> None:
    """Raises UsageError, naming the first key that differs, if the output folder holds a run of another config."""
    for key, was, now in _differences(cfg, cfg.OUTPUT_DIR):
        if not key.startswith(_FREE):
            line = f"{cfg.OUTPUT_DIR} holds another run ({key} {was}; now {now})"
            raise UsageError(f"{line}: choose another --output-dir, or remove that folder and the tests of its model")


def check_resume(cfg: CfgNode) -> None:
    """Raises UsageError, naming the first key that differs, if the run in cfg.RESUME cannot go on with cfg.

    More epochs, another rate or batch size and a wider precision are what one resumes for.
    """
    for key, was, now in _differences(cfg, cfg.RESUME) if cfg.RESUME else ():
        if not key.startswith(_FREE + _SCHEDULE) and not key.endswith(".PREC") or key in _OPTIMIZER:
            line = f"{cfg.RESUME} cannot be continued with another {key} ({was}; now {now})"
            raise UsageError(f"{line}: to start from its weights, give MODEL.INIT_WEIGHTS its file instead of --resume")


def notes_on_training(cfg: CfgNode, model_dir: str) -> list[str]:
    """A line for each setting of the method that the run in model_dir was trained with and that is another in cfg."""
    found = [(key, was, now) for key, was, now in _differences(cfg, model_dir) if key.startswith(_LEARNED)]
    return [f"Note: trained with {key} {was!r}, tested with {now!r}" for key, was, now in found]


def _differences(cfg: CfgNode, folder: str) -> Iterator[tuple[str, object, object]]:
    """Key, recorded and present value of what cfg has otherwise than the run recorded in a folder, if there is one."""
    file = Path(folder) / RECORD
    before = CfgNode()
    if file.exists():
        try:
            with _checked(before, str(file)):
                before.update(_read(file))
        except UsageError as error:
            line = f"{error}. It says which run the folder holds: get it back"
            raise UsageError(f"{line}, or remove it if you are sure that the settings are the same") from error
    for key in all_keys(cfg):
        was, now = _get(before, key), _get(cfg, key)
        if was != now and was is not None:
            yield key, was, now


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
