"""results.json: what is in it is counted, timed or asked again here by other means."""

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from sklearn.metrics import precision_score

from dassl.engine import record
from dassl.evaluation import build_evaluator
from dassl.results_json import problem
from dassl.utils import Failure, setup_logger
from results.records import find_results


def read(trainer_or_folder, name="results.json"):
    return json.loads(
        (Path(getattr(trainer_or_folder, "output_dir", trainer_or_folder)) / name).read_text()
    )


@pytest.fixture(autouse=True)
def own_stdout(monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)


@pytest.fixture
def interrupted(make):
    """A run that was stopped in its fourth epoch, with the numbers it had then."""
    trainer = make()
    trainer.fail_at = (3, 2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer, read(trainer, "epochs.json")


def test_a_run_from_beginning_to_end(make, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--root", "my data", "--seed", "1"])
    trainer = make("OPTIM.MAX_EPOCH", 2)
    setup_logger(trainer.output_dir)
    losses, step = [], trainer.forward_backward

    def slow_step(batch):
        time.sleep(0.02)
        out = step(batch)
        losses.append(out["loss"].item())
        return out

    trainer.forward_backward = slow_step
    began = time.monotonic()
    trainer.train()
    took = time.monotonic() - began
    got = read(trainer)

    images, labels = (torch.cat([b[key] for b in trainer.test_loader]) for key in ("img", "label"))
    right = trainer.model.eval()(images).argmax(1) == labels
    assert got["metrics"]["total"] == 12 and got["metrics"]["correct"] == right.sum()
    assert got["metrics"]["accuracy"] == pytest.approx(100 * right.float().mean().item())
    assert got["metrics"]["error_rate"] == pytest.approx(100 - got["metrics"]["accuracy"])
    of_class = {
        name: 100 * right[labels == i].float().mean().item() for i, name in enumerate("abc")
    }
    assert got["per_class"] == pytest.approx(of_class)
    probabilities, labels = trainer.model(images).softmax(1).tolist(), labels.tolist()
    guesses = [row.index(max(row)) for row in probabilities]
    each = {"labels": range(3), "average": None, "zero_division": 0}
    precision, recall = precision_score(labels, guesses, **each), list(of_class.values())
    assert list(got["per_class_metrics"]) == list("abc")
    for of, p, r in zip(got["per_class_metrics"].values(), precision, recall, strict=True):
        assert of == pytest.approx({"precision": 100 * p, "recall": r})
    assert got["metrics"]["macro_precision"] == pytest.approx(100 * precision.mean())
    assert got["metrics"]["macro_recall"] == pytest.approx(sum(recall) / 3)
    assert 0 <= got["metrics"]["ece"] <= 100 and "top5_accuracy" not in got["metrics"]
    assert problem(got) == ""
    assert got["loss"] == pytest.approx(
        [sum(losses[:4]) / 4, sum(losses[4:]) / 4]
    )  # 18 images: 4 batches of 4
    assert all(0.08 < seconds < took for seconds in got["epoch_seconds"])
    assert (
        got["train_seconds"] == pytest.approx(sum(got["epoch_seconds"]))
        and got["train_seconds"] < took
    )
    assert 0 < got["test_seconds"] < took
    assert got["images_per_second"]["train"] == pytest.approx(2 * 16 / got["train_seconds"])
    assert got["images_per_second"]["test"] == pytest.approx(12 / got["test_seconds"])
    assert got["parameters"] == 3 * 64 * 3 + 3
    assert (got["format"], got["trainer"], got["dataset"], got["seed"]) == (1, "Linear", "Noise", 1)
    assert (got["shots"], got["subsample"], got["eval_only"], got["log"]) == (
        -1,
        "all",
        False,
        "log.txt",
    )
    assert got["config"]["OPTIM"]["MAX_EPOCH"] == 2 and got["config"]["INPUT"]["SIZE"] == [8, 8]
    assert got["command"] == "python train.py --root 'my data' --seed 1"
    assert (
        got["versions"]["python"] == sys.version.split()[0]
        and got["versions"]["torch"] == torch.__version__
    )
    assert (
        got["device"].endswith(", 1 thread") == (not torch.cuda.is_available()) and got["machine"]
    )
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    high_water = int(status["VmHWM"].split()[0]) / 1024
    assert got["peak_memory_mb"]["process"] == pytest.approx(high_water, rel=0.1)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(got["finished"])).total_seconds()) < 60


def test_frozen_parameters_are_not_learned(make):
    trainer = make("OPTIM.MAX_EPOCH", 2)
    trainer.model[2].weight.requires_grad_(False)
    trainer.register_model("the_same_again", trainer.model)
    trainer.train()
    assert read(trainer)["parameters"] == 3


def test_the_commit_is_gits(monkeypatch):
    record.commit.cache_clear()
    here = Path(record.__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True)
    if head.returncode:
        pytest.skip("no git repository")
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here).returncode == 1
    assert record.commit() == {"commit": head.stdout.strip(), "dirty": changed}


def test_without_git_there_is_no_commit(make, monkeypatch, tmp_path):
    record.commit.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    trainer = make("OPTIM.MAX_EPOCH", 2)
    trainer.train()
    record.commit.cache_clear()
    assert (read(trainer)["commit"], read(trainer)["dirty"]) == (None, None)


def test_a_resumed_run_keeps_what_was_before(make, interrupted, tmp_path):
    whole = make("OUTPUT_DIR", str(tmp_path / "whole"))
    whole.train()
    stopped, before = interrupted
    assert len(before) == 3 and not (Path(stopped.output_dir) / "results.json").exists()
    resumed = make()
    resumed.train()
    assert resumed.start_epoch == 3
    assert read(resumed)["loss"] == read(whole)["loss"] and len(set(read(whole)["loss"])) == 5
    assert read(resumed)["epoch_seconds"][:3] == [epoch["seconds"] for epoch in before]
    assert len(read(resumed)["epoch_seconds"]) == 5
    assert read(resumed)["images_per_second"]["train"] == pytest.approx(
        5 * 16 / read(resumed)["train_seconds"]
    )


def test_what_has_a_checkpoint_has_its_loss(make):
    trainer = make()

    def stop():
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    trainer._remove_rolling = stop  # comes right after the checkpoint
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = make()
    resumed.train()
    assert (
        resumed.start_epoch == 3
        and len(read(resumed)["loss"]) == 5
        and None not in read(resumed)["loss"]
    )


def test_an_epoch_whose_checkpoint_was_lost_is_counted_once(make, interrupted):
    trainer, before = interrupted
    os.truncate(f"{trainer.output_dir}/linear/model.pth.tar-3", 100)
    again = make()
    again.train()
    assert again.start_epoch == 2
    got = read(again)
    assert len(got["loss"]) == 5 and got["loss"][:3] == [epoch["loss"] for epoch in before]
    assert got["epoch_seconds"][:2] == [epoch["seconds"] for epoch in before[:2]]
    assert got["epoch_seconds"][2] != before[2]["seconds"]


def test_resumed_from_another_folder(make, interrupted, tmp_path):
    trainer, before = interrupted
    elsewhere = make("RESUME", trainer.output_dir, "OUTPUT_DIR", str(tmp_path / "elsewhere"))
    elsewhere.train()
    assert read(elsewhere)["loss"][:3] == [epoch["loss"] for epoch in before]
    assert len(read(elsewhere)["loss"]) == 5


DAMAGED = ["[{", "null", "[" * 99999, "[1]", '[{"loss": 1}]', '{"loss": 1}', "7",
           '[{"loss": 1, "seconds": "long", "images": 2}]']  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [os.remove, *((lambda path, text=text: Path(path).write_text(text)) for text in DAMAGED)],
)
def test_epochs_of_which_nothing_is_known(make, interrupted, damage):
    trainer, _ = interrupted
    damage(f"{trainer.output_dir}/epochs.json")
    make().train()
    got = read(trainer)
    assert got["loss"][:3] == got["epoch_seconds"][:3] == [None] * 3
    assert None not in got["loss"][3:] and got["train_seconds"] == pytest.approx(
        sum(got["epoch_seconds"][3:])
    )


def test_a_test_alone(make, tmp_path):
    trained = make("OPTIM.MAX_EPOCH", 2)
    trained.train()
    tested = make("OUTPUT_DIR", str(tmp_path / "test"))
    tested.load_model(trained.output_dir)
    tested.test()  # in a notebook: no log, no folder
    assert not os.path.exists(tested.output_dir)
    setup_logger(tested.output_dir)
    tested.test()
    got = read(tested)
    assert got["eval_only"] and got["loss"] == [] and got["train_seconds"] is None
    assert got["images_per_second"]["train"] is None and got["metrics"] == read(trained)["metrics"]


def test_a_rerun_replaces_the_file_and_keeps_the_trainings_numbers(make):
    trainer = make("OPTIM.MAX_EPOCH", 2)
    setup_logger(trainer.output_dir)
    trainer.train()
    first = read(trainer)
    setup_logger(trainer.output_dir)
    make("OPTIM.MAX_EPOCH", 2).train()  # nothing to train: it tests again
    again = read(trainer)
    assert again["log"].startswith("log.txt-2") and first["log"] == "log.txt"
    assert again["loss"] == first["loss"] and again["epoch_seconds"] == first["epoch_seconds"]
    assert sorted(os.listdir(trainer.output_dir))[0] == "epochs.json"  # no temporary file is left
    shutil.rmtree(f"{trainer.output_dir}/linear")
    make("OPTIM.MAX_EPOCH", 3).train()  # from scratch: the old epochs are gone
    assert (
        len(read(trainer)["loss"]) == 3
        and read(trainer)["epoch_seconds"][0] != first["epoch_seconds"][0]
    )


def test_validation_during_training_is_no_result(make):
    trainer = make("TEST.FINAL_MODEL", "best_val")
    trainer.fail_at = (2, 0)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not (Path(trainer.output_dir) / "results.json").exists()
    again = make("TEST.FINAL_MODEL", "best_val")
    again.train()
    assert read(again)["metrics"]["total"] == 12  # of the test set; the validation set has 6


def test_a_trainer_that_does_things_its_own_way(make):
    trainer = make("OPTIM.MAX_EPOCH", 2)

    def run_epoch():
        for batch in trainer.train_loader_x:
            trainer.batch_idx, trainer.num_batches = 0, 4
            trainer.forward_backward(batch)

    def test():
        for split in (trainer.val_loader, trainer.test_loader):
            trainer.evaluator.reset()
            for batch in split:
                trainer.evaluator.process(trainer.model(batch["img"]), batch["label"])
            accuracy = trainer.evaluator.evaluate()["accuracy"]
        return accuracy

    trainer.run_epoch, trainer.test = run_epoch, test
    trainer._models.clear()  # no model is registered
    trainer.update_lr = trainer.save_model = trainer.resume_model_if_exist = lambda *a, **k: 0
    trainer.model_backward_and_update = trainer.detect_anomaly
    trainer.train()
    got = read(trainer)
    assert got["loss"] == [None, None] and all(s > 0 for s in got["epoch_seconds"])
    assert got["images_per_second"]["train"] is None and got["parameters"] == 0
    assert got["metrics"]["total"] == 12  # the last that was evaluated, as in the log


def test_labeled_and_unlabeled_images_are_counted(make):
    trainer = make("TRAINER.NAME", "LinearXU", "OPTIM.MAX_EPOCH", 2)
    trainer.train()
    assert read(trainer, "epochs.json")[0]["images"] == trainer.num_batches * 8


def test_a_file_that_cannot_be_written_is_one_line(make):
    trainer = make("OPTIM.MAX_EPOCH", 2)
    os.makedirs(f"{trainer.output_dir}/results.json")
    with pytest.raises(Failure, match="Cannot write .*results.json"):
        trainer.train()


def test_the_tables_find_it(make):
    trainer = make("OPTIM.MAX_EPOCH", 2, "DATASET.SUBSAMPLE_CLASSES", "new")
    trainer.train()
    [result] = find_results([Path(trainer.output_dir)])
    assert result.record == read(trainer)
    assert (result.dataset, result.trainer, result.seed, result.side) == (
        "Noise",
        "Linear",
        1,
        "new",
    )
    assert result.metrics["macro_f1"] == read(trainer)["metrics"]["macro_f1"]


def test_two_classes_of_one_name(cfg):
    evaluator = build_evaluator(cfg, lab2cname={0: "missile", 1: "owl", 2: "missile"})
    told = []
    evaluator.when_done = lambda *args: told.extend(args)
    evaluator.process(torch.eye(3)[[0, 1, 0, 2]], torch.tensor([0, 1, 2, 2]))
    evaluator.evaluate()
    assert told[0]["correct"] == 3 and told[1] == {
        "missile": {"precision": 50.0, "recall": 100.0},
        "owl": {"precision": 100.0, "recall": 100.0},
        "missile (2)": {"precision": 100.0, "recall": 50.0},
    }
