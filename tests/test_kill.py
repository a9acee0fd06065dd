"""Runs killed at any moment and started again end bitwise where undisturbed ones do.

`pytest tests/test_kill.py --kills 200 -s` kills that often and says how it went; without it a
handful.
"""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml

import train
from dassl.engine.record import Recorder
from dassl.utils import checkpoint
from tests.forked import forked, start, wait
from tests.runs import HANG, REPO, arguments, wait_for
from trainers.base import CLIPTrainer

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SMALL = ("OPTIM.MAX_EPOCH", "3", "DATASET.NUM_SHOTS", "1", "TRAIN.CHECKPOINT_FREQ", "1")
PROGRAMS = {
    "P2C": ("P2C", *SMALL, "DATALOADER.NUM_WORKERS", "1"),
    "PromptSRC": ("PromptSRC", *SMALL, "DATALOADER.NUM_WORKERS", "0"),
    "best_val": ("P2C", *SMALL, "DATALOADER.NUM_WORKERS", "0", "TEST.FINAL_MODEL", "best_val"),
}


def command(name: str, data: Path, out: Path) -> Callable[[], int]:
    trainer, *opts = PROGRAMS[name]
    return lambda: train.main(arguments(trainer, data, out, *opts))


def state(out: Path) -> dict[str, object]:
    """What a run has left, but for times: all its checkpoints, and its results."""
    files = (
        path
        for path in out.rglob("*")
        if path.suffix != ".tmp" and path.parent != out and path.is_file()
    )
    kept = {str(p.relative_to(out)): p.read_bytes() for p in files if "tensorboard" not in p.parts}
    record = json.loads((out / "results.json").read_text())
    return kept | {key: record[key] for key in ("metrics", "per_class", "loss", "parameters")}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Callable[[str], tuple[dict, float]]:
    """What a program leaves, and how long it takes."""

    @cache
    def whole(name: str) -> tuple[dict, float]:
        folder, begin = tmp_path_factory.mktemp("whole"), time.monotonic()
        assert forked(command(name, data, folder / "out"), folder).code == 0
        return state(folder / "out"), time.monotonic() - begin

    return whole


@pytest.fixture(scope="module")
def kills(request) -> int:
    """How many kills of each of the four programs."""
    return -(-request.config.getoption("--kills") // 4)


def assert_ended_by(done, kind: signal.Signals) -> None:
    """By this signal, or as if there had been none: Python drops a Ctrl-C that comes while it frees
    an object."""
    assert done.code in ((0, 130) if kind == signal.SIGINT else (0, -kind, 128 + kind)), done
    if done.code == 130 and done.err:
        assert done.err.startswith("stopped; run the same command again"), done.err


def said(hits: Counter) -> str:
    kinds = ", ".join(f"{n} {kind}" for kind, n in hits.items())
    return f"{hits.total()} kills ({kinds}), all ended equal"


@pytest.mark.parametrize("name", PROGRAMS)
def test_killed_at_random(name, undisturbed, kills, data, tmp_path):
    expected, seconds = undisturbed(name)
    rng, hits = random.Random(), Counter()
    seed = rng.randrange(2**32)
    rng.seed(seed)
    print(f"\n{name}: seed {seed}, {seconds:.1f} s undisturbed")
    while hits.total() < kills:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(rng.randint(1, 3)):
            pid, kind = start(command(name, data, out), tmp_path), rng.choice(SIGNALS)
            time.sleep(rng.uniform(0, seconds))
            os.kill(pid, kind)
            done = wait(pid, tmp_path)
            assert_ended_by(done, kind)
            hits[kind.name] += done.code != 0  # it may have ended before
        done = forked(command(name, data, out), tmp_path)
        assert done.code == 0 and done.err == "", done
        assert state(out) == expected, f"seed {seed}"
    print(f"{name}: {said(hits)}")


# -- at chosen moments: the process sends the signal to itself


def half_a_file(kill: Callable[[], None]) -> None:
    save = checkpoint.torch.save

    def half(state, file):
        save(state, file)
        if state["epoch"] == 2:
            file.truncate(file.tell() // 2)
            kill()

    checkpoint.torch.save = half


def before(owner: object, name: str, when: Callable[..., bool] = lambda *_: True) -> Callable:
    """Kills where a function is called."""

    def moment(kill: Callable[[], None]) -> None:
        function = getattr(owner, name)

        def instead(*args, **kwargs):
            if when(*args):
                kill()
            return function(*args, **kwargs)

        setattr(owner, name, instead)

    return moment


MOMENTS = {
    "in mid-file": half_a_file,
    "before the pointer to a checkpoint": before(
        checkpoint, "atomic_write", lambda path, *_: path.endswith("/checkpoint")
    ),
    "before a checkpoint is removed": before(
        CLIPTrainer, "_remove_rolling", lambda trainer: trainer.epoch == 1
    ),
    "before an epoch's numbers are saved": before(Recorder, "epoch_ends"),
    "while testing": before(CLIPTrainer, "model_inference"),
    "between result and record": before(
        Recorder, "tested", lambda recorder, *_: not recorder.in_training
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at(moment, undisturbed, kills, data, tmp_path):
    """Each program with each signal, or one of these."""
    pairs, place = [*product(PROGRAMS, SIGNALS)], list(MOMENTS).index(moment)
    for name, kind in pairs if kills > 10 else pairs[4 * place % 9 :][:1]:
        out = tmp_path / name / kind.name
        expected, _ = undisturbed(name)

        def killed(name=name, kind=kind, out=out):
            MOMENTS[moment](lambda: os.kill(os.getpid(), kind))
            return command(name, data, out)()

        assert_ended_by(done := forked(killed, tmp_path), kind)
        assert done.code != 0
        assert forked(command(name, data, out), tmp_path).code == 0
        assert state(out) == expected


# -- a sweep, as typed


def sweep(data: Path, folder: Path) -> subprocess.Popen:
    keys = {
        "protocol": "base2new",
        "methods": ["p2c"],
        "datasets": ["shapes"],
        "seeds": [1],
        "output": str(folder / "out"),
    }
    keys |= {"settings": {"short": ["OPTIM.MAX_EPOCH", 3]}}
    (folder / "my.yaml").write_text(yaml.safe_dump(keys))
    env = os.environ | {"VENV": sys.prefix, "OMP_NUM_THREADS": "1", "DATA": str(data), "SHOTS": "1"}
    words = ["bash", "scripts/sweep.sh", str(folder / "my.yaml"), "--slots", "1"]
    log = open(folder / "stderr", "w")  # noqa: SIM115
    return subprocess.Popen(
        words, cwd=REPO, env=env, stdout=log, stderr=log, start_new_session=True
    )


# What shows that a sweep's training has begun, has saved a model, and that its test has begun.
SEEN = ("train_base/**/log.txt", "train_base/**/model.pth.tar-*", "test_new/**/log.txt")


def test_a_killed_sweep(kills, data, tmp_path):
    """Alone, so that its run goes on, or with all that it has started.

    A moment after something of it is seen, when it is at work for certain; many kills come at any
    time.
    """
    rng, hits, seconds = random.Random(), Counter(), 20.0
    while hits.total() < (kills if kills > 10 else 1):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process, kind = sweep(data, tmp_path), rng.choice(SIGNALS)
        if kills > 10:
            time.sleep(rng.uniform(0, seconds))
        else:
            pattern = rng.choice(SEEN)
            wait_for(lambda: list((tmp_path / "out").rglob(pattern)))  # noqa: B023
            time.sleep(rng.uniform(0, 0.2))
        with suppress(ProcessLookupError):  # it may have ended
            rng.choice((os.kill, os.killpg))(process.pid, kind)
        hits[kind.name] += process.wait(HANG) != 0
        begin = time.monotonic()
        assert sweep(data, tmp_path).wait(HANG) == 0, (tmp_path / "stderr").read_text()
        seconds = max(seconds, time.monotonic() - begin)
        assert "Traceback" not in (tmp_path / "stderr").read_text()
        assert_as_alone(tmp_path / "out", tmp_path / "alone")
    print(f"\na sweep: {said(hits)}")


def assert_as_alone(out: Path, alone: Path) -> None:
    """The commands of a sweep's runs, each in an empty folder, leave what the sweep has."""
    folders = [
        path.parent
        for part in ("train_base", "test_new")
        for path in out.rglob(f"{part}/**/results.json")
    ]
    assert len(folders) == 2
    for folder in folders:
        words = shlex.split(json.loads((folder / "results.json").read_text())["command"])[2:]
        words = [str(alone / "out") if word == str(folder) else word for word in words]
        shutil.rmtree(alone, ignore_errors=True)
        assert forked(lambda: train.main(words), alone).code == 0  # noqa: B023
        assert state(folder) == state(alone / "out")
