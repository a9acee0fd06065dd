import torch

from dassl.evaluation import build_evaluator


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
    block = "=> result\n* total: 8\n* correct: 5\n* accuracy: 62.5%\n* error: 37.5%\n* macro_f1: 65.6%\n"
    assert capsys.readouterr().out == block


def test_thousands(cfg, capsys):
    evaluate(cfg, pred=[0] * 6903 + [1] * 1197, true=[0] * 8100)
    assert "* total: 8,100\n* correct: 6,903\n* accuracy: 85.2%\n* error: 14.8%\n" in capsys.readouterr().out


def test_per_class_and_confusion(cfg, capsys):
    cfg.TEST.PER_CLASS_RESULT = cfg.TEST.COMPUTE_CMAT = True
    results = evaluate(cfg, pred=[0, 0, 1, 1, 1, 2], true=[0, 0, 0, 1, 1, 1])
    out = capsys.readouterr().out
    assert "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n" in out
    assert "* class: 1 (dog)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n* average: 66.7%\n" in out
    torch.testing.assert_close(results["perclass_accuracy"], 200 / 3)
    expected = torch.tensor([[2, 1, 0], [0, 2, 1], [0, 0, 0]], dtype=torch.float64) / 3
    torch.testing.assert_close(torch.load(f"{cfg.OUTPUT_DIR}/cmat.pt", weights_only=True), expected)
