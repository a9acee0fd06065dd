"""Numbers of a run that only figures show: each epoch's loss and seconds, cloud.json."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
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
HUGE = 1e30
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
    return Curves(*map(known, (result.record[key] for key in ("loss", "epoch_seconds"))))


def known(values: Iterable[float | None]) -> list[float]:
    """NaN for what is None, or infinite, as of a run that has diverged, or beyond any axis."""
    return [x if x is not None and abs(x) < HUGE else nan for x in values]


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
    return Curves(*map(known, zip(*values, strict=True)))


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


def told_by(run: Result) -> dict[str, float | None]:
    """What a measurement keeps of its run's result, by which it is known to be of that one."""
    return {name: run.metrics.get(name) for name in ("accuracy", "macro_f1")}


def read_sharpness(run: Result) -> dict[str, Any] | None:
    """Read what inference.sharpness left in a run's folder; None as `read_checked`."""

    def good(sharp: dict) -> bool:
        rises = [*sharp["mean"].values(), [sharp["loss"], *sharp["worst"].values()]]
        return all(rises) and all(map(numbers, rises))

    return read_checked(run, SHARPNESS, good)


def read_cloud(run: Result) -> dict[str, Any] | None:
    """Read what inference.cloud left in a run's folder; None as `read_checked`."""

    def good(cloud: dict) -> bool:
        draws, sigmas = cloud["accuracy"], cloud["sigmas"]
        others = {cloud.get("average"), cloud.get("trained_sigma")} - {None}
        same = len(draws) == len(sigmas) and isinstance(cloud["noise"], str)
        return same and all(draws) and all(map(numbers, [*draws, sigmas, others]))

    return read_checked(run, CLOUD, good)


def read_checked(run: Result, name: str, good: Callable[[dict], bool]) -> dict[str, Any] | None:
    """Read a measurement of a run.

    None if there is none or, with a warning, it is not good or of another result of the run.
    """
    path = run.folder / name
    if not path.exists():
        return None
    why = "cannot be read"
    try:
        found = json.loads(regular(path).read_text(encoding="utf-8"))
        if good(found):
            if found.get("of", told_by(run)) == told_by(run):
                return found
            why = "is of an earlier result of this run"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        pass
    log.warning("%s %s; run inference.%s again", path, why, path.stem)
    return None


def numbers(values: Iterable[object]) -> bool:
    """Whether all are finite numbers."""
    return all(isinstance(x, int | float) and isfinite(x) for x in values)
