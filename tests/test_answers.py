"""results.answers beside plain loops over the lines of docs/records."""

import json
from statistics import mean

import numpy as np
import pytest
from scipy.stats import ttest_rel

from results import answers

TASKS = ("Shapes", "ShapesFog", "ShapesDusk", "ShapesGarden", "ShapesCrowd")


def lines(sweep: str) -> list[dict]:
    first, *rest = (answers.RECORDS / f"{sweep}.jsonl").read_text().strip().split("\n")
    return [json.loads(first)["shared"] | json.loads(line) for line in rest]


P2C, METHODS = lines("five_tasks_p2c"), lines("five_tasks_methods")


def value(rows: list[dict], number, **of) -> float:
    """Of the one row that is so."""
    [row] = [row for row in rows if all(row[key] == wanted for key, wanted in of.items())]
    return number(row)


def hm(rows, **of) -> float:
    base, new = (value(rows, lambda r: r["accuracy"], side=s, **of) for s in ("base", "new"))
    return 2 / (1 / base + 1 / new)


def difference(ours: dict, theirs: dict, number, seeds: int, rows=P2C) -> dict[str, float]:
    """Each task's mean difference."""
    return {
        task: mean(
            number(rows, dataset=task, seed=seed, **ours)
            - number(rows, dataset=task, seed=seed, **theirs)
            for seed in range(1, seeds + 1)
        )
        for task in TASKS
    }


def agrees(family: answers.Family, place: int, expected: dict[str, float]) -> None:
    _, found, _, _ = family.decided()[place]
    assert found.mean == pytest.approx(mean(expected.values()), abs=2e-4)
    assert {task: of.mean for task, of in found.of_task.items()} == pytest.approx(
        expected, abs=2e-4
    )


def on(side: str, number):
    return lambda rows, **of: value(rows, number, side=side, **of)


def test_harmonic_means():
    gmm = {"setting": "dpd_gmm"}, {"setting": "baseline"}
    agrees(answers.table4(), 1, difference(*gmm, hm, 10))
    rising = {"setting": "dpd_gmm_aux"}, {"setting": "schedule_rising"}
    agrees(answers.schedule(), 0, difference(*rising, hm, 10))


def test_accuracy_lost_loss_risen_and_calibration():
    whole = {"setting": "dpd_gmm_aux"}, {"setting": "aux"}
    lost = on("new", lambda r: r["cloud"]["0"] - r["cloud"]["0.12"])
    agrees(answers.cloud(), 7, difference(*whole, lost, 10))
    alone = {"setting": "dpd_gmm"}, {"setting": "baseline"}
    worst = on("base", lambda r: r["sharpness"]["worst"]["0.015"])
    agrees(answers.sharpness(), 4, difference(*alone, worst, 10))
    agrees(answers.calibration(), 3, difference(*whole, on("new", lambda r: r["ece"]), 10))
    assert all(f().lower for f in (answers.cloud, answers.sharpness, answers.calibration))


def test_methods_and_their_order():
    names = {row["trainer"] for row in METHODS}
    means = {
        name: mean(hm(METHODS, trainer=name, dataset=t, seed=s) for t in TASKS for s in (1, 2, 3))
        for name in names
    }
    ranked = answers.ranked()
    order = sorted(names, key=means.get, reverse=True)
    assert [name for name, *_ in ranked] == order
    assert [row[1] for row in ranked] == pytest.approx([means[name] for name in order])
    assert all(rank.low <= rank.rank <= rank.high for _, _, rank in ranked)
    family = answers.methods()
    place = [c.name for c in family.comparisons].index("VaMP − P2C")
    vamp = {"trainer": "VaMP"}, {"trainer": "P2C"}
    agrees(family, place, difference(*vamp, hm, 3, METHODS))
    assert len(family.comparisons) == len(names) - 1


def test_the_plainer_test_is_scipys_on_the_tasks_means():
    """Looked at afterwards: of all methods beside P2C, corrected by hand."""
    ps = {}
    for name in {row["trainer"] for row in METHODS} - {"P2C"}:
        of = difference({"trainer": name}, {"trainer": "P2C"}, hm, 3, METHODS)
        ps[name] = ttest_rel([*of.values()], [0.0] * 5).pvalue
    corrected, most = {}, 0.0
    for place, name in enumerate(sorted(ps, key=ps.get)):
        most = max(most, min(1.0, ps[name] * (len(ps) - place)))
        corrected[name] = most
    said = answers.by_tasks_alone()
    for name, p in corrected.items():
        assert (f"{name} − P2C (" in said) == (p < 0.05)
        assert p >= 0.05 or f"p {p:.3f})" in said
    assert any(p < 0.05 for p in corrected.values())


def test_what_an_answer_says():
    """Counts by verdict, names where few are of a kind, and how wide what is undecided lies."""
    rng = np.random.default_rng(0)
    zero = {(task, seed): 0.0 for task in TASKS for seed in range(10)}

    def made(mean: float, spread: float) -> dict:
        return {key: mean + spread * rng.normal() for key in zero}

    def family(*numbers: tuple[float, float]) -> str:
        every = [answers.Comparison(f"c{i}", made(*n), zero) for i, n in enumerate(numbers)]
        return answers.answer(answers.Family("points", every))

    assert family((5, 0.1)) == "**Better in all 1: c0 (+5.0).**"
    assert family((-5, 0.1), (-4, 0.1)) == "**Worse in both: c0 (−5.0), c1 (−4.0).**"
    text = family((9, 0.1), (0, 0.1), *[(0, 30)] * 5)
    assert text.startswith(
        "**Better in 1 of 7: c0 (+9.0); no difference that matters in 1 of 7: c1 ("
    )
    assert "; undecided in 5 of 7.** The intervals of those undecided reach " in text
    assert "such tasks would bring that to 1." in text


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0004, "< 0.001"), (0.0123, "0.012"), (0.0496, "0.0496"), (0.0502, "0.0502"), (1, "1.000")],
)
def test_a_p_says_on_which_side_it_is(p, shown):
    assert answers.shown_p(p) == shown
