"""A test's numbers, from scores and labels."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.commands import plain
from dassl.utils import Failure, Registry, atomic_write, mkdir_if_missing

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs) -> "EvaluatorBase":
    """The evaluator cfg.TEST.EVALUATOR names; raises UsageError if there is none."""
    return EVALUATOR_REGISTRY.build(cfg, cfg.TEST.EVALUATOR, **kwargs)


class EvaluatorBase:
    """reset(), then process(output, label) per batch, then evaluate()."""

    # Told by evaluate() its metrics, {class name: accuracy} and the seconds since reset().
    when_done: Callable[[dict[str, float], dict[str, float], float], None] | None = None

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy and macro F1; on demand accuracy per class and a confusion matrix."""

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs):
        super().__init__(cfg)
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        """Forgets all batches; the test's time begins."""
        # (3, C): images of each class, predictions of it, right ones
        self._counts: Tensor | None = None
        self._cmat: Tensor | None = None  # (C · C,): label times C plus prediction
        self._nans: Tensor | int = 0  # images with a score that is NaN
        self._start = time.monotonic()

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Counts, without waiting for the device: mo (B, C) scores, gt (B,) labels."""
        classes, pred = mo.shape[1], mo.argmax(dim=1)
        gt = gt.to(pred)
        if self._counts is None:
            self._counts = torch.zeros(3, classes, dtype=torch.int64, device=mo.device)
            if self.cfg.TEST.COMPUTE_CMAT:
                self._cmat = torch.zeros(classes * classes, dtype=torch.int32, device=mo.device)
        self._nans = self._nans + mo.isnan().any(dim=1).sum()
        images, predicted, right = self._counts
        ones = torch.ones_like(gt)  # for scatter_add_, since bincount would wait for the device
        images.scatter_add_(0, gt, ones)
        predicted.scatter_add_(0, pred, ones)
        right.scatter_add_(0, gt, (pred == gt).long())
        if self._cmat is not None:
            self._cmat.scatter_add_(0, gt * classes + pred, ones.int())

    def evaluate(self) -> OrderedDict[str, float]:
        """Prints and returns accuracy, error_rate, macro_f1 (and perclass_accuracy) in percent.

        Macro F1 is the mean over the classes that occur. Raises Failure if nothing was processed,
        or a score was NaN.
        """
        if self._counts is None:
            raise Failure("There is nothing to evaluate: the test split is empty")
        if nans := int(self._nans):
            line = f"The scores of {nans:,} images are NaN"
            raise Failure(f"{line}: the model's weights are damaged or overflow PREC")
        images, predicted, right = self._counts.cpu().numpy()
        seconds = time.monotonic() - self._start  # here the last batch has come from its device
        total, correct = int(images.sum()), int(right.sum())
        accuracy = 100.0 * correct / total
        occurs = images > 0
        macro_f1 = 100.0 * float(np.mean(2.0 * right[occurs] / (images + predicted)[occurs]))
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=macro_f1)
        labels = np.flatnonzero(images).tolist()
        per_class = {label: 100.0 * int(right[label]) / int(images[label]) for label in labels}
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = float(np.mean([*per_class.values()]))
        if self._cmat is not None:
            self._save_confusion(occurs | (predicted > 0))
        if self.when_done:  # before a result is printed: a log that has one has its files
            by_name = {}
            for label, of_class in per_class.items():  # ImageNet has some names twice
                name = self._name(label)
                by_name[f"{name} ({label})" if name in by_name else name] = of_class
            self.when_done(dict(results, total=total, correct=correct), by_name, seconds)
        # one write: a log has the whole result or none of it
        block = f"=> result\n* total: {total:,}\n* correct: {correct:,}\n"
        block += f"* accuracy: {accuracy:.1f}%\n* error: {100.0 - accuracy:.1f}%\n"
        print(f"{block}* macro_f1: {macro_f1:.1f}%")
        if self.cfg.TEST.PER_CLASS_RESULT:
            print("=> per-class result")
            for label, of_class in per_class.items():
                counts = f"total: {images[label]:,}\tcorrect: {right[label]:,}"
                named = f"* class: {label} ({plain(self._name(label))})"
                print(f"{named}\t{counts}\tacc: {of_class:.1f}%")
            print(f"* average: {results['perclass_accuracy']:.1f}%")
        return results

    def _name(self, label: int) -> str:
        return self._lab2cname[label] if self._lab2cname else str(label)

    def _save_confusion(self, kept: np.ndarray) -> None:
        """Saves (n, n) float64: each kept label's share of each prediction."""
        counts = self._cmat.cpu().view(len(kept), -1)[kept][:, kept].double()
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        mkdir_if_missing(self.cfg.OUTPUT_DIR)
        with atomic_write(path) as file:
            torch.save(counts / counts.sum(dim=1, keepdim=True).clamp(min=1), file)
        print(f"Confusion matrix is saved to {path}")
