"""Taking turns with a stopwatch, and the line that says on which machine."""

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from tabulate import tabulate

from dassl.engine.record import commit, device_name
from dassl.utils import cpu_cores

ROUND = 0.5  # seconds of a GPU's round, of at most 20 steps


def machine() -> str:
    """The CPU, its load, and the versions."""
    cpu = device_name(torch.device("cpu"))
    load = os.getloadavg()[0]
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    return f"{cpu}, {cpu_cores()} cores, load {load:.1f}; {versions}"


def code() -> str:
    """The commit measured, and whether files differ from it."""
    known = commit()
    sha = (known["commit"] or "unknown")[:12]
    return f"commit {sha}{' with changes' if known['dirty'] else ''}"


def synchronize(device: str) -> None:
    """Waits until a GPU is done with what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Callable[[], object], device: str = "cpu", count: int = 1) -> float:
    """Seconds of one of `count` calls in a row, until the device is done."""
    gc.collect()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / count


def alternate(
    first: Callable, second: Callable, rounds: int, device: str = "cpu"
) -> tuple[list[float], list[float]]:
    """Seconds of both in each round.

    Who goes first changes, so that a machine that slows down favours neither.
    """
    steps = (first, second)
    counts = [1, 1]
    if device == "cuda":  # the host runs ahead of the device, so a round has several steps
        for side, step in enumerate(steps):
            # Warm-up: graphs are captured, algorithms chosen.
            seconds_of(step, device, count=3)
            counts[side] = max(1, min(20, int(ROUND / seconds_of(step, device))))
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        for side in (1, 0) if i % 2 == 0 else (0, 1):
            seconds[side].append(seconds_of(steps[side], device, counts[side]))
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> str:
    """Round by round: min / median / max."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    digits = 2 if median(values) < 100 else 0
    return " / ".join(f"{v:.{digits}f}" for v in (min(values), median(values), max(values)))


def ms(seconds: Sequence[float]) -> str:
    """The median in milliseconds, three digits of it."""
    value = 1000 * median(seconds)
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A markdown table with the rows' keys as its header."""
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
