"""inference.sharpness, beside a function whose Hessian is known and a model that is changed."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl.utils import mix_seed, seeded
from inference import sharpness
from inference.cloud_measures import batches_of, learner_of, predictor
from inference.load import load_run

from .runs import run


def test_the_worst_direction_is_the_hessians_first_eigenvector():
    """Of ½ xᵀHx the largest rise at radius r is ½ r² times the largest eigenvalue."""
    values = torch.tensor([10.0, 2, 1, 0.5, 0.1], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    hessian = turn @ values.diag() @ turn.T
    like = torch.zeros((), dtype=torch.float64)
    rise = sharpness.worst_rise(lambda x: x @ hessian @ x / 2 + 7, 5, 0.3, like)
    assert rise == pytest.approx(10 * 0.3**2 / 2, rel=1e-3)


def test_a_runs_sharpness_is_that_of_a_model_whose_vectors_are_changed(trained, tmp_path, capsys):
    folder = shutil.copytree(trained / "train", tmp_path / "train")
    words = ["--sigmas", "0.3", "--worst-sigmas", "0.1", "--draws", "2"]
    assert sharpness.main([str(folder), *words]) == 0
    found = json.loads((folder / "sharpness.json").read_text())
    trainer = load_run(folder)
    learner = learner_of(trainer.model)
    assert found["numbers"] == sum(p.numel() for p in learner.vectors().values())
    with torch.no_grad():
        predict, label = predictor(trainer, batches_of(trainer))
        clean = F.cross_entropy(predict(), label).item()
        assert found["loss"] == pytest.approx(clean, abs=1e-6)
        before = {name: p.clone() for name, p in learner.vectors().items()}
        for draw in range(2):
            with seeded(mix_seed(draw)):
                for name, p in before.items():
                    getattr(learner, name).copy_(p + 0.3 * torch.randn_like(p))
            trainer.model.drop_text_features()
            rise = F.cross_entropy(predict(), label).item() - clean
            assert found["mean"]["0.3"][draw] == pytest.approx(rise, abs=1e-5)
    # worse than the average of as far a way, and no model changed by measuring
    assert found["worst"]["0.1"] > 0
    row = re.search(r"Shapes +base +P2C +(\S+) +(\S+) ± (\S+) +(\S+) +1", capsys.readouterr().out)
    mean = found["mean"]["0.3"]
    expected = (clean, np.mean(mean), np.std(mean), found["worst"]["0.1"])
    assert row.groups() == tuple(f"{x:.3f}" for x in expected)


def test_measuring_leaves_the_model_as_it_was(trained):
    trainer = load_run(trained / "train")
    before = {name: p.clone() for name, p in trainer.model.learner.state_dict().items()}
    first = sharpness.measure(trainer, (0.1,), (0.05,), 1)
    assert sharpness.measure(trainer, (0.1,), (0.05,), 1) == first
    after = trainer.model.learner.state_dict()
    assert all(torch.equal(p, before[name]) for name, p in after.items())
    assert all(p.grad is None for p in trainer.model.learner.parameters())
    assert "vectors" not in vars(learner_of(trainer.model))


@pytest.mark.parametrize("method", ["CoCoOp", "ZeroshotCLIP"])
def test_a_method_without_one_set_of_learned_texts_is_skipped(method, data, tmp_path, capsys):
    assert run(method, data, tmp_path / "out", "OPTIM.MAX_EPOCH", "2") == 0
    capsys.readouterr()
    assert sharpness.main([str(tmp_path / "out")]) == 1
    assert "skipped: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--draws", "0"], ["--sigmas", "0"], ["--worst-sigmas", "-1"]])
def test_wrong_numbers(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        sharpness.main([str(tmp_path), *words])
    assert stopped.value.code == 2 and words[0] in capsys.readouterr().err.splitlines()[-1]
