"""One run on several processes, as torchrun starts them, beside the same run on one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
import torch

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.evaluation import EVALUATOR_REGISTRY, Classification
from dassl.utils import UsageError, load_checkpoint, ranks
from dassl.utils.lock import sole_run
from tests.forked import Done, forked
from tests.ranked import ranked
from tests.runs import REPO, arguments
from tests.trainers.methods import in_double
from trainers.base import CLIPTrainer
from trainers.coop import CoOp

# What two runs of the same must differ in.
OF_A_RUN = ("command", "config", "finished", "images_per_second", "peak_memory_mb", "processes")
OF_A_RUN += ("test_seconds", "train_seconds", "epoch_seconds")
SPLIT = ("DATALOADER.TEST.BATCH_SIZE", "7", "TEST.COMPUTE_CMAT", "True")


def program(*words) -> Callable[[], int]:
    return lambda: train.main(arguments(*words))


def record(out: Path) -> dict:
    """A run's results.json but for what differs from run to run."""
    found = json.loads((out / "results.json").read_text())
    return {key: value for key, value in found.items() if key not in OF_A_RUN}


def result(done: Done) -> str:
    return done.out.partition("=> result")[2]


def assert_only_the_first_is_heard(done: list[Done], code: int = 0) -> None:
    assert [d.code for d in done] == [code] * len(done), done
    assert all(d.out == d.err == "" for d in done[1:]), done


def in_double_from_here() -> None:
    """What is built from now on computes in double precision, so that rounding tells nothing."""
    build = CLIPTrainer.build_model

    def build_model(self: CLIPTrainer) -> None:
        build(self)
        in_double(self)

    def parse(self: CLIPTrainer, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["img"].double(), batch["label"]

    CLIPTrainer.build_model = build_model
    CLIPTrainer.parse_batch_train = CLIPTrainer.parse_batch_test = parse


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A P2C after two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    words = "P2C", data, folder / "out", "OPTIM.MAX_EPOCH", "2"
    assert forked(program(*words), folder).code == 0
    return folder / "out"


# -- tests


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(
    "kept, opts",
    [
        ("features", ("DATALOADER.FEATURES", "features-{processes}")),
        ("crops", ("DATALOADER.FEATURES", "", "DATALOADER.TEST_CACHE", "crops-{processes}")),
        ("images", ("DATALOADER.FEATURES", "", "TEST.PER_CLASS_RESULT", "True")),
    ],
)
def test_zero_shot_clip(kept, opts, processes, data, tmp_path):
    opts = [word.format(processes=processes) for word in (*SPLIT, *opts)]
    words = "ZeroshotCLIP", data
    done = ranked(program(*words, tmp_path / "several", *opts), processes, tmp_path)
    assert_only_the_first_is_heard(done)
    alone = forked(program(*words, tmp_path / "one", *opts), tmp_path / "alone")
    assert alone.code == 0 and result(alone) == result(done[0]) != ""
    one, several = record(tmp_path / "one"), record(tmp_path / "several")
    assert several.pop("test_from") == "images"
    assert one.pop("test_from") == kept  # by the run before
    assert one == several and one["metrics"]["total"] == 64
    cmats = [(tmp_path / out / "cmat.pt").read_bytes() for out in ("one", "several")]
    assert cmats[0] == cmats[1]


def test_a_trained_model_with_fewer_batches_than_processes(trained, data, tmp_path):
    flags = ("--eval-only", "--model-dir", str(trained))
    opts = ("P2C", data, tmp_path / "out", "OPTIM.MAX_EPOCH", "2", "TEST.SPLIT", "val")
    opts += ("DATALOADER.TEST.BATCH_SIZE", "10")  # 16 images
    done = ranked(lambda: train.main(arguments(*opts, flags=flags)), 3, tmp_path / "p")
    assert_only_the_first_is_heard(done)
    several = record(tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    assert forked(lambda: train.main(arguments(*opts, flags=flags)), tmp_path).code == 0
    assert record(tmp_path / "out") | {"log": None} == several | {"log": None}


# -- ends


def test_a_wrong_setting_is_said_once(data, tmp_path):
    done = ranked(program("ZeroshotCLIP", data, tmp_path / "o", "TEST.SPLIT", "x"), 2, tmp_path)
    assert {d.code for d in done} == {2}
    [line] = "".join(d.err for d in done).splitlines()
    assert "TEST.SPLIT" in line or "split" in line.lower()


def test_a_wrong_flag_is_said_once(tmp_path):
    done = ranked(lambda: train.main(["--no-such-flag"]), 2, tmp_path)
    assert_only_the_first_is_heard(done, code=2)
    assert len(done[0].err.splitlines()) == 1


def test_a_failure_of_one_process_is_heard_and_ends_all(data, tmp_path):
    """And is in the log, which the first writes."""

    def main() -> int:
        process = Classification.process

        def fail(self, *given):
            if not ranks.first():
                raise UsageError("only here")
            process(self, *given)

        Classification.process = fail
        return program("ZeroshotCLIP", data, tmp_path / "out", *SPLIT)()

    done = ranked(main, 2, tmp_path)
    assert [d.code for d in done] == [2, 2]
    assert [d.err for d in done] == ["", "error: only here\n"]
    assert (tmp_path / "out" / "log.txt").read_text().endswith("error: only here\n")


def test_a_process_that_is_killed_ends_all_with_one_line(data, tmp_path):
    def main() -> int:
        process = Classification.process

        def kill(self, *given):
            if not ranks.first():
                os.kill(os.getpid(), signal.SIGKILL)
            process(self, *given)

        Classification.process = kill
        return program("ZeroshotCLIP", data, tmp_path / "out", *SPLIT)()

    first, second = ranked(main, 2, tmp_path)
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert first.err == f"error: {ranks.LOST}\n" and "result" not in first.out
    assert not (tmp_path / "out" / "results.json").exists()


def test_the_folder_is_the_firsts(data, tmp_path):
    """Locked by another run: all end."""
    out = tmp_path / "out"
    with sole_run(str(out)):
        done = ranked(program("ZeroshotCLIP", data, out, *SPLIT), 2, tmp_path)
    assert "Another run is at work" in done[0].err and done[1].err == ""
    assert [d.code for d in done] == [1, 1]


# -- trainings

BEST = ("TEST.FINAL_MODEL", "best_val")
CYCLES = ("OPTIM.MAX_EPOCH", "4", "OPTIM.CYCLE_EPOCHS", "2", "TRAINER.REBAPL.NOISE_EPOCHS", "1")


@pytest.mark.parametrize("words", [("P2C", *BEST), ("ReBaPL_MaPLe", *CYCLES)], ids=lambda w: w[0])
def test_a_training_killed_and_resumed_by_more_processes(words, data, tmp_path):
    """It ends where that of one process does."""
    name, *opts = words

    def main(out: str) -> int:
        in_double_from_here()
        return program(name, data, tmp_path / out, *opts)()

    def killed() -> int:
        step = CLIPTrainer.forward_backward

        def kill(self: CLIPTrainer, batch: dict) -> dict:
            if not ranks.first() and (self.epoch, self.batch_idx) == (2, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch)

        CLIPTrainer.forward_backward = kill
        return main("several")

    first, second = ranked(killed, 2, tmp_path / "killed")
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert first.err == f"error: {ranks.LOST}\n"
    assert_only_the_first_is_heard(done := ranked(lambda: main("several"), 3, tmp_path / "rest"))
    assert "Epochs done: 2" in done[0].out and "Processes: 3" in done[0].out
    alone = forked(lambda: main("one"), tmp_path / "alone")
    assert alone.code == 0, alone.err
    one, several = record(tmp_path / "one"), record(tmp_path / "several")
    assert one.pop("loss") == pytest.approx(several.pop("loss"), rel=1e-9)
    assert one.pop("log") != several.pop("log")
    ece = [found["metrics"].pop("ece") for found in (one, several)]
    assert one == several and ece[0] == pytest.approx(ece[1], rel=1e-5)
    files = [sorted(path.relative_to(tmp_path / out) for path in (tmp_path / out).rglob("*tar*"))
             for out in ("one", "several")]  # fmt: skip
    assert files[0] == files[1] != []
    for file in files[0]:
        states = [load_checkpoint(str(tmp_path / out / file)) for out in ("one", "several")]
        torch.testing.assert_close(*(states_of(state) for state in states), rtol=1e-7, atol=1e-9)


def states_of(checkpoint: dict) -> dict:
    """All that a training goes on from, and what a test reads."""
    parts = ("state_dict", "optimizer", "samples", "trainer")
    return {part: checkpoint[part] for part in parts if part in checkpoint}


@pytest.mark.parametrize(
    "words, line",
    [
        (("CoCoOp", "DATALOADER.TRAIN_X.BATCH_SIZE", "1"), "A batch of 1 cannot be shared by 2"),
        (
            ("EMPL", *"TRAINER.EMPL.PER batch DATALOADER.TRAIN_X.BATCH_SIZE 2".split()),
            "TRAINER.EMPL.PER batch",
        ),
        (("Mine",), "Mine does not say (divisible)"),
    ],
    ids=["few images", "a batch that is one", "another trainer"],
)
def test_a_training_that_cannot_be_shared_is_refused(words, line, data, tmp_path):
    def main() -> int:
        name, *opts = words
        argv = arguments("CoOp" if name == "Mine" else name, data, tmp_path / "out", *opts)
        TRAINER_REGISTRY.register(type("Mine", (CoOp,), {}))
        return train.main([name if word == "CoOp" else word for word in argv])

    done = ranked(main, 2, tmp_path)
    assert {d.code for d in done} == {2}
    [said] = "".join(d.err for d in done).splitlines()
    assert line in said


def test_a_batch_too_small_does_not_claim_the_folder(data, tmp_path):
    """So that the batch can be raised, as the line says."""
    main = program("CoOp", data, out := tmp_path / "out", "DATALOADER.TRAIN_X.BATCH_SIZE", "1")
    assert {d.code for d in ranked(main, 2, tmp_path)} == {2}
    assert not (out / "config.yaml").exists()


def test_processes_that_see_other_checkpoints_are_refused(trained, data, tmp_path):
    """As on machines whose folder of that name is not the same."""

    def main() -> int:
        out = trained if "0" in os.environ["RANK"] else tmp_path / "out"
        return program("P2C", data, out, "OPTIM.MAX_EPOCH", "2")()

    done = ranked(main, 2, tmp_path)
    assert {d.code for d in done} == {1}
    assert "".join(d.err for d in done).count("some processes see 0 epochs done, others 2") == 1


def test_processes_need_a_seed(data, tmp_path):
    done = ranked(program("ZeroshotCLIP", data, tmp_path / "out", "SEED", "-1"), 2, tmp_path)
    assert {d.code for d in done} == {2}
    assert "".join(d.err for d in done).count("give --seed") == 1


def test_an_evaluator_that_adds_nothing_up_is_refused(data, tmp_path):
    def main() -> int:
        EVALUATOR_REGISTRY.register(type("Mine", (Classification,), {}))
        return program("ZeroshotCLIP", data, tmp_path / "out", "TEST.EVALUATOR", "Mine")()

    done = ranked(main, 2, tmp_path)
    assert {d.code for d in done} == {2}
    assert "".join(d.err for d in done).count("TEST.EVALUATOR Mine") == 1


# -- with torchrun itself


def test_the_scripts_take_a_number_of_processes(data, tmp_path):
    script = ["bash", "scripts/zsclip/base2new_test.sh", "shapes", "1"]
    both = []
    for name, opts in {"fine": (), "wrong": ("TEST.SPLIT", "nothing")}.items():
        env = {"GPUS": "2", "DATA": data, "OUTPUT": tmp_path / name, "VENV": sys.prefix}
        env = os.environ | {key: str(value) for key, value in env.items()}
        both.append(
            subprocess.Popen([*script, *opts], cwd=REPO, env=env, stdout=DEVNULL, stderr=PIPE)
        )
    fine, wrong = [(process.communicate()[1].decode(), process.wait()) for process in both]
    assert fine == ("", 0)
    [file] = tmp_path.rglob("results.json")
    assert json.loads(file.read_text())["processes"] == 2
    assert wrong[1] == 2 and len(wrong[0].splitlines()) == 1 and "nothing" in wrong[0]


def test_torchruns_environment_alone_makes_several(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    ranks.join()
    assert ranks.count() == 1 and ranks.first() and ranks.turns([1, 2, 3]) == [1, 2, 3]
    tensor = torch.tensor(3)
    ranks.add_up(tensor)
    assert tensor == 3 == ranks.greatest(3)
