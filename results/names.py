"""What methods are called: by their trainers, and variants of one by what tells them apart."""

import os
import re
import textwrap
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from dassl.commands import plain

if TYPE_CHECKING:  # what is in results.json is not needed to name what is in logs
    from .records import Result

# What a table says of a trainer whose numbers are in it.
ABOUT = {
    "EMPL": "EMPL: made after the abstract of Chen et al., ICCV 2023; their text and code were "
    "not available, so it may differ from their method.",
}
# Where a long name may go on in the next line, the best first: not within a number.
PLACES = (
    r"(?<= )",
    r"(?<=[_/+])(?=\w)|(?<=\.)(?=[^\W\d])",
    r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])",
)
BREAKS = re.compile("|".join(PLACES[1:]))  # beside its spaces
OWN_CONFIG = re.compile(r"_(imnet|sun397)\b")  # settings for one dataset alone (runs/run.py)


def about(methods: Iterable[str]) -> list[str]:
    """Lines for the caption of a table of these methods."""
    trainers = {method.split(" ")[0] for method in methods}
    return [line for trainer, line in ABOUT.items() if trainer in trainers]


def fold(name: str, width: int, places: Sequence[str] = PLACES) -> str:
    """The name in lines of at most `width` letters, broken where it reads best."""
    if not places:
        return textwrap.fill(name, width)
    lines = [""]
    for part in re.split(places[0], name):
        word = part.rstrip()
        if len(lines[-1] + word) <= width:
            lines[-1] += part
        else:
            lines += fold(word, width, places[1:]).split("\n")
            lines[-1] += part[len(word) :]
    return "\n".join(line.rstrip() for line in lines if line)


def shared_configs(used: Collection[tuple[Hashable, str]]) -> dict[str, str]:
    """Name the configs of one method, given pairs (dataset, config).

    x_imnet and x_sun397 are called x, as they are x's settings for one dataset, unless a dataset
    has runs of both.
    """
    names = {config: OWN_CONFIG.sub("", config) for _, config in used}
    clash = len({(dataset, names[config]) for dataset, config in used}) < len(set(used))
    return {config: config for config in names} if clash else names


def name_methods(
    results: Sequence["Result"], by: Sequence[str] = ("cfg", "shots", "root")
) -> dict["Result", str]:
    """Name each result's method by its trainer, and variants of a trainer by what tells them apart.

    That is the config's name, the shots, the output folder, or as many of these as it takes.
    Results that have their names keep them.
    """
    if results and all(r.method for r in results):
        return {r: r.method for r in results}
    top = os.path.commonpath([r.root for r in results]) if results else ""
    names = {}
    for trainer in dict.fromkeys(r.trainer for r in results):
        group = [r for r in results if r.trainer == trainer]
        configs = shared_configs([((r.dataset, r.protocol, r.shots), r.cfg) for r in group])
        words = {
            "cfg": [configs[r.cfg] for r in group],
            "shots": [f"shots_{r.shots}" for r in group],
            "root": [plain(os.path.relpath(r.root, top)) for r in group],
        }
        # columns of words for each choice of keys, the shortest first
        choices = [
            [words[key] for key in keys]
            for size in range(len(by) + 1)
            for keys in combinations(by, size)
        ]
        total = len(set(zip(*choices[-1], strict=True)))
        tells = next(c for c in choices if len(set(zip(*c, strict=True)) or {()}) == total)
        for i, r in enumerate(group):
            shown = [column[i] for column in tells if column[i] not in ("", ".")]
            names[r] = " ".join([trainer, *shown])
    return names


def with_methods(found: Sequence["Result"]) -> list["Result"]:
    """The same results, each with the one name that all tables and figures shall call it by.

    Shots are told where a method has several, but of few-shot runs by their tables' columns.
    """
    names = name_methods(found, by=("cfg", "root"))
    shots: dict[str, set[int]] = defaultdict(set)
    for r in (r for r in found if r.protocol != "few_shot"):
        shots[names[r]].add(r.shots)
    named = []
    for r in found:
        several = r.protocol != "few_shot" and len(shots[names[r]]) > 1
        named.append(replace(r, method=names[r] + f" shots_{r.shots}" * several))
    return named
