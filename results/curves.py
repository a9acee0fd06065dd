"""Numbers of a run that only figures show: each epoch's loss and seconds, cloud.json."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy import nan

from dassl.files import regular

from .logs import logs_of, read_log, read_text
from .records import Result

# Dassl 0.5 writes `epoch [1/5][20/40]`.
EPOCH_LINE = re.compile(
    r"epoch \[(?P<epoch>\d+)/\d+\](?: batch )?\[\d+/(?P<batches>\d+)\]"
    r"\s+time \S+ \((?P<time>[\d.]+)\).*?\sloss \S+ \((?P<loss>[^)\s]+)\)"
)
SHARPNESS = "sharpness.json"  # which inference.sharpness writes into a run's folder
CLOUD = "cloud.json"  # which inference.cloud writes into a run's folder
POSTERIOR = "posterior"  # its noise where the method's own draws are what moves the prompts

log = logging.getLogger("results.figures")


class Curves(NamedTuple):
    """Means over each epoch; NaN where not known."""

    loss: list[float]
    seconds: list[float]


def curves_of(result: Result) -> Curves | None:
    """A run's curves from its record, else from its logs; None if it is no training."""
    if not result.record:
        return curves_of_logs(result.folder)
    if all(loss is None for loss in result.record["loss"]):
        return None
    numbers = (result.record[key] for key in ("loss", "epoch_seconds"))
    return Curves(*([nan if x is None else x for x in values] for values in numbers))


def curves_of_logs(folder: Path) -> Curves | None:
    """The curves of the log that counts: the newest one with the result of a finished run.

    Where that run was resumed, the epochs before its own are those of the logs it went on from:
    each time the newest older log that has the epoch before.
    """
    epochs: dict[int, tuple[float, float]] = {}
    counted = False
    for path in logs_of(folder):
        first = min(epochs, default=0)
        if first == 1:
            break
        try:
            counted = counted or read_log(path) is not None
            here = epochs_of_log(path) if counted else {}
        except OSError as error:
            log.warning("cannot read %s", error)
            continue
        if not first:
            epochs = here
        elif first - 1 in here:
            epochs |= {epoch: values for epoch, values in here.items() if epoch < first}
    if not epochs:
        return None
    values = [epochs.get(i, (nan, nan)) for i in range(1, max(epochs) + 1)]
    return Curves([loss for loss, _ in values], [seconds for _, seconds in values])


def epochs_of_log(path: Path) -> dict[int, tuple[float, float]]:
    """{epoch: (loss, seconds)} from the last line of each epoch. Raises OSError.

    A line has the mean loss so far, and the mean time of a batch, here times the batches.
    """
    return {
        int(m["epoch"]): (float(m["loss"]), float(m["time"]) * int(m["batches"]))
        for m in EPOCH_LINE.finditer(read_text(path))
    }


def trainings(found: Sequence[Result]) -> tuple[dict[Result, Curves], str]:
    """The trainings on base classes, as in the paper, or without any the others.

    Where they are of several numbers of shots, those of the largest; the text, a sentence, says so.
    """
    usual = [r for r in found if r.side == "base"] or [r for r in found if r.side == "all"]
    runs = {r: curves for r in usual if (curves := curves_of(r))}
    shots = {r.shots for r in runs}
    text = f"Runs of {max(shots)} shots. " if len(shots) > 1 else ""
    return {r: curves for r, curves in runs.items() if r.shots == max(shots)}, text


def read_sharpness(folder: Path) -> dict[str, Any] | None:
    """Read what inference.sharpness left in a run's folder; None as `read_cloud`."""
    path = folder / SHARPNESS
    if not path.exists():
        return None
    try:
        sharp = json.loads(regular(path).read_text(encoding="utf-8"))
        rises = [*sharp["mean"].values(), [sharp["loss"], *sharp["worst"].values()]]
        if all(isinstance(x, int | float) for draws in rises for x in draws) and all(rises):
            return sharp
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    log.warning("%s cannot be read; run inference.sharpness again", path)
    return None


def read_cloud(folder: Path) -> dict[str, Any] | None:
    """Read what inference.cloud left in a run's folder.

    None if there is nothing, or with a warning if it cannot be used.
    """
    path = folder / CLOUD
    if not path.exists():
        return None
    try:
        cloud = json.loads(regular(path).read_text(encoding="utf-8"))
        same = len(cloud["accuracy"]) == len(cloud["sigmas"])
        numbers = all(isinstance(x, int | float) for draws in cloud["accuracy"] for x in draws)
        if same and numbers and all(cloud["accuracy"]) and cloud["noise"]:
            return cloud
    except (OSError, ValueError, KeyError, TypeError):
        pass
    log.warning("%s cannot be read; run inference.cloud again", path)
    return None
