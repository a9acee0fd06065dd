"""Means and spreads over seeds, averages over datasets, paired differences. In percent."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Stat(NamedTuple):
    """Mean and spread (std or half a 95% interval); the spread is NaN where undefined."""

    mean: float
    spread: float


class Delta(NamedTuple):
    """Mean of `n` paired differences and half its 95% interval (NaN for one pair)."""

    mean: float
    half: float
    n: int


def summarise(values: Sequence[float], ci95: bool = False) -> Stat:
    """Mean ± population std, or ± 1.96·std/√n, of at least one value; one alone has no spread."""
    std = float(np.std(values)) if len(values) > 1 else math.nan
    return Stat(float(np.mean(values)), 1.96 * std / len(values) ** 0.5 if ci95 else std)


def harmonic_mean(base: float | NDArray, new: float | NDArray) -> float | NDArray:
    """Harmonic mean of two numbers or arrays; 0 where both are 0."""
    return 2 * base * new / np.maximum(base + new, 1e-12)


def base_new_hm(pairs: ArrayLike, ci95: bool = False) -> tuple[Stat, Stat, Stat]:
    """Summarise (seeds, 2) pairs of base and new, and the HM of each pair."""
    base, new = np.asarray(pairs).T
    return summarise(base, ci95), summarise(new, ci95), summarise(harmonic_mean(base, new), ci95)


def over_datasets(cells: Sequence[Mapping[int, ArrayLike]]) -> tuple[NDArray, NDArray | None]:
    """Average datasets' {seed: value or values}.

    Returns: the mean of the datasets' means, and the (seeds, …) averages of each seed over the
        datasets; None in their place if not all datasets have the same seeds.
    """
    mean = np.mean([np.mean(list(cell.values()), axis=0) for cell in cells], axis=0)
    if len({frozenset(cell) for cell in cells}) > 1:
        return mean, None
    seeds = sorted(cells[0])
    return mean, np.mean([[cell[seed] for seed in seeds] for cell in cells], axis=0)


def paired_difference(ours: Mapping[tuple, float], theirs: Mapping[tuple, float]) -> Delta | None:
    """Mean difference over the keys both have, ± t(0.975, n-1) · s/√n; None if they share none."""
    from scipy.special import stdtrit  # slow to import, and the runners need no differences

    differences = [ours[key] - theirs[key] for key in ours if key in theirs]
    n = len(differences)
    if n < 2:
        return Delta(differences[0], math.nan, 1) if n else None
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(differences, ddof=1)) / math.sqrt(n)
    return Delta(float(np.mean(differences)), half, n)
