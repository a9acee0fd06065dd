"""What a model says of images, and its forms: a table, CSV, JSON lines."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from dassl.commands import no_formula, plain

DIGITS = ".7g"  # of a probability: as many as a float32 has


class Prediction(NamedTuple):
    """What a model says of one image."""

    image: str  # its path
    classes: list[tuple[str, float]]  # names and probabilities, the most probable first
    truth: str | None = None  # the class that its folder is called like

    @property
    def right(self) -> bool:
        return self.classes[0][0] == self.truth


def predictions_of(
    images: Sequence[str],
    logits: np.ndarray,
    classnames: Sequence[str],
    topk: int,
    truths: Sequence[str | None],
) -> Iterator[Prediction]:
    """A Prediction of each image and its row of logits (B, C); of equal ones the first is best."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    orders = np.argsort(-logits, axis=1, kind="stable")[:, :topk]
    for image, row, order, truth in zip(images, probabilities, orders, truths, strict=True):
        yield Prediction(image, [(classnames[i], float(row[i])) for i in order], truth)


def csv_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """image, class_1, probability_1, …; last, where folders are named by class, true_class."""
    for number, p in enumerate(predictions):
        if not number:
            places = range(1, len(p.classes) + 1)
            names = [f"{what}_{place}" for place in places for what in ("class", "probability")]
            yield _csv_line(["image", *names, *["true_class"] * (p.truth is not None)])
        cells = [cell for name, share in p.classes for cell in (name, f"{share:{DIGITS}}")]
        yield _csv_line([p.image, *cells, *[p.truth] * (p.truth is not None)])


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(map(no_formula, cells))
    return text.getvalue()


def json_lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """{"image", "classes": [{"name", "probability"}, …]} and, where it is known, "true_class"."""
    for p in predictions:
        classes = [
            {"name": name, "probability": float(f"{share:{DIGITS}}")} for name, share in p.classes
        ]
        truth = {} if p.truth is None else {"true_class": p.truth}
        yield json.dumps({"image": p.image, "classes": classes} | truth, ensure_ascii=False)


def table_lines(predictions: Iterable[Prediction], width: int | None = None) -> Iterator[str]:
    """A table for people; where there is a width, with as many of the classes as fit."""
    found = list(predictions)
    if not found:
        return
    topk = len(found[0].classes)
    shown = topk
    while width and shown > 1 and _width(_table(found, shown)) > width:
        shown -= 1
    yield from _table(found, shown)
    if shown < topk:
        yield f"(the best {shown} of {topk}: the terminal holds no more; --topk {topk} shows all)"


def _table(found: Sequence[Prediction], shown: int) -> list[str]:
    known = found[0].truth is not None
    rows = [
        [plain(p.image), *[plain(p.truth)] * known]
        + [f"{plain(name)} {share:.1%}" for name, share in p.classes[:shown]]
        for p in found
    ]
    places = [f"best {i}" if i > 1 else "best" for i in range(1, shown + 1)]
    headers = ["image", *["true class"] * known, *places]
    return tabulate(rows, headers, disable_numparse=True).splitlines()


def _width(table: Sequence[str]) -> int:
    return len(table[1])  # the rule below the headers is as wide as the table
