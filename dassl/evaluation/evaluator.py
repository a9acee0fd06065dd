import os
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.utils import Failure, Registry, atomic_write, mkdir_if_missing

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs) -> "EvaluatorBase":
    """The evaluator cfg.TEST.EVALUATOR names; raises UsageError if there is none of that name."""
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return evaluator(cfg, **kwargs)


class EvaluatorBase:
    """reset(), then process() per batch, then evaluate()."""

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg

    def reset(self) -> None:
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, macro F1, and on demand accuracy per class and the confusion matrix."""

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs):
        super().__init__(cfg)
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        self._pred: list[Tensor] = []
        self._true: list[Tensor] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """mo: (B, C) scores; gt: (B,) labels. Both stay on their device, so no batch waits for the last."""
        self._pred.append(mo.argmax(dim=1))
        self._true.append(gt)

    def evaluate(self) -> OrderedDict[str, float]:
        """Prints the results and returns accuracy, error_rate, macro_f1 (and perclass_accuracy) in percent.

        Raises Failure if nothing was processed.
        """
        if not self._true:
            raise Failure("There is nothing to evaluate: the test split is empty")
        from sklearn.metrics import f1_score  # takes a second to import

        pred, true = torch.cat(self._pred).cpu().numpy(), torch.cat(self._true).cpu().numpy()
        correct = int((pred == true).sum())
        accuracy = 100.0 * correct / len(true)
        macro_f1 = 100.0 * f1_score(true, pred, average="macro", labels=np.unique(true))
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=float(macro_f1))
        print(
            "=> result\n"
            f"* total: {len(true):,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {100.0 - accuracy:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._per_class(pred, true)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion(pred, true)
        return results

    def _per_class(self, pred: np.ndarray, true: np.ndarray) -> float:
        print("=> per-class result")
        accuracies = []
        for label in np.unique(true).tolist():
            of_class = true == label
            total, correct = of_class.sum(), (pred[of_class] == label).sum()
            accuracies.append(100.0 * correct / total)
            name = self._lab2cname[label]
            counts = f"total: {total:,}\tcorrect: {correct:,}"
            print(f"* class: {label} ({name})\t{counts}\tacc: {accuracies[-1]:.1f}%")
        average = float(np.mean(accuracies))
        print(f"* average: {average:.1f}%")
        return average

    def _save_confusion(self, pred: np.ndarray, true: np.ndarray) -> None:
        from sklearn.metrics import confusion_matrix

        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        mkdir_if_missing(self.cfg.OUTPUT_DIR)
        with atomic_write(path) as file:
            torch.save(torch.from_numpy(confusion_matrix(true, pred, normalize="true")), file)
        print(f"Confusion matrix is saved to {path}")
