"""What no run can have: values, and schedules that leave nothing to train in."""

import math
import re
from collections.abc import Callable

from torch import nn
from yacs.config import CfgNode

from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UsageError

from .merge import all_keys, get_value, read_values_by

_allowed: list[tuple[str, Callable[[object], bool], tuple[str, ...]]] = []


def allow(what: str, test: Callable[[object], bool], keys: str) -> None:
    """From now on `check_values` wants `test` of the values of keys that end so.

    Args:
        what: what a value must be, in words.
        keys: ends of keys, separated by spaces.

    None is no value, but for keys whose test takes it.
    """
    _allowed.append((what, test, tuple(keys.split())))


# fmt: off
allow("1 or more", lambda v: v >= 1,
      "OPTIM.MAX_EPOCH OPTIM.CYCLE_EPOCHS TRAIN.PRINT_FREQ DATALOADER.K_TRANSFORMS "
      "TRAIN.SHARE_CLASSES "
      "DATALOADER.TRAIN_X.BATCH_SIZE DATALOADER.TRAIN_U.BATCH_SIZE DATALOADER.TEST.BATCH_SIZE "
      "TRAIN_X.N_INS TRAIN_U.N_INS")
allow("0 or more", lambda v: v >= 0,
      "OPTIM.LR OPTIM.MOMENTUM OPTIM.WEIGHT_DECAY OPTIM.RMSPROP_ALPHA OPTIM.GAMMA "
      "OPTIM.BASE_LR_MULT OPTIM.WARMUP_MIN_LR OPTIM.WARMUP_CONS_LR DATALOADER.NUM_WORKERS "
      "DATALOADER.CACHE_MB INPUT.CUTOUT_LEN INPUT.GN_STD COLORJITTER_B COLORJITTER_C COLORJITTER_S")
allow("at most 1000000", lambda v: v <= 10**6, "OPTIM.MAX_EPOCH")
allow("from 0 to 1", lambda v: 0 <= v <= 1,
      "INPUT.RGS_P INPUT.GB_P MODEL.HEAD.DROPOUT DATASET.VAL_PERCENT OPTIM.SGD_DAMPNING")
allow("from 0 to 0.5", lambda v: 0 <= v <= 0.5, "INPUT.COLORJITTER_H")
allow("from 0 to 30", lambda v: 0 <= v <= 30, "INPUT.RANDAUGMENT_M")
allow("from 0 to 1000", lambda v: 0 <= v <= 1000, "INPUT.RANDAUGMENT_N INPUT.CUTOUT_N")
allow("odd and 1 or more", lambda v: v >= 1 and v % 2 == 1, "INPUT.GB_K")
allow("two numbers above 0 and at most 1, the smaller one first",
      lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1, "INPUT.RRCROP_SCALE")
allow("a list of epochs, as (10, 20)", lambda v: {*map(type, v)} == {int}, "OPTIM.STEPSIZE")
allow("a list of whole numbers above 0",
      lambda v: {*map(type, v)} <= {int} and min(v, default=1) > 0, "MODEL.HEAD.HIDDEN_LAYERS")
allow("0 or more and below 1", lambda v: 0 <= v < 1, "OPTIM.ADAM_BETA1 OPTIM.ADAM_BETA2")
allow("1 or more, or -1 for all images", lambda v: v >= 1 or v == -1, "DATASET.NUM_SHOTS")
allow("height and width in pixels",
      lambda v: [*map(type, v)] == [int, int] and min(v) >= 1, "INPUT.SIZE")
allow("three numbers", lambda v: len(v) == 3 and max(v) < math.inf, "INPUT.PIXEL_MEAN")
allow("three numbers above 0", lambda v: len(v) == 3 and min(v) > 0, "INPUT.PIXEL_STD")
allow("a folder whose name is UTF-8",  # tensorboard writes into no other
      lambda v: not re.search("[\ud800-\udfff]", v), "OUTPUT_DIR")
allow("below 1", lambda v: v < 1, "OPTIM.MOMENTUM OPTIM.RMSPROP_ALPHA")
allow('a folder, or "" to keep nothing', lambda v: v.lower() not in ("true", "false"),
      "DATALOADER.FEATURES DATALOADER.TEST_CACHE")
allow('one or more of tensorboard, csv, wandb, or "" for none',
      lambda v: {*v} <= {"tensorboard", "csv", "wandb"}, "TRAIN.LOGGER")
# fmt: on


def words(value: object) -> object:
    """A list of words that may be given as one text: csv, or "csv wandb", or csv,wandb."""
    value = CfgNode._decode_cfg_value(value)
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


read_values_by("TRAIN.LOGGER", words)


def check_values(cfg: CfgNode) -> None:
    """Raises UsageError, naming the key, for a value that no run can have."""
    for key in all_keys(cfg):
        _check_value(key, get_value(cfg, key))
    padding, largest = cfg.INPUT.CROP_PADDING, min(cfg.INPUT.SIZE)
    if not 0 <= padding <= largest:
        line = f"INPUT.CROP_PADDING {padding}: must be from 0 to what INPUT.SIZE has, {largest}"
        raise UsageError(line)
    kernel = cfg.INPUT.GB_K
    if "gaussian_blur" in cfg.INPUT.TRANSFORMS and kernel // 2 >= largest:
        raise UsageError(f"INPUT.GB_K {kernel}: must be below twice INPUT.SIZE, {2 * largest}")
    c = cfg.OPTIM
    if c.NAME in ("sgd", "sghmc") and c.SGD_NESTEROV and (c.MOMENTUM == 0 or c.SGD_DAMPNING != 0):
        line = "OPTIM.SGD_NESTEROV True: needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0"
        raise UsageError(line)


def _check_value(key: str, value: object) -> None:
    tests = [(what, test) for what, test, ends in _allowed if key.endswith(ends)]
    for what, test in tests:
        try:
            fine = test(value)
        except (TypeError, AttributeError):  # another type
            fine = False
        if not fine:
            raise UsageError(f"{key} {value}: must be {what}")
    if value is None and not tests:
        raise UsageError(f"{key} None: must have a value")
    for number in value if isinstance(value, list) else [value]:
        # NaN is below nothing
        if isinstance(number, int | float) and not abs(number) < _limit(number):
            line = "must be below 2^63, with a point or an exponent below 3e38"
            raise UsageError(f"{key} {value}: {line}")


def _limit(number: int | float) -> float:
    """What 64 bits, or a float of 32, can hold."""
    return 2**63 if isinstance(number, int) else 3e38


def check_schedule(cfg: CfgNode) -> None:
    """Raises UsageError for an optimizer or schedule that cannot be."""
    c = cfg.OPTIM
    if c.WARMUP_EPOCH >= c.MAX_EPOCH:
        line = (
            f"OPTIM.WARMUP_EPOCH is {c.WARMUP_EPOCH} and OPTIM.MAX_EPOCH {c.MAX_EPOCH}: the warm-up"
        )
        raise UsageError(f"{line} leaves no epoch to train in. Lower it, or set it to -1 for none")
    layers = nn.Sequential(nn.Linear(1, 1))  # a module of modules, for STAGED_LR
    try:
        build_lr_scheduler(build_optimizer(layers, c), c)
    except (ValueError, LookupError, TypeError) as error:  # PyTorch's own checks
        line = f"OPTIM: {c.NAME} and {c.LR_SCHEDULER} cannot be built ({error})"
        raise UsageError(line) from error
