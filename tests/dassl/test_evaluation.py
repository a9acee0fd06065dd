import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from dassl.evaluation import build_evaluator
from dassl.utils import Failure


def evaluate(cfg, pred, true):
    evaluator = build_evaluator(cfg, lab2cname={0: "cat", 1: "dog", 2: "owl", 3: "emu"})
    evaluator.process(torch.zeros(2, 4), torch.tensor([3, 3]))
    evaluator.reset()  # forgets the line before
    scores = torch.eye(4)[pred]
    evaluator.process(scores[:5], torch.tensor(true[:5]))
    evaluator.process(scores[5:], torch.tensor(true[5:]))
    return evaluator.evaluate()


def test_results_and_block(cfg, capsys):
    # class 0: 2 of 3 right, predicted 2 times  -> precision 1, recall 2/3, F1 4/5
    # class 1: 2 of 2 right, predicted 4 times  -> precision 1/2, recall 1, F1 2/3
    # class 2: 1 of 3 right, predicted 1 time   -> precision 1, recall 1/3, F1 1/2
    # class 3 is only ever predicted: it does not count
    results = evaluate(cfg, pred=[0, 0, 1, 1, 1, 2, 1, 3], true=[0, 0, 0, 1, 1, 2, 2, 2])
    macro_f1 = 100 * (4 / 5 + 2 / 3 + 1 / 2) / 3
    # the greatest of four softmaxes is e / (e + 3) each time: all 8 images are in one bin
    ece = 100 * (5 / 8 - math.e / (math.e + 3))
    macro = {"macro_f1": macro_f1, "macro_precision": 250 / 3, "macro_recall": 200 / 3}
    assert results == pytest.approx({"accuracy": 62.5, "error_rate": 37.5, **macro, "ece": ece})
    assert next(iter(results)) == "accuracy"  # what a test returns
    counts = "=> result\n* total: 8\n* correct: 5\n"
    rates = "* accuracy: 62.5%\n* error: 37.5%\n* macro_f1: 65.6%\n"
    assert capsys.readouterr().out == counts + rates


def test_thousands(cfg, capsys):
    evaluate(cfg, pred=[0] * 6903 + [1] * 1197, true=[0] * 8100)
    assert (
        "* total: 8,100\n* correct: 6,903\n* accuracy: 85.2%\n* error: 14.8%\n"
        in capsys.readouterr().out
    )


def test_per_class_and_confusion(cfg, capsys):
    cfg.TEST.PER_CLASS_RESULT = cfg.TEST.COMPUTE_CMAT = True
    results = evaluate(cfg, pred=[0, 0, 1, 1, 1, 2], true=[0, 0, 0, 1, 1, 1])
    out = capsys.readouterr().out
    assert "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n" in out
    assert "* class: 1 (dog)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n* average: 66.7%\n" in out
    torch.testing.assert_close(results["perclass_accuracy"], 200 / 3)
    expected = torch.tensor([[2, 1, 0], [0, 2, 1], [0, 0, 0]], dtype=torch.float64) / 3
    torch.testing.assert_close(torch.load(f"{cfg.OUTPUT_DIR}/cmat.pt", weights_only=True), expected)


def test_more_metrics_in_the_log(cfg, capsys):
    cfg.TEST.MORE_METRICS = cfg.TEST.PER_CLASS_RESULT = True
    evaluator = build_evaluator(cfg, lab2cname=dict(enumerate("abcdef")))
    scores = torch.eye(6)[[0, 1, 1, 1]] * 1000
    scores[3, 5] = -1  # the last of six
    evaluator.process(scores, torch.tensor([0, 0, 1, 5]))
    evaluator.evaluate()
    counts = "=> result\n* total: 4\n* correct: 2\n* accuracy: 50.0%\n* error: 50.0%\n"
    # F1 of a, b, f: 2/3, 1/2, 0; precision: 1, 1/3, and 0, as f is never predicted
    more = "* macro_f1: 38.9%\n* macro_precision: 44.4%\n* macro_recall: 50.0%\n"
    more += "* top5_accuracy: 75.0%\n* ece: 50.0%\n=> per-class result\n"
    classes = [
        "* class: 0 (a)\ttotal: 2\tcorrect: 1\tacc: 50.0%\tprecision: 100.0%\trecall: 50.0%\n",
        "* class: 1 (b)\ttotal: 1\tcorrect: 1\tacc: 100.0%\tprecision: 33.3%\trecall: 100.0%\n",
        "* class: 5 (f)\ttotal: 1\tcorrect: 0\tacc: 0.0%\tprecision: 0.0%\trecall: 0.0%\n",
    ]
    assert capsys.readouterr().out == f"{counts}{more}{''.join(classes)}* average: 50.0%\n"


@pytest.mark.parametrize("seed", range(8))
def test_the_counts_give_sklearns_numbers_to_the_bit(cfg, seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 40))
    occurring = rng.permutation(classes)[
        : rng.integers(1, classes + 1)
    ]  # the others are at most predicted
    true = torch.from_numpy(rng.choice(occurring, size=200))
    scores = torch.from_numpy(rng.normal(size=(200, classes))) + 2 * torch.eye(classes)[true]
    pred = scores.argmax(1)
    cfg.TEST.PER_CLASS_RESULT = cfg.TEST.COMPUTE_CMAT = True
    evaluator, told = build_evaluator(cfg), []
    evaluator.when_done = lambda *results: told.append(results)
    for start in range(0, 200, 64):  # the last batch is smaller
        evaluator.process(scores[start : start + 64], true[start : start + 64])
    results = evaluator.evaluate()
    assert results["accuracy"] == 100 * int((pred == true).sum()) / 200
    assert results["macro_f1"] == 100 * f1_score(
        true, pred, average="macro", labels=np.unique(true)
    )
    labels = np.unique(true)
    each = {"labels": labels, "average": None, "zero_division": 0}
    precision, recall = precision_score(true, pred, **each), recall_score(true, pred, **each)
    got = told[0][1]
    assert list(got) == [str(label) for label in labels]
    assert [of["precision"] for of in got.values()] == pytest.approx(100 * precision)
    assert [of["recall"] for of in got.values()] == pytest.approx(100 * recall)
    assert results["macro_precision"] == pytest.approx(100 * precision.mean())
    assert results["macro_recall"] == pytest.approx(100 * recall.mean())
    assert results["perclass_accuracy"] == results["macro_recall"]
    saved = torch.load(f"{cfg.OUTPUT_DIR}/cmat.pt", weights_only=True)
    assert torch.equal(saved, torch.from_numpy(confusion_matrix(true, pred, normalize="true")))


def evaluated(cfg, scores, true, batch=64):
    evaluator = build_evaluator(cfg)
    for start in range(0, len(true), batch):
        evaluator.process(scores[start : start + batch], true[start : start + batch])
    return evaluator.evaluate()


def random_scores(classes, images=300, scale=2.0):
    torch.manual_seed(classes)
    return scale * torch.randn(images, classes), torch.randint(classes, (images,))


@pytest.mark.parametrize("classes", [1, 2, 5, 6, 40])
def test_top5_where_there_are_more_than_5_classes(cfg, classes):
    scores, true = random_scores(classes)
    results = evaluated(cfg, scores, true)
    if classes <= 5:
        assert "top5_accuracy" not in results
    else:
        expected = top_k_accuracy_score(true, scores, k=5, labels=range(classes))
        assert results["top5_accuracy"] == pytest.approx(100 * expected) and expected < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_of_equal_scores_the_first_class_comes_first(cfg, dtype):
    scores, true = random_scores(12)
    scores = scores.round().to(dtype)  # many ties
    results = evaluated(cfg, scores, true)
    ranks = [
        sorted(range(12), key=lambda c: (-row[c], c)).index(label)
        for row, label in zip(scores.tolist(), true.tolist(), strict=True)
    ]
    assert results["accuracy"] == pytest.approx(100 * np.mean([rank < 1 for rank in ranks]))
    assert results["top5_accuracy"] == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]))


def slow_ece(scores, true):
    """In percent, image by image and bin by bin, in float64."""
    guesses = []
    for row, label in zip(scores.tolist(), true.tolist(), strict=True):
        powers = [math.exp(score - max(row)) for score in row]
        guesses.append((max(powers) / sum(powers), row.index(max(row)) == label))
    ece = 0.0
    for m in range(15):
        bin_ = [(conf, right) for conf, right in guesses if m / 15 < conf <= (m + 1) / 15]
        if bin_:
            accuracy = sum(right for _, right in bin_) / len(bin_)
            confidence = sum(conf for conf, _ in bin_) / len(bin_)
            ece += len(bin_) / len(guesses) * abs(accuracy - confidence)
    return 100 * ece


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("classes", [2, 5, 6, 40])
def test_expected_calibration_error(cfg, classes, scale):
    scores, true = random_scores(classes, scale=scale)
    scores[: len(true) // 2, 0] += 3 * scale
    true[: len(true) // 3] = 0
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        got, exact = scores.to(dtype), slow_ece(scores.to(dtype), true)
        assert evaluated(cfg, got, true)["ece"] == pytest.approx(exact, abs=1e-3) and exact > 1
    probabilities = scores.log_softmax(dim=1)
    ece = evaluated(cfg, probabilities, true, batch=7)["ece"]
    assert ece == pytest.approx(slow_ece(scores, true), abs=1e-3)


def row_of(confidence, classes=30):
    row = torch.full((classes,), (1 - confidence) / (classes - 1))
    row[0] = confidence
    return row.log()


@pytest.mark.parametrize("equal", [3, 5, 15])
def test_a_confidence_on_an_edge_is_in_the_bin_below(cfg, equal):
    on_edge = torch.full((30,), -math.inf)
    on_edge[:equal] = 0  # the softmax is 1/3, 1/5 or 1/15 each
    scores = torch.stack([on_edge, row_of(1 / equal - 0.01), row_of(1 / equal + 0.01)])
    ece = evaluated(cfg, scores, torch.tensor([0, 1, 1]))["ece"]  # the first is right
    below, above = (1 - 1 / equal) - (1 / equal - 0.01), 0 - (1 / equal + 0.01)
    assert ece == pytest.approx(100 * (abs(below) + abs(above)) / 3, rel=1e-4)


def test_a_confidence_of_1_is_in_the_last_bin(cfg):
    sure = torch.zeros(30)
    sure[0] = 1000
    ece = evaluated(cfg, torch.stack([sure, row_of(0.95)]), torch.tensor([1, 0]))["ece"]
    assert ece == pytest.approx(100 * (1 - 0.05) / 2)


def test_one_class(cfg):
    results = evaluated(cfg, torch.randn(9, 1), torch.zeros(9, dtype=torch.int64))
    perfect = dict.fromkeys(("accuracy", "macro_f1", "macro_precision", "macro_recall"), 100)
    assert results == perfect | {"error_rate": 0, "ece": 0}


def test_scores_that_are_not_finite(cfg):
    scores = torch.zeros(2, 6, dtype=torch.float16)
    scores[:, 3] = math.inf  # an overflow: sure of class 3
    results = evaluated(cfg, scores, torch.tensor([3, 0]))
    assert results["accuracy"] == 50 and results["ece"] == 50
    scores[0, 0] = math.nan
    with pytest.raises(Failure, match="The scores of 1 images are NaN"):
        evaluated(cfg, scores, torch.tensor([3, 0]))


def test_evaluation_holds_no_graph(cfg):
    evaluator = build_evaluator(cfg)
    evaluator.process(torch.randn(4, 6, requires_grad=True) * 2, torch.arange(4))
    held = [x for x in vars(evaluator).values() if isinstance(x, torch.Tensor)]
    assert len(held) == 4 and not any(x.requires_grad for x in held)
    evaluator.evaluate()


def test_evaluation_keeps_counts_and_waits_for_no_device(cfg):
    cfg.TEST.COMPUTE_CMAT = True
    evaluator = build_evaluator(cfg)
    # a meta tensor has no values, so whatever would fetch one from the device fails
    scores, labels = (
        torch.zeros(100, 1000, device="meta"),
        torch.zeros(100, dtype=torch.int64, device="meta"),
    )
    for _ in range(500):
        evaluator.process(scores, labels)
    held = [x for x in vars(evaluator).values() if isinstance(x, torch.Tensor)]
    assert not any(isinstance(x, list) for x in vars(evaluator).values())
    assert sum(x.nbytes for x in held) < 5e6 and {x.device.type for x in held} == {"meta"}


def test_nothing_to_evaluate(cfg):
    with pytest.raises(Failure, match="nothing to evaluate"):
        build_evaluator(cfg).evaluate()
