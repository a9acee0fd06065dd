"""The questions of docs/PLAN.md, asked of the kept runs of its two sweeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from .effects import (
    NO,
    SURE,
    UNDECIDED,
    WORSE,
    YES,
    Effect,
    Rank,
    Values,
    effect,
    holm,
    p_of_tasks,
    rank_intervals,
    tasks_for,
    verdict,
)
from .interval_figure import IntervalRow
from .kept import read_kept
from .records import Result
from .statistics import Delta, harmonic_mean
from .text_table import markdown

RECORDS = Path(__file__).parents[1] / "docs" / "records"
P2C_SWEEP, METHODS_SWEEP = "five_tasks_p2c", "five_tasks_methods"
POINT, NATS = 1.0, 0.05  # smaller differences do not matter
P2C = "dpd_gmm_aux"  # the whole recipe, among the settings
WITH_AND_WITHOUT = (("dpd_gmm", "baseline"), (P2C, "aux"))
SIGMAS, WORST_SIGMAS = ("0.06", "0.12"), ("0.015", "0.06")
SIDES = ("base", "new")
PLANNED_METHODS, PLANNED_RUNS = 23, 5 * 3 * 2  # of each, on tasks, seeds and sides
FEW = 4  # so many are named in an answer


class Comparison(NamedTuple):
    """Two sets of runs, as numbers by task and seed."""

    name: str
    ours: Values
    theirs: Values


@dataclass(frozen=True)
class Family:
    """Comparisons whose p are corrected together."""

    unit: str
    comparisons: Sequence[Comparison]
    margin: float = POINT
    lower: bool = False  # whether the claim is that ours is lower
    digits: int = 1

    def decided(self) -> list[tuple[Comparison, Effect, float, str]]:
        """Each comparison with its effect, its corrected p and what that decides."""
        effects = [effect(c.ours, c.theirs) for c in self.comparisons]
        corrected = holm([found.p for found in effects])
        return [
            (c, found, p, verdict(found, p, self.margin, self.lower))
            for c, found, p in zip(self.comparisons, effects, corrected, strict=True)
        ]


# -- numbers of the runs


def record(name: str) -> Path:
    """The file of a record. Raises LookupError if there is none."""
    path = RECORDS / f"{name}.jsonl"
    if not path.is_file():
        raise LookupError(f"there is no docs/records/{path.name}")
    return path


@cache
def runs_of(sweep: str) -> tuple[Result, ...]:
    """The kept runs of a sweep. Raises LookupError as `record`."""
    return tuple(read_kept(record(sweep)))


def numbers(
    runs: Sequence[Result], side: str, number: Callable[[Result], float]
) -> dict[tuple[str, int], float]:
    """A number of each run on one side, by task and seed."""
    return {(r.dataset, r.seed): number(r) for r in runs if r.side == side}


def accuracy(run: Result) -> float:
    """In percent."""
    return run.metrics["accuracy"]


def hm(runs: Sequence[Result]) -> Values:
    """Harmonic means of base and new accuracy."""
    base, new = (numbers(runs, side, accuracy) for side in SIDES)
    return {key: float(harmonic_mean(base[key], new[key])) for key in base if key in new}


def settings(name: str) -> list[Result]:
    """P2C's runs of a setting."""
    return [r for r in runs_of(P2C_SWEEP) if r.root.name == name]


def compared(
    pairs: Sequence[tuple[str, str]], values: Callable[[Sequence[Result]], Values], what: str = ""
) -> list[Comparison]:
    """A comparison for each pair of settings."""
    return [
        Comparison(f"{title(a)} − {title(b)}{what}", values(settings(a)), values(settings(b)))
        for a, b in pairs
    ]


def title(setting: str) -> str:
    """What a setting is called in the answers."""
    return f"`{setting}`" + " (P2C)" * (setting == P2C)


def on_side(side: str, number: Callable[[Result], float]) -> Callable[[Sequence[Result]], Values]:
    """`numbers` of one side."""
    return lambda runs: numbers(runs, side, number)


# -- the questions


def table4() -> Family:
    """1: each row of Table 4."""
    rows = ("dpd_gaussian", "dpd_gmm", "dpd_gaussian_aux", P2C)
    return Family("points of HM", compared([(row, "baseline") for row in rows], hm))


def parts() -> Family:
    """1: the recipe taken apart."""
    return Family("points of HM", compared([(P2C, "aux"), ("aux", "baseline")], hm))


def schedule() -> Family:
    """2: falling (the recipe's), rising and constant."""
    falling, rising, constant = P2C, "schedule_rising", "schedule_constant"
    pairs = [(falling, rising), (falling, constant), (rising, constant)]
    return Family("points of HM", compared(pairs, hm))


def cloud() -> Family:
    """3: accuracy lost under noise."""
    made = []
    for side in SIDES:
        for sigma in SIGMAS:
            lost = on_side(side, lambda r, s=sigma: r.record["cloud"]["0"] - r.record["cloud"][s])
            made += compared(WITH_AND_WITHOUT, lost, f", {side}, σ {sigma}")
    return Family("points of accuracy lost", made, lower=True)


def sharpness() -> Family:
    """3: the loss's rise, on average and in the worst direction."""
    made = []
    for side in SIDES:
        for kind, sigmas in (("mean", SIGMAS), ("worst", WORST_SIGMAS)):
            for sigma in sigmas:
                rise = on_side(side, lambda r, k=kind, s=sigma: r.record["sharpness"][k][s])
                made += compared(WITH_AND_WITHOUT, rise, f", {side}, {kind}, σ {sigma}")
    return Family("nats", made, margin=NATS, lower=True, digits=3)


def calibration() -> Family:
    """4: expected calibration error."""
    made = []
    for side in SIDES:
        ece = on_side(side, lambda r: r.metrics["ece"])
        made += compared(WITH_AND_WITHOUT, ece, f", {side}")
    return Family("points of ECE", made, lower=True)


def by_method() -> dict[str, list[Result]]:
    """The runs of each method that has all that are planned. Raises LookupError without P2C's."""
    found: dict[str, list[Result]] = {}
    for run in runs_of(METHODS_SWEEP):
        found.setdefault(run.trainer, []).append(run)
    whole = {name: runs for name, runs in found.items() if len(runs) == PLANNED_RUNS}
    if "P2C" not in whole:
        raise LookupError(f"{METHODS_SWEEP} lacks runs of P2C")
    return whole


def missing() -> str:
    """A sentence on planned methods that are not counted; nothing if all are."""
    lacks = PLANNED_METHODS - len(by_method())
    text = f"Planned and not counted, as runs are missing: {lacks} of {PLANNED_METHODS} methods."
    return text if lacks else ""


def methods() -> Family:
    """5: each method beside P2C."""
    values = {name: hm(runs) for name, runs in by_method().items()}
    others = [name for name in values if name != "P2C"]
    pairs = [Comparison(f"{name} − P2C", values[name], values["P2C"]) for name in others]
    return Family("points of HM", pairs)


FAMILIES = {
    "table4": table4,
    "parts": parts,
    "schedule": schedule,
    "cloud": cloud,
    "sharpness": sharpness,
    "calibration": calibration,
    "methods": methods,
}


# -- as text


def answer(family: Family) -> str:
    """One sentence: how much is decided, with the differences where there are few of a kind."""
    said = {YES: "better", WORSE: "worse", NO: "no difference that matters", UNDECIDED: "undecided"}
    found: dict[str, list[str]] = {}
    for comparison, of, _, decided in family.decided():
        text = f"{comparison.name} ({signed(of.mean, family.digits)})"
        found.setdefault(decided, []).append(text)
    total = len(family.comparisons)
    parts = []
    for key in (key for key in said if key in found):
        n = len(found[key])
        count = f"{n} of {total}" if n < total else "both" if n == 2 else f"all {n}"
        which = f": {', '.join(found[key])}" if n <= FEW else ""
        parts.append(f"{said[key]} in {count}{which}")
    text = "; ".join(parts)
    text = f"**{text[0].upper()}{text[1:]}.**"
    return f"{text} {reach(family)}" if UNDECIDED in found else text


def by_tasks_alone() -> str:
    """A sentence, looked at afterwards: what a plainer test of the same numbers would decide."""
    found = []
    for family in (make() for make in FAMILIES.values()):
        effects = [effect(c.ours, c.theirs) for c in family.comparisons]
        corrected = holm([p_of_tasks(of) for of in effects])
        for comparison, of, p in zip(family.comparisons, effects, corrected, strict=True):
            if p < SURE:
                mean_of = signed(of.mean, family.digits)
                found.append(f"{comparison.name} ({mean_of} {family.unit}, p {shown_p(p)})")
    return (
        f"By Student's t of the five tasks' means, corrected alike: {', '.join(found) or 'none'}."
    )


def reach(family: Family) -> str:
    """A sentence on how wide the intervals of what is undecided are."""
    open_ones = [of for _, of, _, decided in family.decided() if decided == UNDECIDED]
    halves = [(of.high - of.low) / 2 for of in open_ones]
    least, most = (f"{half:.{family.digits}f}" for half in (min(halves), max(halves)))
    size = least if least == most else f"{least} to {most}"
    tasks = tasks_for(family.margin, max(halves), len(open_ones[0].of_task))
    return (
        f"The intervals of those undecided reach {size} {family.unit} to each side; some {tasks} "
        f"such tasks would bring that to {family.margin:g}."
    )


def signed(x: float, digits: int) -> str:
    """With its sign, and a true minus."""
    return f"{x:+.{digits}f}".replace("-", "−")


def of_task(delta: Delta, digits: int) -> str:
    """A task's own mean and half its Student's interval."""
    return f"{signed(delta.mean, digits)} ± {delta.half:.{digits}f}"


def table(family: Family) -> str:
    """A markdown row for each comparison."""
    rows, digits = [], family.digits
    for comparison, of, p, decided in family.decided():
        both = (mean(of.values()) for of in (comparison.ours, comparison.theirs))
        row = {
            family.unit: comparison.name,
            "means": " / ".join(f"{x:.{digits}f}" for x in both).replace("-", "−"),
        }
        row["difference"] = signed(of.mean, digits)
        row["95% interval"] = f"[{signed(of.low, digits)}, {signed(of.high, digits)}]"
        row["p"] = shown_p(of.p)
        row["p (Holm)"] = shown_p(p)
        row["answer"] = decided
        rows.append(row | {task: of_task(delta, digits) for task, delta in of.of_task.items()})
    return markdown(rows)


def shown_p(p: float) -> str:
    """To three digits; to four where three do not say on which side of 0.05 it is."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.4f}" if f"{p:.3f}" == "0.050" else f"{p:.3f}"


def interval_rows(family: Family) -> list[IntervalRow]:
    """For a figure: the effect, its interval, the tasks' means."""
    rows = []
    for comparison, of, _, _ in family.decided():
        points = [delta.mean for delta in of.of_task.values()]
        rows.append(IntervalRow(comparison.name.replace("`", ""), of.mean, of.low, of.high, points))
    return rows


def two_digits(x: float) -> str:
    """480, 12, 1.7."""
    return f"{float(f'{x:.2g}'):g}"


def costs() -> dict[str, tuple[str, str]]:
    """Learned parameters and mean seconds of training of each method, as text."""
    found = {}
    for name, runs in by_method().items():
        seconds = [r.record["train_seconds"] for r in runs if r.record["train_seconds"]]
        parameters = max(r.record["parameters"] for r in runs)
        found[name] = (f"{parameters:,}", two_digits(mean(seconds)) if seconds else "")
    return found


def ranked() -> list[tuple[str, float, Rank]]:
    """(method, mean HM, rank), the best first."""
    values = {name: hm(runs) for name, runs in by_method().items()}
    ranks = rank_intervals(values)
    means = {name: sum(of.values()) / len(of) for name, of in values.items()}
    return [(name, means[name], ranks[name]) for name in sorted(values, key=ranks.get)]


def place_of_p2c() -> str:
    """A sentence: P2C's rank, and the methods whose interval of ranks lies beside its own."""
    rows = ranked()
    [own] = [rank for name, _, rank in rows if name == "P2C"]
    above = ", ".join(name for name, _, rank in rows if rank.high < own.low) or "none"
    below = ", ".join(name for name, _, rank in rows if rank.low > own.high) or "none"
    return (
        f"**P2C has rank {own.rank:g} of {len(rows)} [{own.low:g} to {own.high:g}].** Wholly above "
        f"that lies the interval of {above}; wholly below that of {below}. Ranks are not "
        "corrected for their number and decide nothing; differences do."
    )
