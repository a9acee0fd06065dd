"""A test's numbers, from scores and labels."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.commands import plain
from dassl.results_json import MORE_METRICS
from dassl.utils import Failure, Registry, atomic_write, mkdir_if_missing, ranks

from .measures import BINS, calibration_gaps, rank

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs) -> "EvaluatorBase":
    """The evaluator cfg.TEST.EVALUATOR names; raises UsageError if there is none.

    Or if it is of one process, in a run of several.
    """
    evaluator = EVALUATOR_REGISTRY.build(cfg, cfg.TEST.EVALUATOR, **kwargs)
    if "add_ranks" not in vars(type(evaluator)):  # not inherited by one that counts otherwise
        ranks.refuse(f"TEST.EVALUATOR {cfg.TEST.EVALUATOR}: it adds nothing up (add_ranks)")
    return evaluator


class EvaluatorBase:
    """reset(), then process(output, label) per batch, then evaluate().

    Between these two, where a run is of several processes, add_ranks().
    """

    # Told by evaluate() its metrics, those of each class by name and the seconds since reset().
    when_done: Callable[[dict[str, float], dict[str, dict[str, float]], float], None] | None = None

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def add_ranks(self, device: torch.device) -> None:
        """From now on all has been processed that any of the run's processes has (ranks.py).

        An evaluator that does not say how, in its own body, is for one process.
        """
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, macro F1, precision, recall, top-5 accuracy and expected calibration error.

    A class's recall is its accuracy; its precision is the share of its predictions that are right,
    and 0 if it is never predicted. The macro ones are means over the classes that occur: a class
    without images is in none of them. Top-5 accuracy is there where there are more than 5 classes.
    On demand also a confusion matrix.
    """

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs):
        super().__init__(cfg)
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        """Forgets all batches; the test's time begins."""
        self._counts: Tensor | None = None  # as the others, there from the first batch on
        self._start = time.monotonic()

    def _begin(self, classes: int, device: torch.device) -> None:
        zeros = partial(torch.zeros, dtype=torch.int64, device=device)
        self._counts = zeros(3, classes)  # images of each class, predictions of it, right ones
        # (C · C,): label times C plus prediction
        self._cmat = zeros(classes * classes).int() if self.cfg.TEST.COMPUTE_CMAT else None
        self._nans = zeros(())  # images with a score that is NaN
        self._top5 = zeros(())  # images whose class is among the first five
        self._gaps = zeros(BINS).double()  # see calibration_gaps

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Counts, without waiting for the device: mo (B, C) scores, gt (B,) labels."""
        mo, classes, pred = mo.detach(), mo.shape[1], mo.argmax(dim=1)
        gt = gt.to(pred)
        if self._counts is None:
            self._begin(classes, mo.device)
        hit = pred == gt
        self._nans += mo.isnan().any(dim=1).sum()
        self._top5 += (rank(mo, gt) < 5).sum()
        self._gaps += calibration_gaps(mo, hit)
        images, predicted, right = self._counts
        ones = torch.ones_like(gt)  # for scatter_add_, since bincount would wait for the device
        images.scatter_add_(0, gt, ones)
        predicted.scatter_add_(0, pred, ones)
        right.scatter_add_(0, gt, hit.long())
        if self._cmat is not None:
            self._cmat.scatter_add_(0, gt * classes + pred, ones.int())

    def add_ranks(self, device: torch.device) -> None:
        """Adds up what the run's processes have counted, on `device`: sums without any rounding.

        Also of the gaps, up to some 10^8 images times classes: a confidence, in float32, is a
        multiple of 2^-25 / C or so, and float64 has room for the sum of all.
        """
        classes = ranks.greatest(0 if self._counts is None else self._counts.shape[1], device)
        if self._counts is None and classes:  # there were fewer batches than processes
            self._begin(classes, device)
        if classes:
            ranks.add_up(self._counts, self._nans, self._top5, self._gaps)
        if classes and self._cmat is not None:
            ranks.add_up(self._cmat)

    def evaluate(self) -> OrderedDict[str, float]:
        """Prints and returns the metrics by their names in results.json, in percent.

        accuracy, error_rate, macro_f1, macro_precision, macro_recall, top5_accuracy, ece and, if it
        is wanted, perclass_accuracy. Raises Failure if nothing was processed, or a score was NaN.
        """
        if self._counts is None:
            raise Failure("There is nothing to evaluate: the test split is empty")
        if nans := int(self._nans):
            line = f"The scores of {nans:,} images are NaN"
            raise Failure(f"{line}: the model's weights are damaged or overflow PREC")
        counts = self._counts.cpu().numpy()
        seconds = time.monotonic() - self._start  # here the last batch has come from its device
        images, predicted, right = counts[:, counts[0] > 0]  # of the classes that occur
        total, correct = int(images.sum()), int(right.sum())
        per_class = _per_class(counts)
        results = OrderedDict(accuracy=100.0 * correct / total)
        results["error_rate"] = 100.0 - results["accuracy"]
        results["macro_f1"] = 100.0 * float(np.mean(2.0 * right / (images + predicted)))
        for name in ("precision", "recall"):
            results[f"macro_{name}"] = float(np.mean([of[name] for of in per_class.values()]))
        if counts.shape[1] > 5:
            results["top5_accuracy"] = 100.0 * int(self._top5) / total
        results["ece"] = 100.0 * float(self._gaps.abs().sum()) / total
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = results["macro_recall"]
        if self._cmat is not None:
            self._save_confusion(counts[:2].any(axis=0))
        if self.when_done:  # before a result is printed: a log that has one has its files
            metrics = dict(results, total=total, correct=correct)
            self.when_done(metrics, self._by_name(per_class), seconds)
        self._print_result(results, total, correct)
        if self.cfg.TEST.PER_CLASS_RESULT:
            self._print_classes(per_class, counts)
            print(f"* average: {results['perclass_accuracy']:.1f}%")
        return results

    def _print_result(self, results: dict[str, float], total: int, correct: int) -> None:
        """In one write: a log has the whole result or none of it."""
        block = f"=> result\n* total: {total:,}\n* correct: {correct:,}\n"
        block += f"* accuracy: {results['accuracy']:.1f}%\n* error: {results['error_rate']:.1f}%\n"
        names = ("macro_f1", *(MORE_METRICS if self.cfg.TEST.MORE_METRICS else ()))
        print(block + "\n".join(f"* {n}: {results[n]:.1f}%" for n in names if n in results))

    def _print_classes(self, per_class: dict[int, dict[str, float]], counts: np.ndarray) -> None:
        print("=> per-class result")
        for label, of_class in per_class.items():
            total, _, correct = counts[:, label]
            line = f"* class: {label} ({plain(self._name(label))})\ttotal: {total:,}"
            line += f"\tcorrect: {correct:,}\tacc: {of_class['recall']:.1f}%"
            if self.cfg.TEST.MORE_METRICS:
                line += "".join(f"\t{name}: {value:.1f}%" for name, value in of_class.items())
            print(line)

    def _by_name(self, per_class: dict[int, dict[str, float]]) -> dict[str, dict[str, float]]:
        found = {}
        for label, of_class in per_class.items():  # ImageNet has some names twice
            name = self._name(label)
            found[f"{name} ({label})" if name in found else name] = of_class
        return found

    def _name(self, label: int) -> str:
        return self._lab2cname[label] if self._lab2cname else str(label)

    def _save_confusion(self, kept: np.ndarray) -> None:
        """Saves (n, n) float64: each kept label's share of each prediction."""
        if not ranks.first():
            return
        counts = self._cmat.cpu().view(len(kept), -1)[kept][:, kept].double()
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        mkdir_if_missing(self.cfg.OUTPUT_DIR)
        with atomic_write(path) as file:
            torch.save(counts / counts.sum(dim=1, keepdim=True).clamp(min=1), file)
        print(f"Confusion matrix is saved to {path}")


def _per_class(counts: np.ndarray) -> dict[int, dict[str, float]]:
    """Precision and recall in percent of each class that occurs, from Classification's counts."""
    found = {}
    for label, (images, predicted, right) in enumerate(counts.T.tolist()):
        if images:
            precision, recall = 100.0 * right / max(predicted, 1), 100.0 * right / images
            found[label] = {"precision": precision, "recall": recall}
    return found
