import warnings

import pytest
import torch
from torch import nn

from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.radam import RAdam
from dassl.utils import UsageError


def rates(c, epochs, resume_after=None):
    """lr of each epoch; with `resume_after` the state goes through state_dict into new objects there."""

    def build():
        optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], c)
        return optimizer, build_lr_scheduler(optimizer, c)

    optimizer, scheduler = build()
    seen = []
    for epoch in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        if epoch == resume_after:
            states = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = build()
            optimizer.load_state_dict(states[0])
            scheduler.load_state_dict(states[1])
    return seen


@pytest.mark.parametrize("resume_after", [None, 0, 1, 3])
def test_cosine_behind_a_constant_epoch(cfg, resume_after):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = rates(cfg.OPTIM, 5, resume_after)
    assert seen == pytest.approx([1e-5, 0.0035, 0.003166, 0.002291, 0.001209], rel=3e-4)


def test_other_schedules(cfg):
    c = cfg.OPTIM
    c.LR, c.MAX_EPOCH, c.WARMUP_EPOCH = 1.0, 6, -1
    c.LR_SCHEDULER, c.STEPSIZE = "single_step", (2,)
    assert rates(c, 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    c.STEPSIZE = (-1,)
    assert rates(c, 6) == [1] * 6
    c.LR_SCHEDULER, c.STEPSIZE = "multi_step", (1, 4)
    assert rates(c, 6) == pytest.approx([1, 0.1, 0.1, 0.1, 0.01, 0.01])
    c.WARMUP_EPOCH, c.WARMUP_TYPE, c.WARMUP_MIN_LR = 3, "linear", 0.2
    assert rates(c, 6) == pytest.approx([0.2, 1 / 3, 2 / 3, 1, 0.1, 0.1])
    c.LR_SCHEDULER, c.STEPSIZE, c.WARMUP_RECOUNT = "single_step", (4,), False
    assert rates(c, 6) == pytest.approx([0.2, 1 / 3, 2 / 3, 1, 0.1, 0.1])  # the step counts the warm-up's epochs


def test_warmup_state_is_plain_data(cfg, tmp_path):
    optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], cfg.OPTIM)
    state = build_lr_scheduler(optimizer, cfg.OPTIM).state_dict()
    torch.save(state, tmp_path / "s")
    assert torch.load(tmp_path / "s", weights_only=True) == state


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("WARMUP_EPOCH", 5, "OPTIM.WARMUP_EPOCH is 5 and OPTIM.MAX_EPOCH 5"),
        ("LR_SCHEDULER", "cosin", "did you mean cosine?"),
        ("WARMUP_TYPE", "const", "did you mean constant?"),
    ],
)
def test_impossible_schedules(cfg, key, value, told):
    cfg.OPTIM[key] = value
    with pytest.raises(UsageError, match=told):
        build_lr_scheduler(build_optimizer([nn.Parameter(torch.zeros(1))], cfg.OPTIM), cfg.OPTIM)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", torch.optim.Adam),
        ("amsgrad", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("rmsprop", torch.optim.RMSprop),
        ("radam", RAdam),
    ],
)
def test_optimizers(cfg, name, kind):
    cfg.OPTIM.NAME = name
    optimizer = build_optimizer(nn.Linear(2, 2), cfg.OPTIM)
    group = optimizer.param_groups[0]
    assert type(optimizer) is kind
    assert (group["lr"], group["weight_decay"]) == (0.0035, 5e-4)
    assert group.get("amsgrad", False) == (name == "amsgrad")
    assert group.get("momentum", 0.9) == 0.9


def test_unknown_optimizer(cfg):
    cfg.OPTIM.NAME = "sdg"
    with pytest.raises(UsageError, match='Unknown optimizer "sdg": did you mean sgd?'):
        build_optimizer(nn.Linear(2, 2), cfg.OPTIM)


def test_staged_lr(cfg):
    cfg.OPTIM.STAGED_LR, cfg.OPTIM.NEW_LAYERS = True, ("1",)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    base, new = build_optimizer(model, cfg.OPTIM).param_groups
    assert (base["lr"], new["lr"]) == (pytest.approx(0.00035), 0.0035)
    assert new["params"] == list(model[1].parameters())
