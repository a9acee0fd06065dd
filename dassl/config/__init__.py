import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path

from torch import nn
from yacs.config import CfgNode

from dassl import strict_yaml
from dassl.files import regular
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
    """Drops the other trainers' nodes from cfg.TRAINER, in place, so that a log shows only what
    counts."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merges a YAML file into cfg.

    Raises UsageError with one line for an unknown key (naming the nearest), a key that is there
    twice, a value of the wrong type or a broken file.
    """
    with _checked(cfg, path):
        cfg.merge_from_other_cfg(_read(path))


def merge_command_line(
    cfg: CfgNode, flags: Sequence[tuple[str, str, object]], opts: Sequence[str]
) -> None:
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
            if (
                key not in known and _get(cfg, key) is None
            ):  # of which yacs says this only if there is its section
                raise KeyError(f"Non-existent key: {key}")
            cfg.merge_from_list([key, _as_typed(cfg, key, value)])
        now = _get(cfg, key)
        before, how_before = given.setdefault(key, (now, how))
        if now != before:
            hint = "; the scripts take it from SHOTS" * (key == "DATASET.NUM_SHOTS")
            raise UsageError(f"{key} is given twice, {how_before} and {how}{hint}")


def _words(key: str, value: object) -> object:
    """CTX_INIT is words in CoOp and a bool in its forks, which yacs would refuse where the other
    is: always words."""
    if not key.endswith("CTX_INIT"):
        return value
    return {"true": "a photo of a", "false": ""}.get(str(value).lower(), value)


def _as_typed(cfg: CfgNode, key: str, value: object) -> object:
    """A command line's value, for yacs to read; where text is wanted a number is text too (a folder
    called 2024)."""
    if key.endswith("CTX_INIT"):
        return _words(key, value)
    is_text = isinstance(_get(cfg, key), str)
    return (
        repr(value) if is_text and not isinstance(CfgNode._decode_cfg_value(value), str) else value
    )


def _read(path: str | Path) -> CfgNode:
    """A file's values; whatever it is called it is read as YAML (yacs would run Python)."""
    values = strict_yaml.load(Path(regular(path)).read_text(encoding="utf-8"))
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
    """Inside, one of yacs's merges into cfg raises UsageErrors; `source` says where the values come
    from."""
    try:
        yield
    except Exception as error:  # yacs asserts and raises KeyError and ValueError, and the yaml reader errors of its own
        # str() of a KeyError puts its text in quotes
        problem = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
        if mismatch := re.fullmatch(r"Type mismatch .* for config key: (\S+)", problem):
            key = mismatch[1]
            problem = f"{key} " * (not source.startswith(f"{key} ")) + _kind(key, _get(cfg, key))
        elif re.match("Non-existent (config )?key:", problem):
            key = problem.split(":", 1)[1].strip()
            nearest = get_close_matches(key, all_keys(cfg), n=1)
            problem = f"there is no config key {key}" + (
                f"; did you mean {nearest[0]}?" if nearest else ""
            )
            problem += " (flags come before KEY VALUE pairs)" * key.startswith("--")
        source = source if len(source) <= 200 else f"{source[:200]}…"
        raise UsageError(f"{source}: {problem}") from error


# How a value of each type is written.
_KINDS = {bool: "True or False", int: "a whole number", float: "a number with a point or an exponent", list: "a list",
          str: "text, in a file in quotes"}  # fmt: skip


def _kind(key: str, value: object) -> str:
    """What a key must have, in words, by what it has now."""
    if isinstance(value, CfgNode):
        return f"is a section, which has no value of its own: give one of its keys, as {all_keys(value, f'{key}.')[0]}"
    return f"must be {_KINDS[type(value)]}" + (f", as {value}" if value not in ([], "") else "")


def all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    """The dotted keys of all values."""
    keys = []
    for key, value in node.items():
        keys += all_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


# What a value must be, the test of it, and the keys, by their ends. Others are checked where they
# are used.
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
         "DATALOADER.CACHE_MB", "INPUT.CUTOUT_LEN", "INPUT.GN_STD", "COLORJITTER_B", "COLORJITTER_C", "COLORJITTER_S",
         "OPTIM.GAMMA", "OPTIM.BASE_LR_MULT", "OPTIM.WARMUP_MIN_LR", "OPTIM.WARMUP_CONS_LR",
         "LOSS_WEIGHT", "KG_WEIGHT", "COOP.W", "LOSS.LAMBDA"),
    ),
    ("at most 1000000", lambda v: v <= 10**6, ("OPTIM.MAX_EPOCH",)),
    # Learned vectors, and widths by which layers grow.
    ("at most 1000", lambda v: v <= 1000,
     ("N_CTX", "N_CTX_TEXT", "N_CTX_VISION", "N_ATT1", "N_ATT2", "N_ATT3", "HIDDEN_SCALE", "ADAPTER_DIM")),
    ("from 0 to 1", lambda v: 0 <= v <= 1,
     ("INPUT.RGS_P", "INPUT.GB_P", "MODEL.HEAD.DROPOUT", "DATASET.VAL_PERCENT", "OPTIM.SGD_DAMPNING")),
    ("from 0 to 0.5", lambda v: 0 <= v <= 0.5, ("INPUT.COLORJITTER_H",)),
    ("from 0 to 30", lambda v: 0 <= v <= 30, ("INPUT.RANDAUGMENT_M",)),
    ("from 0 to 1000", lambda v: 0 <= v <= 1000, ("INPUT.RANDAUGMENT_N", "INPUT.CUTOUT_N")),
    ("odd and 1 or more", lambda v: v >= 1 and v % 2 == 1, ("INPUT.GB_K",)),
    ("two numbers above 0 and at most 1, the smaller one first", lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1,
     ("INPUT.RRCROP_SCALE",)),
    ("a list of epochs, as (10, 20)", lambda v: {*map(type, v)} == {int}, ("OPTIM.STEPSIZE",)),
    ("a list of whole numbers above 0", lambda v: {*map(type, v)} <= {int} and min(v, default=1) > 0,
     ("MODEL.HEAD.HIDDEN_LAYERS",)),
    ("0 or more and below 1", lambda v: 0 <= v < 1, ("OPTIM.ADAM_BETA1", "OPTIM.ADAM_BETA2")),
    ("1 or more, or -1 for all images", lambda v: v >= 1 or v == -1, ("DATASET.NUM_SHOTS",)),
    ("height and width in pixels", lambda v: [*map(type, v)] == [int, int] and min(v) >= 1, ("INPUT.SIZE",)),
    ("three numbers", lambda v: len(v) == 3 and max(v) < math.inf, ("INPUT.PIXEL_MEAN",)),
    ("three numbers above 0", lambda v: len(v) == 3 and min(v) > 0, ("INPUT.PIXEL_STD",)),
    # tensorboard writes into no other
    ("a folder whose name is UTF-8", lambda v: not re.search("[\ud800-\udfff]", v), ("OUTPUT_DIR",)),
    ("below 1", lambda v: v < 1, ("OPTIM.MOMENTUM", "OPTIM.RMSPROP_ALPHA")),
    ('a folder, or "" to keep nothing', lambda v: v.lower() not in ("true", "false"),
     ("DATALOADER.FEATURES", "DATALOADER.TEST_CACHE")),
    ("words, True or False", lambda v: isinstance(v, str | None), ("CTX_INIT",)),
)  # fmt: skip


def check_values(cfg: CfgNode) -> None:
    """Raises UsageError, naming key, value and what it must be, for a value that no run can
    have."""
    for key in all_keys(cfg):
        value = _get(cfg, key)
        for allowed, test, keys in _ALLOWED:
            try:
                fine = not key.endswith(keys) or test(value)
            except TypeError:
                fine = False
            if not fine:
                raise UsageError(f"{key} {value}: must be {allowed}")
        if value is None and not key.endswith("CTX_INIT"):
            raise UsageError(f"{key} None: must have a value")
        if not all(map(_has_a_size, value if isinstance(value, list) else [value])):
            raise UsageError(
                f"{key} {value}: must be below 2^63, with a point or an exponent below 3e38"
            )
    padding, optim = cfg.INPUT.CROP_PADDING, cfg.OPTIM
    if not 0 <= padding <= min(cfg.INPUT.SIZE):
        raise UsageError(
            f"INPUT.CROP_PADDING {padding}: must be from 0 to what INPUT.SIZE has, {min(cfg.INPUT.SIZE)}"
        )
    if (
        optim.NAME == "sgd"
        and optim.SGD_NESTEROV
        and (optim.MOMENTUM == 0 or optim.SGD_DAMPNING != 0)
    ):
        raise UsageError(
            "OPTIM.SGD_NESTEROV True: needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0"
        )


def _has_a_size(value: object) -> bool:
    """Whether a number is one that 64 bits, or a float of 32, can hold; NaN is not."""
    return not isinstance(value, int | float) or abs(value) < (
        2**63 if isinstance(value, int) else 3e38
    )


def check_schedule(cfg: CfgNode) -> None:
    """Raises UsageError for an optimizer or schedule that cannot be, or whose warm-up leaves
    nothing to train in."""
    c = cfg.OPTIM
    if c.WARMUP_EPOCH >= c.MAX_EPOCH:
        line = f"OPTIM.WARMUP_EPOCH is {c.WARMUP_EPOCH} and OPTIM.MAX_EPOCH {c.MAX_EPOCH}"
        raise UsageError(
            f"{line}: the warm-up leaves no epoch to train in. Lower it, or set it to -1 for none"
        )
    try:
        build_lr_scheduler(
            build_optimizer(nn.Sequential(nn.Linear(1, 1)), c), c
        )  # a layer, for STAGED_LR
    except (ValueError, LookupError, TypeError) as error:  # PyTorch's own checks
        raise UsageError(
            f"OPTIM: {c.NAME} and {c.LR_SCHEDULER} cannot be built ({error})"
        ) from error


RECORD = "config.yaml"
# What may differ between two runs that share an output folder: it changes no result.
_FREE = ("OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS", "DATALOADER.CACHE_MB",
         "DATALOADER.FEATURES", "DATALOADER.TEST_CACHE", "DATALOADER.TEST.", "TRAIN.", "TEST.")  # fmt: skip


# What else may differ where a training goes on in another folder.
_SCHEDULE = ("OPTIM.", "DATALOADER.")
_OPTIMIZER = ("OPTIM.NAME", "OPTIM.STAGED_LR", "OPTIM.NEW_LAYERS")
# What makes a model what it is.
_LEARNED = ("MODEL.BACKBONE.", "TRAINER.")


def check_output_dir(cfg: CfgNode) -> None:
    """Raises UsageError, naming the first key that differs, if the output folder holds a run of
    another config."""
    for key, was, now in _differences(cfg, cfg.OUTPUT_DIR):
        if not key.startswith(_FREE):
            line = f"{cfg.OUTPUT_DIR} holds another run ({key} {was}; now {now})"
            raise UsageError(
                f"{line}: choose another --output-dir, or remove that folder and the tests of its model"
            )


def check_resume(cfg: CfgNode) -> None:
    """Raises UsageError, naming the first key that differs, if the run in cfg.RESUME cannot go on
    with cfg.

    More epochs, another rate or batch size and a wider precision are what one resumes for.
    """
    for key, was, now in _differences(cfg, cfg.RESUME) if cfg.RESUME else ():
        if not key.startswith(_FREE + _SCHEDULE) and not key.endswith(".PREC") or key in _OPTIMIZER:
            line = f"{cfg.RESUME} cannot be continued with another {key} ({was}; now {now})"
            raise UsageError(
                f"{line}: to start from its weights, give MODEL.INIT_WEIGHTS its file instead of --resume"
            )


def notes_on_training(cfg: CfgNode, model_dir: str) -> list[str]:
    """A line for each setting of the method that the run in model_dir was trained with and that is
    another in cfg."""
    found = [
        (key, was, now)
        for key, was, now in _differences(cfg, model_dir)
        if key.startswith(_LEARNED)
    ]
    return [f"Note: trained with {key} {was!r}, tested with {now!r}" for key, was, now in found]


def _differences(cfg: CfgNode, folder: str) -> Iterator[tuple[str, object, object]]:
    """Key, recorded and present value of what cfg has otherwise than the run recorded in a folder,
    if there is one."""
    file = Path(folder) / RECORD
    before = CfgNode()
    if file.exists():
        try:
            with _checked(before, str(file)):
                before.update(_read(file))
        except UsageError as error:
            line = f"{error}. It says which run the folder holds: get it back"
            raise UsageError(
                f"{line}, or remove it if you are sure that the settings are the same"
            ) from error
    for key in all_keys(cfg):
        was, now = _get(before, key), _get(cfg, key)
        if was != now and was is not None:
            yield key, was, now


def record_config(cfg: CfgNode) -> None:
    """Writes cfg to its output folder, for check_output_dir; to be called when the run really
    begins."""
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
