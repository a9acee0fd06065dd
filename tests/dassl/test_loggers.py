"""TRAIN.LOGGER: where a run's numbers go beside its log."""

import csv
import io
import os
import sys

import pytest

from dassl.config import get_cfg_default, merge_command_line, merge_file
from dassl.engine.loggers import check_loggers
from dassl.utils import Failure, UsageError

# A package of wandb's name, which keeps what it is told in a list.
WANDB = """
class Error(Exception):
    pass

class Settings(dict):
    pass

class Run:
    def __init__(self, given):
        self.given, self.metrics, self.logged, self.finished = given, {}, [], False
    def define_metric(self, name, step_metric):
        self.metrics[name] = step_metric
    def log(self, data):
        self.logged.append(data)
    def finish(self):
        self.finished = True

runs, refused = [], None

def init(**given):
    if refused:
        raise refused
    runs.append(Run(given))
    return runs[-1]
"""


def rows(folder) -> list[tuple[str, ...]]:
    with open(f"{folder}/scalars.csv", newline="") as file:
        header, *found = csv.reader(file)
    assert header == ["epoch", "step", "tag", "value"]
    return [*map(tuple, found)]


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    import wandb

    yield wandb
    del sys.modules["wandb"]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("csv", ("csv",)),
        ("csv,tensorboard", ("csv", "tensorboard")),
        ("('csv', 'wandb')", ("csv", "wandb")),
        ("csv wandb", ("csv", "wandb")),
        ("", ()),
        ("()", ()),
    ],
)
def test_words_or_a_list(given, names):
    cfg = get_cfg_default()
    merge_command_line(cfg, [], ["TRAIN.LOGGER", given])
    assert names == cfg.TRAIN.LOGGER


@pytest.mark.parametrize("text", ["csv, wandb", "[csv, wandb]", "'csv wandb'"])
def test_a_file_takes_words_too(text, tmp_path):
    (tmp_path / "a.yaml").write_text(f"TRAIN:\n  LOGGER: {text}\n")
    cfg = get_cfg_default()
    merge_file(cfg, str(tmp_path / "a.yaml"))
    assert cfg.TRAIN.LOGGER == ("csv", "wandb")


def test_a_row_for_each_number(make):
    trainer = make("TRAIN.LOGGER", ("csv",), "OPTIM.MAX_EPOCH", 2)
    trainer.train()
    found = rows(trainer.output_dir)
    steps = [row[:2] for row in found if row[2] == "train/loss"]
    assert steps == [("1", "1"), ("1", "3"), ("2", "5"), ("2", "7")]
    loss = float(next(row[3] for row in reversed(found) if row[2] == "train/loss"))
    assert loss == trainer.recorder.loss
    # the test is of the whole training
    assert ("", "1", "test/accuracy") in [row[:3] for row in found]
    assert not os.path.exists(f"{trainer.output_dir}/tensorboard") and trainer._writer is None


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_resumed_run_has_each_row_once(make, tmp_path, elsewhere):
    options = "TRAIN.LOGGER", ("csv",), "TRAIN.PRINT_FREQ", 1
    make(*options, "OUTPUT_DIR", str(tmp_path / "whole")).train()
    killed = make(*options)
    killed.fail_at = (3, 2)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert rows(killed.output_dir)[-1][0] == "4"  # of an epoch that is not whole
    with open(f"{killed.output_dir}/scalars.csv", "a") as file:
        file.write("2,1,half a r")
    out = str(tmp_path / "on") if elsewhere else killed.output_dir
    for _ in range(2):  # the second time only the test is left to do
        again = make(*options, "OUTPUT_DIR", out, "RESUME", killed.output_dir * elsewhere)
        again.train()
        assert again.start_epoch in (3, 5) and rows(out) == rows(tmp_path / "whole")


def test_rows_of_a_start_that_saved_nothing_go(make, tmp_path):
    """Whether the run that is resumed has rows of its own or not."""
    options = "TRAIN.LOGGER", ("csv",), "TRAIN.PRINT_FREQ", 1
    first = make(*options, "OPTIM.MAX_EPOCH", 2, "OUTPUT_DIR", str(tmp_path / "first"))
    first.train()
    for has_rows in (True, False):
        out = str(tmp_path / f"on{has_rows}")
        begun = make(*options, "OUTPUT_DIR", out)
        begun.fail_at = (0, 3)
        with pytest.raises(KeyboardInterrupt):
            begun.train()
        assert {row[0] for row in rows(out)} == {"1"}
        if not has_rows:
            os.remove(tmp_path / "first" / "scalars.csv")
        make(*options, "OPTIM.MAX_EPOCH", 3, "OUTPUT_DIR", out, "RESUME", first.output_dir).train()
        steps = [int(step) for _, step, tag, _ in rows(out) if tag == "train/loss"]
        assert steps == [*range(0 if has_rows else 8, 12)]  # 4 of each epoch


def test_no_cell_is_a_formula(make):
    trainer = make("TRAIN.LOGGER", ("csv",))
    os.makedirs(trainer.output_dir)
    trainer.init_writer("")
    trainer.write_scalar("=1+1\n", -0.5, 3)
    trainer.close_writer()
    assert rows(trainer.output_dir) == [("", "3", "'=1+1\\n", "-0.5")]


def test_a_file_that_cannot_be_written(make):
    trainer = make("TRAIN.LOGGER", ("csv",))
    os.makedirs(f"{trainer.output_dir}/scalars.csv")
    with pytest.raises(Failure, match="scalars.csv cannot be continued: Is a directory. Move it"):
        trainer.train()


def test_a_full_disk(make):
    trainer = make("TRAIN.LOGGER", ("csv",))
    os.makedirs(trainer.output_dir)
    trainer.init_writer("")
    [logger] = trainer._loggers
    line = "scalars.csv: No space left on device. Free some space"
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(Failure, match=line):
        logger.rows = csv.writer(io.TextIOWrapper(full, write_through=True))
        trainer.write_scalar("train/loss", 1.0, 1)


def test_only_the_first_process_logs(make, monkeypatch):
    monkeypatch.setattr("dassl.utils.ranks.first", lambda: False)
    trainer = make("TRAIN.LOGGER", ("csv", "tensorboard"))
    trainer.train()
    assert not {"tensorboard", "scalars.csv"} & {*os.listdir(trainer.output_dir)}


def test_no_logger_at_all(make):
    trainer = make("TRAIN.LOGGER", (), "OPTIM.MAX_EPOCH", 2)
    trainer.train()
    assert not {"tensorboard", "scalars.csv", "wandb"} & {*os.listdir(trainer.output_dir)}


def test_wandb_is_told_what_the_others_are(make, wandb):
    trainer = make("TRAIN.LOGGER", ("wandb", "csv"), "OPTIM.MAX_EPOCH", 2)
    trainer.train()
    [run] = wandb.runs
    assert run.finished and run.given["dir"] == trainer.output_dir
    assert run.given["project"] == "p2c" and run.given["config"]["OPTIM"]["MAX_EPOCH"] == 2
    assert run.given["name"] == "Linear, Noise, all classes, -1 shots, seed 1"
    assert run.given["group"] == "Linear, Noise, all classes, -1 shots"
    told = []
    for data in run.logged:
        [tag] = data.keys() - {"epoch", "step"}
        assert ("step" in data) == tag.startswith("train/")
        told.append((tag, str(data[tag])))
    assert told == [row[2:] for row in rows(trainer.output_dir)]


def test_wandbs_own_variables_go_first(make, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_NAME", "a run")
    make("TRAIN.LOGGER", ("wandb",), "OPTIM.MAX_EPOCH", 2).train()
    assert [wandb.runs[0].given[key] for key in ("project", "name")] == ["mine", "a run"]


@pytest.mark.parametrize("kind", ["an account", "a mode"])
def test_wandb_that_refuses(kind, make, wandb, monkeypatch):
    """A wrong variable is a ValueError, of several lines."""
    refused, line = {
        "an account": (
            wandb.Error("No API key.\nMore of it"),
            "No API key; More of it. Run wandb login, or set WANDB_MODE=offline",
        ),
        "a mode": (ValueError("wrong\nmode\n  'ofline'\nat 3"), "wrong; mode; 'ofline'. See its "),
    }[kind]
    monkeypatch.setattr(wandb, "refused", refused)
    with pytest.raises(Failure, match=f"TRAIN.LOGGER wandb: {line}"):
        make("TRAIN.LOGGER", ("wandb",)).train()


def test_wandb_that_is_not_there(make, cfg, tmp_path, monkeypatch):
    """A folder that wandb has left is no wandb."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "wandb" not in path])
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    check_loggers(cfg)
    cfg.TRAIN.LOGGER = ("csv", "wandb")
    with pytest.raises(UsageError, match="it is not installed in this environment: pip install"):
        check_loggers(cfg)


def test_a_writer_that_a_trainer_opens_itself(make):
    """As third-party trainers may: it is written to and closed."""
    trainer, told = make("TRAIN.LOGGER", ("csv",)), []

    class Mine:
        add_scalar = staticmethod(lambda *what: told.append(what))
        close = staticmethod(lambda: told.append("closed"))

    trainer._writer = Mine()
    trainer.init_writer("nowhere")
    trainer.write_scalar("train/loss", 0.5, 1)
    trainer.close_writer()
    assert told == [("train/loss", 0.5, 1), "closed"] and trainer._writer is None
