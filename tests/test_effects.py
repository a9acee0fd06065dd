"""Differences over tasks and seeds, beside formulas: results.effects."""

import numpy as np
import pytest

from results import effects
from results.effects import NO, UNDECIDED, WORSE, YES, Effect, effect, holm, rank_intervals, verdict

TASKS = "abcde"


def values(table: np.ndarray) -> dict:
    return {(TASKS[t], s): float(x) for t, row in enumerate(table) for s, x in enumerate(row)}


@pytest.fixture
def both():
    """Ours and theirs (5, 10): tasks differ by much, their differences by less."""
    rng = np.random.default_rng(3)
    theirs = rng.normal(60, 10, (5, 1)) + rng.normal(0, 3, (5, 10))
    return theirs + rng.normal(2, 1.5, (5, 1)) + rng.normal(0, 2, (5, 10)), theirs


def test_the_interval_is_that_of_the_bootstraps_variance(both):
    """Var = (variance of the tasks' means + mean of their variances / S) / T, times T / (T - 1)."""
    ours, theirs = both
    found = effect(values(ours), values(theirs))
    d = ours - theirs
    error = np.sqrt((d.mean(1).var() + d.var(1).mean() / 10) / 5 * 5 / 4)
    assert found.mean == pytest.approx(d.mean())
    assert (found.high - found.low) / 2 == pytest.approx(2.776445 * error, rel=0.03)
    from scipy.stats import t  # the p of the same error

    assert found.p == pytest.approx(2 * t.sf(abs(d.mean()) / error, 4), rel=0.1)


def test_each_tasks_own_difference(both):
    from scipy.stats import ttest_rel

    ours, theirs = both
    of_task = effect(values(ours), values(theirs)).of_task
    for i, task in enumerate(TASKS):
        interval = ttest_rel(ours[i], theirs[i]).confidence_interval()
        mean, half, n = of_task[task]
        assert (mean - half, mean + half) == pytest.approx(tuple(interval)) and n == 10


def test_only_pairs_count_and_seeds_must_be_the_same_for_all_tasks(both):
    ours, theirs = map(values, both)
    fewer = {key: x for key, x in ours.items() if key[1] < 3}
    assert effect(fewer, theirs).of_task["a"].n == 3
    del fewer["a", 1]
    with pytest.raises(ValueError, match="same seeds"):
        effect(fewer, theirs)
    with pytest.raises(ValueError, match="two tasks"):
        effect({key: x for key, x in ours.items() if key[0] == "a"}, theirs)


def test_equal_runs_differ_by_nothing(both):
    same = values(both[0])
    found = effect(same, same)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_holm():
    """Smallest times four, the next times three, …; none below one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("mean", "half", "p", "lower", "expected"),
    [
        (2, 1, 0.01, False, YES),
        (2, 1, 0.01, True, WORSE),
        (-2, 1, 0.01, False, WORSE),
        (-2, 1, 0.01, True, YES),
        (2, 1, 0.06, False, UNDECIDED),
        (0.2, 0.7, 0.4, False, NO),
        (0.2, 0.9, 0.4, False, UNDECIDED),
        (-0.2, 0.9, 0.4, False, UNDECIDED),
        (0.4, 0.1, 0.001, False, YES),
        (0.4, 0.3, 0.06, False, UNDECIDED),  # excludes zero, but not after the correction
    ],
)
def test_what_is_decided(mean, half, p, lower, expected):
    found = Effect(mean, mean - half, mean + half, p, {})
    assert verdict(found, p, margin=1.0, lower=lower) == expected


def test_ranks():
    """The clear winner and loser have their ranks for sure; two that are alike share two ranks."""
    rng = np.random.default_rng(1)
    alike = rng.normal(70, 3, (5, 6))
    methods = {
        "middle": values(alike),
        "top": values(alike + 20),
        "too": values(alike + rng.normal(0, 1, (5, 6))),
        "low": values(alike - 20),
    }
    ranks = rank_intervals(methods)
    assert ranks["top"] == (1, 1, 1, [1] * 5) and ranks["low"] == (4, 4, 4, [4] * 5)
    assert ranks["middle"][1:3] == ranks["too"][1:3] == (2, 3)
    of_tasks = zip(ranks["middle"].of_task, ranks["too"].of_task, strict=True)
    for key, both in zip(TASKS, of_tasks, strict=True):
        middle, too = (
            np.mean([x for (task, _), x in methods[name].items() if task == key])
            for name in ("middle", "too")
        )
        assert both == ((2, 3) if middle > too else (3, 2))
    del methods["low"]["a", 0]
    with pytest.raises(ValueError, match="same tasks and seeds"):
        rank_intervals(methods)


def test_draws_are_of_tasks_and_then_of_their_seeds():
    """A task that is not drawn gives nothing; a drawn one gives as many values as it has seeds."""
    table = np.zeros((3, 2, 1))
    table[1] = 1
    drawn = effects.resampled(table, draws=500)[:, 0]
    assert set(np.round(drawn * 3).astype(int)) == {0, 1, 2, 3}
    assert np.allclose(drawn * 3, np.round(drawn * 3))


def test_how_many_tasks_an_interval_takes():
    """Half of it goes with t / √n: by scipy's t, one more would be enough and one less not."""
    from scipy.stats import t

    n = effects.tasks_for(1.0, 3.5, 5)
    of_one = 3.5 / t.ppf(0.975, 4) * 5**0.5  # what √n and t are factors of
    assert (
        of_one * t.ppf(0.975, n - 1) / n**0.5 <= 1 < of_one * t.ppf(0.975, n - 2) / (n - 1) ** 0.5
    )
    assert effects.tasks_for(3.5, 3.5, 5) == 5
