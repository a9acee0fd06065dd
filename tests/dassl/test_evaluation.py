import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

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
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    torch.testing.assert_close(list(results.values()), [62.5, 37.5, macro_f1])
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
    expected = {
        str(c): 100 * int((pred[true == c] == c).sum()) / int((true == c).sum())
        for c in true.unique().tolist()
    }
    assert told[0][1] == expected and results["perclass_accuracy"] == np.mean(
        list(expected.values())
    )
    saved = torch.load(f"{cfg.OUTPUT_DIR}/cmat.pt", weights_only=True)
    assert torch.equal(saved, torch.from_numpy(confusion_matrix(true, pred, normalize="true")))


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
