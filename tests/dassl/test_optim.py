import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dassl.config import check_schedule
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.radam import RAdam
from dassl.optim.sghmc import SGHMC
from dassl.utils import UsageError
from dassl.utils.checkpoint import load_optim
from reference import rebapl_plain
from tests.fake_cuda import WAITING


def rates(c, epochs, resume_after=None):
    """lr of each epoch; with `resume_after` the state goes through state_dict into new objects
    there."""

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
    assert rates(c, 6) == pytest.approx(
        [0.2, 1 / 3, 2 / 3, 1, 0.1, 0.1]
    )  # the step counts the warm-up's epochs


# ReBaPL's published rates of 15 epochs: each restart comes one epoch late.
TOP, LATE = [0.002, 0.001809, 0.001309, 0.000691], 0.000191


@pytest.mark.parametrize("resume_after", [None, 0, 4, 6])
def test_cycles_of_cosines(cfg, resume_after):
    c = cfg.OPTIM
    c.LR, c.LR_SCHEDULER, c.CYCLE_EPOCHS, c.MAX_EPOCH = 0.002, "cyclic_cosine", 5, 15
    seen = rates(c, 15, resume_after)
    assert seen == pytest.approx([1e-5, *TOP, LATE, *TOP, LATE, *TOP], rel=1e-3)
    plain = [rebapl_plain.rate(epoch, 0.002, 5) for epoch in range(15)]
    assert seen == pytest.approx(plain, rel=1e-12)


def test_cycles_that_restart_in_time(cfg):
    c = cfg.OPTIM
    c.LR, c.LR_SCHEDULER, c.CYCLE_EPOCHS, c.MAX_EPOCH = 0.002, "cyclic_cosine", 5, 15
    c.WARMUP_RECOUNT = False
    first = [1e-5, *TOP[1:], LATE]
    assert rates(c, 15) == pytest.approx([*first, *TOP, LATE, *TOP, LATE], rel=1e-3)
    c.WARMUP_EPOCH = -1
    assert rates(c, 15) == pytest.approx([*TOP, LATE] * 3, rel=1e-3)


def test_no_sample_of_a_short_cycle_is_at_the_highest_rate(cfg):
    """As the files for cross-dataset runs say."""
    c = cfg.OPTIM
    c.LR, c.LR_SCHEDULER, c.CYCLE_EPOCHS, c.MAX_EPOCH = 0.002, "cyclic_cosine", 2, 6
    c.WARMUP_RECOUNT = False
    assert rates(c, 6) == pytest.approx([1e-5, 0.001, 0.002, 0.001, 0.002, 0.001])
    assert rates(c, 6, 2) == rates(c, 6)


def test_one_cycle_is_a_cosine(cfg):
    c = cfg.OPTIM
    c.CYCLE_EPOCHS = c.MAX_EPOCH
    plain = rates(c, c.MAX_EPOCH)
    c.LR_SCHEDULER = "cyclic_cosine"
    assert rates(c, c.MAX_EPOCH) == pytest.approx(plain, rel=1e-12)


def test_warmup_state_is_plain_data(cfg, tmp_path):
    optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], cfg.OPTIM)
    state = build_lr_scheduler(optimizer, cfg.OPTIM).state_dict()
    torch.save(state, tmp_path / "s")
    assert torch.load(tmp_path / "s", weights_only=True) == state


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
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
        ("sghmc", SGHMC),
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


def sghmc(cfg, noise, start=0.0, size=3):
    """The optimizer and its one parameter."""
    cfg.OPTIM.NAME = "sghmc"
    p = nn.Parameter(torch.full((size,), start))
    optimizer = build_optimizer([p], cfg.OPTIM)
    optimizer.param_groups[0]["noise"] = noise
    return optimizer, p


@pytest.mark.parametrize("keys", [{}, {"SGD_NESTEROV": True}, {"SGD_DAMPNING": 0.5}])
def test_sghmc_without_noise_is_sgd(cfg, keys):
    """To the last bit, from the first step on, also one without a gradient."""
    cfg.OPTIM.update(keys)
    optimizer, ours = sghmc(cfg, noise=0.0, start=1.0)
    cfg.OPTIM.NAME = "sgd"
    plain = nn.Parameter(torch.ones(3))
    sgd = build_optimizer([plain], cfg.OPTIM)
    for step in range(6):
        ours.grad = None if step == 2 else torch.randn(3)
        plain.grad = None if step == 2 else ours.grad.clone()
        optimizer.step(), sgd.step()
        assert torch.equal(ours, plain)


def test_sghmcs_noise_is_as_large_as_told_and_is_remembered(cfg):
    """The published formula's step from zero; then the momentum, without another draw."""
    cfg.OPTIM.LR, n_images = 0.002, 80
    noise = rebapl_plain.published_noise(0.002, 0.9, 100.0, n_images)
    optimizer, p = sghmc(cfg, noise, size=100_000)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    first = p.detach().clone()
    assert first.std().item() == pytest.approx(
        0.002 * 100 * (2 * 0.002 * 0.9) ** 0.5 / 80, rel=0.02
    )
    assert abs(first.mean()) < 0.02 * first.std()
    optimizer.param_groups[0]["noise"] = 0.0
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), 1.9 * first, rtol=1e-3, atol=1e-9)


def test_sghmcs_noise_leaves_alone_what_has_no_gradient(cfg):
    optimizer, p = sghmc(cfg, noise=1.0)
    state = torch.get_rng_state()
    optimizer.step()
    assert not p.any() and torch.equal(torch.get_rng_state(), state)


EXPLORED = [True, True, True, False, False, False, True, True]  # steps that are AdamW's


def explore(cfg, gradients, resume_after=None):
    """A parameter after each step; with `resume_after` another optimizer goes on there."""
    optimizer, p = sghmc(cfg, noise=0.1, start=1.0)
    seen = []
    for step, (adamw, gradient) in enumerate(zip(EXPLORED, gradients, strict=True)):
        optimizer.adamw = adamw
        torch.manual_seed(step)
        p.grad = gradient.clone()
        optimizer.step()
        seen.append(p.detach().clone())
        if step == resume_after:
            state = optimizer.state_dict()
            optimizer, other = sghmc(cfg, noise=0.1)
            with torch.no_grad():
                other.copy_(p)
            p = other
            load_optim({"optimizer": state}, optimizer, None, "a file")
    return seen


def test_sghmc_explores_with_adamw(cfg):
    """Each stage is bit for bit a new optimizer's: AdamW's, which draws nothing, and SGD's."""
    cfg.OPTIM.ADAM_BETA1, cfg.OPTIM.LR = 0.8, 0.01
    gradients = [torch.randn(3) for _ in EXPLORED]
    ours = explore(cfg, gradients)
    plain = nn.Parameter(torch.ones(3))
    for step, adamw in enumerate(EXPLORED):
        if step == 0 or EXPLORED[step - 1] != adamw:
            cfg.OPTIM.NAME = "adamw" if adamw else "sgd"
            optimizer = build_optimizer([plain], cfg.OPTIM)
        torch.manual_seed(step)
        plain.grad = gradients[step] + (0 if adamw else 0.1 * torch.randn(3))
        optimizer.step()
        assert torch.equal(ours[step], plain)


@pytest.mark.parametrize("after", range(len(EXPLORED) - 1))
def test_a_resumed_sghmc_remembers_either_stage(cfg, after):
    """What the steps before have gathered goes on, wherever the stage begins."""
    gradients = [torch.randn(3) for _ in EXPLORED]
    whole = explore(cfg, gradients)
    assert all(map(torch.equal, explore(cfg, gradients, resume_after=after), whole))


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


def test_staged_lr_refuses_what_it_would_not_train(cfg):
    """A prompt learner's ctx is in no layer."""
    cfg.OPTIM.STAGED_LR, model = True, nn.Sequential(nn.Linear(2, 2))
    model.ctx, model.frozen = (
        nn.Parameter(torch.ones(2)),
        nn.Parameter(torch.ones(2), requires_grad=False),
    )
    with pytest.raises(
        UsageError, match="STAGED_LR is for layers, and ctx is in none, so it would not be trained"
    ):
        build_optimizer(model, cfg.OPTIM)


def test_staged_lr_is_refused_by_models_only(cfg):
    """Not before there is one."""
    cfg.OPTIM.STAGED_LR = True
    check_schedule(cfg)


@pytest.mark.parametrize(
    ("name", "keys", "fused"),
    [
        ("sgd", {}, True),
        ("sgd", {"SGD_DAMPNING": 0.5}, None),
        ("adam", {}, True),
        ("amsgrad", {}, True),
        ("adamw", {}, True),
    ],
)
def test_fused_kernels_are_taken_where_asked_for_and_dampening_allows(cfg, name, keys, fused):
    cfg.OPTIM.NAME = name
    cfg.OPTIM.update(keys)
    assert (
        build_optimizer([nn.Parameter(torch.zeros(1))], cfg.OPTIM, fused=True).defaults["fused"]
        is fused
    )
    assert build_optimizer([nn.Parameter(torch.zeros(1))], cfg.OPTIM).defaults["fused"] is None


@pytest.mark.parametrize("name", ["rmsprop", "radam"])
def test_what_has_no_fused_kernel_is_as_it_was(cfg, name):
    cfg.OPTIM.NAME = name
    assert (
        "fused"
        not in build_optimizer([nn.Parameter(torch.zeros(1))], cfg.OPTIM, fused=True).defaults
    )


INF = float("inf")
GRADIENTS = [  # of two parameters in each step
    (INF, None),
    (INF, 1.0),
    (0.5, None),
    (-2.0, 3.0),
    (1.0, INF),
    (4.0, -1.0),
    (None, 2.0),
]


class Steps:
    """An optimizer of two parameters, its steps as amp's."""

    def __init__(self, c, fused):
        self.params = [nn.Parameter(torch.full((3,), start)) for start in (1.0, -2.0)]
        self.optimizer = build_optimizer(self.params, c, fused=fused)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        self.scaler.scale(torch.ones(()))  # it has no state before

    def take(self, gradients):
        """Returns the parameters after each step."""
        seen = []
        for values in gradients:
            scale = self.scaler.get_scale()
            for p, value in zip(self.params, values, strict=True):
                p.grad = None if value is None else torch.full_like(p, scale * value)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            seen.append(torch.stack([p.detach().clone() for p in self.params]))
        return seen

    def resume(self, other):
        """Goes on from another's state, as a run does from a file's."""
        with torch.no_grad():
            for p, there in zip(self.params, other.params, strict=True):
                p.copy_(there)
        load_optim({"optimizer": other.optimizer.state_dict()}, self.optimizer, None, "a file")
        self.scaler.load_state_dict(other.scaler.state_dict())


@pytest.fixture
def no_luck():
    """Memory that nobody initialised is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("sgd", {}),
        ("sgd", {"SGD_NESTEROV": True}),
        ("sgd", {"SGD_DAMPNING": 0.5}),
        ("adam", {}),
        ("amsgrad", {}),
        ("adamw", {}),
    ],
)
def test_fused_steps_are_the_plain_ones_also_after_an_overflow(cfg, no_luck, name, keys):
    cfg.OPTIM.NAME = name
    cfg.OPTIM.update(keys)
    plain, fused = (Steps(cfg.OPTIM, fused).take(GRADIENTS) for fused in (False, True))
    assert not torch.equal(plain[-1], plain[-2])
    torch.testing.assert_close(fused, plain)


def test_without_momentum_there_is_nothing_to_start(cfg, no_luck):
    cfg.OPTIM.MOMENTUM = 0.0
    steps = [Steps(cfg.OPTIM, fused) for fused in (False, True)]
    torch.testing.assert_close(steps[1].take(GRADIENTS), steps[0].take(GRADIENTS))
    assert not steps[1].optimizer.state_dict()["state"]


@pytest.mark.parametrize("after", range(len(GRADIENTS)))
@pytest.mark.parametrize("before", [True, False], ids=["fused first", "plain first"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_run_goes_on_with_its_own_kernels(cfg, no_luck, name, before, after):
    """Also where the file's were others and it was written before the first step that counted."""
    cfg.OPTIM.NAME = name
    whole = Steps(cfg.OPTIM, fused=False).take(GRADIENTS)
    first, second = Steps(cfg.OPTIM, before), Steps(cfg.OPTIM, not before)
    seen = first.take(GRADIENTS[:after])
    second.resume(first)
    assert bool(second.optimizer.param_groups[0]["fused"]) is not before
    torch.testing.assert_close(seen + second.take(GRADIENTS[after:]), whole)


class Waits(TorchDispatchMode):
    """`count` of what would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op in WAITING
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(("fused", "waits"), [(True, 0), (False, 1)])
def test_amp_waits_for_nothing_with_fused_kernels(cfg, fused, waits):
    steps = Steps(cfg.OPTIM, fused)
    steps.take(GRADIENTS[:3])
    with Waits() as seen:
        steps.scaler.step(steps.optimizer)
        steps.scaler.update()
    assert seen.count == waits
