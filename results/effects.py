"""Differences over tasks and seeds, and what they decide: docs/PLAN.md says how.

Seeds of one task belong together, so draws are of tasks and, in each, of its seeds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .statistics import Delta, paired_difference

DRAWS = 10_000
SURE = 0.05  # a smaller corrected p decides
YES, WORSE, NO, UNDECIDED = "yes", "worse", "no", "undecided"

Values = Mapping[tuple[str, int], float]  # (task, seed) -> a number


class Effect(NamedTuple):
    """A difference: its mean over tasks, its 95% interval and p, and each task's own."""

    mean: float
    low: float
    high: float
    p: float
    of_task: dict[str, Delta]


def grid(values: Values) -> tuple[list[str], NDArray]:
    """The tasks, and (T, S) values by task and seed.

    Raises ValueError if there is one task only or not all have the same seeds.
    """
    tasks = list(dict.fromkeys(task for task, _ in values))
    seeds = [sorted(seed for task, seed in values if task == one) for one in tasks]
    if len(tasks) < 2 or any(of_task != seeds[0] for of_task in seeds):
        raise ValueError("two tasks or more with the same seeds are needed")
    return tasks, np.array([[values[task, seed] for seed in seeds[0]] for task in tasks])


def resampled(table: NDArray, draws: int = DRAWS) -> NDArray:
    """(draws, …) means of tasks and seeds drawn with replacement, of (T, S, …) values.

    The draws are the same ones for all tables of a shape.
    """
    rng = np.random.default_rng(0)
    n_tasks, n_seeds = table.shape[:2]
    tasks = rng.integers(n_tasks, size=(draws, n_tasks, 1))
    seeds = rng.integers(n_seeds, size=(draws, n_tasks, n_seeds))
    # how often each value is in a draw, (draws, T, S)
    counts = np.zeros((draws, n_tasks, n_seeds))
    np.add.at(counts, (np.arange(draws)[:, None, None], tasks, seeds), 1)
    return np.tensordot(counts, table, axes=2) / (n_tasks * n_seeds)


def effect(ours: Values, theirs: Values) -> Effect:
    """Ours minus theirs, over the tasks and seeds of both. Raises ValueError as `grid`."""
    from scipy.special import stdtr, stdtrit  # slow to import, and not all tables need it

    tasks, differences = grid({key: ours[key] - theirs[key] for key in ours if key in theirs})
    n = len(tasks)
    mean = float(differences.mean())
    error = float(resampled(differences).std()) * math.sqrt(n / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error)) if error else float(mean == 0)
    each = {}
    for task in tasks:
        mine, other = ({key: v for key, v in of.items() if key[0] == task} for of in (ours, theirs))
        each[task] = paired_difference(mine, other)
    return Effect(mean, mean - half, mean + half, p, each)


def p_of_tasks(found: Effect) -> float:
    """By Student's t of the tasks' own means, as if seeds had no spread of their own."""
    from scipy.stats import ttest_1samp

    return float(ttest_1samp([delta.mean for delta in found.of_task.values()], 0).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """The p of a family, corrected by Holm's method (1979): the smallest counts for all, …"""
    order = np.argsort(ps, kind="stable")
    steps = [min(1.0, (len(ps) - i) * ps[k]) for i, k in enumerate(order)]
    corrected = np.empty(len(ps))
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()


def verdict(found: Effect, p: float, margin: float, lower: bool = False) -> str:
    """What a difference decides, with its corrected p.

    Args:
        margin: a smaller difference does not matter.
        lower: whether the claim is that ours is lower.
    """
    if p < SURE:
        return YES if (found.mean < 0) == lower else WORSE
    return NO if -margin <= found.low <= 0 <= found.high <= margin else UNDECIDED


def tasks_for(wanted: float, half: float, tasks: int) -> int:
    """How many tasks give half an interval of `wanted`, if so many gave `half`."""
    from scipy.special import stdtrit

    n = np.arange(2, 1_000_000)
    halves = half / stdtrit(tasks - 1, 0.975) * stdtrit(n - 1, 0.975) * np.sqrt(tasks / n)
    return int(n[halves <= wanted][0])


class Rank(NamedTuple):
    """A method's place by its mean (1: the highest), the ends of its 95% interval, each task's."""

    rank: float
    low: float
    high: float
    of_task: list[float]


def rank_intervals(values: Mapping[str, Values]) -> dict[str, Rank]:
    """Each method's rank.

    Raises ValueError as `grid`, or if not all methods have the same tasks and seeds.
    """
    from scipy.stats import rankdata

    if len({frozenset(of_method) for of_method in values.values()}) > 1:
        raise ValueError("not all methods have the same tasks and seeds")
    first = next(iter(values.values()))
    ordered = [{key: of_method[key] for key in first} for of_method in values.values()]
    table = np.stack([grid(of_method)[1] for of_method in ordered], axis=-1)  # (T, S, M)
    ranks = rankdata(-table.mean(axis=(0, 1)))
    low, high = np.quantile(rankdata(-resampled(table), axis=1), (0.025, 0.975), axis=0)
    of_tasks = rankdata(-table.mean(axis=1), axis=1).T.tolist()
    return dict(zip(values, map(Rank, ranks, low, high, of_tasks), strict=True))
