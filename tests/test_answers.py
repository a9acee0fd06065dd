"""results.answers beside plain loops over the lines of docs/records."""

import json
from statistics import mean

import pytest

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
    assert [row[0] for row in ranked] == [answers.called(name) for name in order]
    assert [row[1] for row in ranked] == pytest.approx([means[name] for name in order])
    assert all(low <= rank <= high for _, _, rank, low, high in ranked)
    family = answers.methods()
    place = [c.name for c in family.comparisons].index("VaMP − P2C")
    vamp = {"trainer": "VaMP"}, {"trainer": "P2C"}
    agrees(family, place, difference(*vamp, hm, 3, METHODS))
    assert len(family.comparisons) == len(names) - 1
