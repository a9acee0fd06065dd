import errno
import os
import pickle
import resource
import signal
from collections import OrderedDict, defaultdict

import pytest
import torch
from torch import nn

from dassl.utils import (
    Failure,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl.utils.checkpoint import load_optim, newest_whole
from tests.forked import forked


def state(epoch, value=None):
    weight = torch.full((4, 3), float(epoch if value is None else value))
    return {"state_dict": {"weight": weight}, "epoch": epoch, "optimizer": None, "scheduler": None}


def model():
    return nn.Linear(3, 4, bias=False)


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(3).numpy().tobytes())] ^= (
        1  # in the weights, where torch.load would not notice
    )
    path.write_bytes(data)


def test_names_and_contents(tmp_path):
    save_checkpoint(state(1), str(tmp_path))
    save_checkpoint(state(2), str(tmp_path), is_best=True)
    save_checkpoint(state(9), str(tmp_path), model_name="other")
    names = ["checkpoint", "model-best.pth.tar", "model.pth.tar-1", "model.pth.tar-2", "other"]
    assert sorted(os.listdir(tmp_path)) == names
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-2\n"
    for name in ("model-best.pth.tar", "model.pth.tar-2"):
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        assert checkpoint["epoch"] == 2 and checkpoint["state_dict"]["weight"][0, 0] == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failed_save_damages_nothing(tmp_path, monkeypatch, code, moment):
    save_checkpoint(state(1, value=7), str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args, **kwargs):
        if moment == "write":
            args[1].write(b"the beginning")
        raise OSError(code, os.strerror(code))

    target, name = {"write": (torch, "save"), "fsync": (os, "fsync"), "replace": (os, "replace")}[
        moment
    ]
    monkeypatch.setattr(target, name, fail)
    with pytest.raises(Failure) as caught:
        save_checkpoint(state(1), str(tmp_path))
    path = tmp_path / "model.pth.tar-1"
    assert str(caught.value).startswith(f"Cannot write {path}: {os.strerror(code)}. ")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_that_is_full_for_real(tmp_path):
    os.symlink("/dev/full", tmp_path / "model.pth.tar-1.tmp")
    with pytest.raises(Failure, match="No space left on device"):
        save_checkpoint(state(1), str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_resume_takes_the_newest_and_passes_over_damaged_files(tmp_path, capsys):
    for epoch in (1, 2, 10):
        save_checkpoint(state(epoch), str(tmp_path))
    (tmp_path / "model.pth.tar-11.tmp").write_bytes(b"left by a killed run")
    net = model()
    assert resume_from_checkpoint(str(tmp_path), net) == 10 and net.weight[0, 0] == 10
    capsys.readouterr()

    truncate(tmp_path / "model.pth.tar-10")
    assert resume_from_checkpoint(str(tmp_path), net) == 2 and net.weight[0, 0] == 2
    damaged = f"{tmp_path}/model.pth.tar-10 is truncated, damaged or no checkpoint"
    assert capsys.readouterr().out == f"{damaged}: going back to the epoch before\n"
    (tmp_path / "model.pth.tar-2").write_bytes(b"")
    (tmp_path / "model.pth.tar-1").write_text("not a checkpoint")
    with pytest.raises(Failure, match="There is no whole checkpoint in"):
        resume_from_checkpoint(str(tmp_path), net)


def test_several_folders_resume_at_an_epoch_they_share(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for epoch in (1, 2, 3):
        for folder in folders[: 1 if epoch == 3 else 2]:  # killed before the second model's third
            save_checkpoint(state(epoch), str(folder))
    assert [c["epoch"] for c in newest_whole([str(folder) for folder in folders])] == [2, 2]
    truncate(folders[1] / "model.pth.tar-2")
    assert [c["epoch"] for c in newest_whole([str(folder) for folder in folders])] == [1, 1]


def test_resume_goes_where_the_text_file_points(tmp_path):
    for epoch in (5, 3):
        save_checkpoint(state(epoch), str(tmp_path))
    net = model()
    assert resume_from_checkpoint(str(tmp_path), net) == 3
    (tmp_path / "checkpoint").unlink()
    assert resume_from_checkpoint(str(tmp_path), net) == 5


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_load_damaged_or_missing(tmp_path, damage):
    save_checkpoint(state(1), str(tmp_path))
    path = tmp_path / "model.pth.tar-1"
    damage(path)
    for bad in (path, tmp_path / "model.pth.tar-2", tmp_path):
        with pytest.raises(Failure) as caught:
            load_checkpoint(str(bad))
        assert str(bad) in str(caught.value) and "\n" not in str(caught.value)


class Evil:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((os.system, ("touch pwned",)), "posix.system"),
        ((eval, ("open('pwned', 'w')",)), "eval"),
        ((nn.Linear, (1, 1)), "torch.nn.modules.linear.Linear"),
        ((getattr, ("torch", "load")), "getattr"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_name_anything_else_are_refused(tmp_path, monkeypatch, call, named, zipped):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(state(1), str(tmp_path))
    torch.save(
        state(2) | {"x": Evil(call)},
        tmp_path / "model.pth.tar-2",
        _use_new_zipfile_serialization=zipped,
    )
    (tmp_path / "checkpoint").write_text("model.pth.tar-2\n")
    for load in (
        lambda: load_checkpoint(str(tmp_path / "model.pth.tar-2")),
        lambda: resume_from_checkpoint(str(tmp_path), model()),  # no quiet fall back from this one
    ):
        line = f"^Refused to load .*model.pth.tar-2: it names (builtins.)?{named},"
        with pytest.raises(Failure, match=line) as caught:
            load()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_bare_pickle_is_refused(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps(Evil((os.system, ("touch pwned",))), protocol=2))
    with pytest.raises(Failure):
        load_checkpoint(str(tmp_path / "p"))


def test_a_disk_that_is_full_at_any_byte(tmp_path, tmp_path_factory):
    """torch.save complains of a position then; the system's own word counts. What was there
    stays."""
    save_checkpoint(state(1, value=7), str(tmp_path))
    path = tmp_path / "model.pth.tar-1"
    before, said = path.read_bytes(), tmp_path_factory.mktemp("said")

    def no_room(size):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        with pytest.raises(Failure) as caught:
            save_checkpoint(state(1), str(tmp_path))
        assert str(caught.value).startswith(f"Cannot write {path}: {os.strerror(errno.EFBIG)}. ")

    for size in [*range(0, len(before), 97), len(before) - 1]:
        assert forked(lambda size=size: no_room(size), said).code == 0, size
        assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == [
            "checkpoint",
            path.name,
        ]


def test_a_pointer_of_binary_bytes_points_nowhere(tmp_path):
    for epoch in (1, 2):
        save_checkpoint(state(epoch), str(tmp_path))
    (tmp_path / "checkpoint").write_bytes(b"\xff\xfe\x00model")
    assert resume_from_checkpoint(str(tmp_path), model()) == 2


def schedulers(optimizer):
    lr = torch.optim.lr_scheduler
    return [
        lr.CosineAnnealingLR(optimizer, 5.0),
        lr.StepLR(optimizer, 2),
        lr.MultiStepLR(optimizer, [1, 2]),
        lr.CosineAnnealingWarmRestarts(optimizer, 2),
        lr.OneCycleLR(optimizer, 0.1, 9, cycle_momentum=False),
        lr.PolynomialLR(optimizer),
        lr.ReduceLROnPlateau(optimizer),
    ]


def composed(optimizer):
    """Schedulers of schedulers, and one whose steps PyTorch does not count."""
    lr = torch.optim.lr_scheduler
    parts = [lr.ConstantLR(optimizer, 0.1, 2), lr.StepLR(optimizer, 1, 0.5)]
    return {
        "sequential": lambda: lr.SequentialLR(optimizer, parts, [2]),
        "chained": lambda: lr.ChainedScheduler(parts),
        "restarts": lambda: lr.CosineAnnealingWarmRestarts(optimizer, 3),
    }


@pytest.mark.parametrize("kind", ["sequential", "chained", "restarts"])
@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_composed_scheduler_goes_on(tmp_path, kind, done):
    def start():
        optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
        return optimizer, composed(optimizer)[kind]()

    def rates(optimizer, scheduler, epochs):
        found = []
        for _ in range(epochs):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    optimizer, scheduler = start()
    rates(optimizer, scheduler, done)
    of_both = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    save_checkpoint(state(done) | of_both, str(tmp_path))
    resumed = start()
    load_optim(load_checkpoint(str(tmp_path / f"model.pth.tar-{done}")), *resumed, "a file")
    assert rates(*resumed, 6) == pytest.approx(rates(optimizer, scheduler, 6))


@pytest.mark.parametrize(
    "kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "RAdam", "NAdam", "Adadelta"]
)
def test_a_warm_up_may_hold_any_optimizer_and_scheduler(tmp_path, kind):
    """As pickled today, whole: the weights can be tested, and nothing of torch.optim comes to
    be."""
    net = model()
    for i in range(len(schedulers(torch.optim.SGD(net.parameters())))):
        successor = schedulers(getattr(torch.optim, kind)(net.parameters(), lr=0.1))[i]
        torch.save(state(5) | {"scheduler": {"successor": successor}}, tmp_path / "u")
        checkpoint = load_checkpoint(str(tmp_path / "u"))
        assert checkpoint["state_dict"]["weight"].eq(5).all()
        assert type(checkpoint["scheduler"]["successor"]).__module__ == "dassl.utils.checkpoint"


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_upstreams_pickled_scheduler_is_read_and_inert(tmp_path, kind):
    net = model()
    optimizer = kind(net.parameters(), lr=0.1)
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
    # what LRScheduler left in them when upstream's files were written: no wrapped functions,
    # defaultdicts
    successor.__dict__ = {"T_max": 5.0, "optimizer": optimizer, "last_epoch": 3, "_last_lr": [0.1]}
    optimizer.__dict__ = {
        "defaults": {"lr": 0.1},
        "state": defaultdict(dict, optimizer.state),
        "param_groups": [],
    }
    upstream = state(5) | {
        "optimizer": {"state": {}, "param_groups": []},
        "scheduler": {"successor": successor, "warmup_epoch": 1, "last_epoch": 1},
    }
    torch.save(upstream, tmp_path / "u")
    with open(tmp_path / "u", "rb") as file:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    module = "sgd.SGD" if kind is torch.optim.SGD else "adam.Adam"
    listed = {
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        f"torch.optim.{module}",
        "collections.defaultdict",
    }
    assert set(names) - {"builtins.dict", "dict"} == listed

    checkpoint = load_checkpoint(str(tmp_path / "u"))
    assert checkpoint["epoch"] == 5 and checkpoint["state_dict"]["weight"][0, 0] == 5
    assert type(checkpoint["scheduler"]["successor"]).__module__ == "dassl.utils.checkpoint"
    inert = checkpoint["scheduler"]["successor"].optimizer
    assert type(inert.state) is OrderedDict and not isinstance(inert, torch.optim.Optimizer)


@pytest.mark.parametrize("content", [torch.zeros(2), [1], {"state_dict": 3}, {1: torch.zeros(2)}])
def test_pretrained_weights_of_odd_form(tmp_path, content):
    torch.save(content, tmp_path / "w")
    with pytest.raises(Failure, match="is no checkpoint of a training run"):
        load_pretrained_weights(model(), str(tmp_path / "w"))


@pytest.mark.parametrize("value", [torch.full((4, 3), float("nan")), torch.ones(4, 3).int()])
def test_pretrained_weights_that_are_no_numbers(tmp_path, value):
    torch.save({"weight": value}, tmp_path / "w")
    net = model()
    with pytest.raises(Failure, match="weight .*(is NaN or infinite|has type torch.int32)"):
        load_pretrained_weights(net, str(tmp_path / "w"))
    assert torch.isfinite(net.weight).all()


def test_pretrained_weights_take_what_fits(tmp_path, capsys):
    torch.save({"module.weight": torch.full((4, 3), 2.0), "bias": torch.zeros(9)}, tmp_path / "w")
    net = nn.Linear(3, 4)
    load_pretrained_weights(net, str(tmp_path / "w"))
    assert net.weight.eq(2).all() and "['bias']" in capsys.readouterr().out
    with pytest.raises(Failure, match="No weight in"):
        load_pretrained_weights(nn.Linear(5, 5), str(tmp_path / "w"))
