import math
import multiprocessing
import os
import re
import shutil

import pytest
import torch

from dassl.config import clean_cfg, get_cfg_default
from dassl.utils import Failure, UsageError


def saved(trainer, epoch):
    return torch.load(f"{trainer.output_dir}/linear/model.pth.tar-{epoch}", weights_only=True)


def files(trainer):
    return sorted(os.listdir(f"{trainer.output_dir}/linear"))


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def whole(make, tmp_path):
    """A run that nothing disturbed."""
    trainer = make("OUTPUT_DIR", str(tmp_path / "whole"))
    trainer.train()
    return trainer


def test_two_runs_are_equal_to_the_bit_whatever_the_workers(make, whole):
    trainer = make("DATALOADER.NUM_WORKERS", 2)
    others = multiprocessing.active_children()  # of other tests' runs that failed
    trainer.train()
    assert set(multiprocessing.active_children()) <= set(others)
    assert_same(saved(trainer, 5), saved(whole, 5))
    other = make("SEED", 2, "OUTPUT_DIR", trainer.output_dir + "2")
    other.train()
    assert not torch.equal(
        saved(other, 5)["state_dict"]["2.weight"], saved(whole, 5)["state_dict"]["2.weight"]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_after_ctrl_c_is_equal_to_the_bit(make, whole, workers):
    trainer = make("DATALOADER.NUM_WORKERS", workers)
    trainer.fail_at = (3, 2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train_loader_x.close()
    assert files(trainer) == ["checkpoint", "model.pth.tar-2", "model.pth.tar-3"]
    trainer = make("DATALOADER.NUM_WORKERS", workers)
    trainer.train()
    assert trainer.start_epoch == 3 and trainer.seen[0][0] == (3, 0)
    assert_same(saved(trainer, 5), saved(whole, 5))
    assert files(trainer) == ["checkpoint", "model.pth.tar-5"]


def test_resume_falls_back_over_a_damaged_file(make, whole, capsys):
    trainer = make()
    trainer.fail_at = (3, 0)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    path = f"{trainer.output_dir}/linear/model.pth.tar-3"
    os.truncate(path, os.path.getsize(path) - 100)
    trainer = make()
    trainer.train()
    assert f"{path} is truncated" in capsys.readouterr().out
    assert trainer.start_epoch == 2
    assert_same(saved(trainer, 5), saved(whole, 5))


def test_resume_from_another_folder(make, whole, tmp_path):
    trainer = make()
    trainer.fail_at = (2, 0)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    moved = make("OUTPUT_DIR", str(tmp_path / "moved"), "RESUME", trainer.output_dir)
    moved.train()
    assert_same(saved(moved, 5), saved(whole, 5))
    with pytest.raises(
        Failure, match="There is nothing to resume in /nowhere: it holds no checkpoint of linear"
    ):
        make("RESUME", "/nowhere", "OUTPUT_DIR", str(tmp_path / "new")).train()


def rates_of(out):
    """The rate at the first line of each epoch."""
    return [float(lr) for lr in re.findall(r"batch \[2/4\] .* lr (\S+) eta", out)]


def cosine(lr, epochs, first):
    """The rates from epoch `first` (from 0) on, of a run behind one epoch of warm-up."""
    return [lr * (1 + math.cos(math.pi * (e - 1) / epochs)) / 2 for e in range(first, epochs)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (("OPTIM.MAX_EPOCH", 6), cosine(0.0035, 6, 2)),
        (("OPTIM.MAX_EPOCH", 6, "OPTIM.LR", 0.01), cosine(0.01, 6, 2)),
        (("OPTIM.MAX_EPOCH", 6, "OPTIM.WARMUP_EPOCH", 3), [1e-5, *cosine(0.0035, 6, 1)[:3]]),
        (
            ("OPTIM.MAX_EPOCH", 4, "OPTIM.LR_SCHEDULER", "single_step", "OPTIM.STEPSIZE", (2,)),
            [0.0035, 0.00035],
        ),
    ],
)
def test_more_epochs_and_other_rates_go_on_as_if_from_the_start(
    make, tmp_path, capsys, changes, expected
):
    make("OPTIM.MAX_EPOCH", 2, "OUTPUT_DIR", str(tmp_path / "a")).train()
    capsys.readouterr()
    trainer = make("RESUME", str(tmp_path / "a"), *changes)
    trainer.train()
    assert rates_of(capsys.readouterr().out) == pytest.approx(expected, rel=1e-4)
    # the optimizer's momentum is that of the file
    again = make("RESUME", str(tmp_path / "a"), "OUTPUT_DIR", str(tmp_path / "c"), *changes)
    again.before_train()
    buffers = saved(make("OPTIM.MAX_EPOCH", 2, "OUTPUT_DIR", str(tmp_path / "a")), 2)["optimizer"][
        "state"
    ]
    for p, state in zip(again.model.parameters(), buffers.values(), strict=True):
        assert torch.equal(again.optim.state[p]["momentum_buffer"], state["momentum_buffer"])
    again.close_writer()


@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_a_resumed_run_with_nothing_left_to_do_can_be_tested(make, tmp_path, final):
    first = make("OUTPUT_DIR", str(tmp_path / "a"), "TEST.FINAL_MODEL", final)
    first.train()
    second = make("RESUME", first.output_dir, "TEST.FINAL_MODEL", final)
    second.train()
    assert second.best_result == first.best_result and not second.seen
    shutil.rmtree(first.output_dir)
    tested = make("OUTPUT_DIR", str(tmp_path / "test"))
    tested.load_model(second.output_dir)
    assert_same(dict(tested.model.state_dict()), dict(first.model.state_dict()))
    assert tested.loaded["files"]["linear"][0] == (
        "model-best.pth.tar" if final == "best_val" else "model.pth.tar-5"
    )


def test_a_resumed_run_goes_on_from_its_own_folder(make, whole, tmp_path, capsys):
    make("OPTIM.MAX_EPOCH", 2, "OUTPUT_DIR", str(tmp_path / "a")).train()
    moved = make("RESUME", str(tmp_path / "a"))
    moved.fail_at = (4, 0)
    with pytest.raises(KeyboardInterrupt):
        moved.train()
    again = make("RESUME", str(tmp_path / "a"))
    again.train()
    assert (
        again.start_epoch == 4
        and "has checkpoints of its own, which count" in capsys.readouterr().out
    )
    assert_same(saved(again, 5), saved(whole, 5))


def test_more_epochs_than_wanted(make):
    make().train()
    with pytest.raises(Failure, match="has 5 epochs behind it, more than OPTIM.MAX_EPOCH 4"):
        make("OPTIM.MAX_EPOCH", 4).train()


@pytest.mark.parametrize("name", ["adam", "amsgrad", "rmsprop"])
def test_another_optimizer_cannot_go_on(make, name):
    make("OPTIM.MAX_EPOCH", 2).train()
    with pytest.raises(Failure, match="the state of its optimizer is of another program or config"):
        make("OPTIM.NAME", name).train()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: torch.zeros(3), "it holds a Tensor, not a dict"),
        (lambda c: [c], "it holds a list, not a dict"),
        (lambda c: c | {"state_dict": [1, 2]}, "it has no state_dict, of names and tensors"),
        (
            lambda c: c | {"state_dict": {1: torch.zeros(3)}},
            "it has no state_dict, of names and tensors",
        ),
        (
            lambda c: {k: v for k, v in c.items() if k != "state_dict"},
            "it has no state_dict, of names and tensors",
        ),
        (lambda c: c | {"state_dict": c["state_dict"] | {"2.bias": "word"}}, "2.bias is no tensor"),
        (
            lambda c: c | {"state_dict": c["state_dict"] | {"2.bias": torch.ones(3).int()}},
            "2.bias has type torch.int32",
        ),
        (
            lambda c: c | {"state_dict": c["state_dict"] | {"2.bias": torch.ones(3) * 1j}},
            "2.bias has type torch.complex64",
        ),
        (
            lambda c: (
                c | {"state_dict": c["state_dict"] | {"2.bias": torch.tensor([1, math.nan, 1])}}
            ),
            "is NaN or infinite",
        ),
        (lambda c: c | {"epoch": "last"}, "its epoch is no number"),
        (lambda c: c | {"optimizer": "sgd"}, "the state of its optimizer is of another program"),
        (
            lambda c: c | {"optimizer": c["optimizer"] | {"param_groups": []}},
            "the state of its optimizer is of another program",
        ),
        (lambda c: c | {"scheduler": [1]}, "the state of its scheduler is of another program"),
        (lambda c: c | {"trainer": 7}, "its trainer's state is of another program"),
    ],
)
def test_checkpoints_of_odd_form_are_one_line(make, whole, change, told):
    path = f"{whole.output_dir}/linear/model.pth.tar-5"
    torch.save(change(saved(whole, 5)), path)
    trainer = make("OUTPUT_DIR", whole.output_dir)
    trainer.resume_state = lambda state: state.get("scaler")
    with pytest.raises(Failure) as caught:
        trainer.train()
    assert told in str(caught.value) and "\n" not in str(caught.value)
    if "program" not in told and "epoch" not in told:  # its weights cannot be tested either
        with pytest.raises(Failure, match=told.split(",")[0]):
            trainer.load_model(whole.output_dir)


def test_the_best_model_does_not_say_how_good_it_was(make):
    trainer = make("TEST.FINAL_MODEL", "best_val")
    trainer.train()
    path = f"{trainer.output_dir}/linear/model-best.pth.tar"
    torch.save(saved(trainer, 5) | {"val_result": "good"}, path)
    with pytest.raises(Failure, match=r"model-best.pth.tar does not say how good it was"):
        make("TEST.FINAL_MODEL", "best_val").train()
    os.remove(path)
    make("TEST.FINAL_MODEL", "best_val").before_train()


def test_choosing_on_the_test_set_is_said(make, capsys):
    trainer = make("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 2)
    trainer.val_loader = None
    trainer.train()
    assert capsys.readouterr().out.count("the best model is CHOSEN ON THE TEST SET") == 2
    trainer.test(split="val")
    assert (
        "WARNING: there are no validation images, the test set takes their place\n"
        in capsys.readouterr().out
    )


def test_closing_the_writer_forgets_nothing(make, whole):
    trainer = make()
    trainer.load_model(whole.output_dir)
    loaded = trainer.loaded
    trainer.close_writer()
    assert trainer.loaded is loaded and loaded["folder"] == whole.output_dir


def test_a_tensorboard_folder_that_cannot_be_written(make):
    trainer = make()
    os.makedirs(trainer.output_dir)
    with (
        open(f"{trainer.output_dir}/file", "w"),
        pytest.raises(Failure, match="Cannot write to .*file"),
    ):
        trainer.init_writer(f"{trainer.output_dir}/file")


def test_a_config_as_other_code_builds_it(make, cfg):
    """Without the unlabeled loader's settings and without keys that Dassl has not."""
    del cfg.DATALOADER["TRAIN_U"], cfg.DATALOADER["CACHE_MB"], cfg.DATASET["SUBSAMPLE_CLASSES"]
    for key in ("SOURCE_DOMAINS", "TARGET_DOMAINS"):
        del cfg.DATASET[key]
    for key in ("RRCROP_SCALE", "COLORJITTER_B", "GB_K"):
        del cfg.INPUT[key]
    cfg.INPUT.TRANSFORMS = ("random_flip", "normalize")
    cfg.OPTIM.MAX_EPOCH = cfg.OPTIM.WARMUP_EPOCH = 1
    cfg.VERBOSE = True
    trainer = make()
    trainer.train()
    assert saved(trainer, 1)["epoch"] == 1


def test_one_epoch_of_warm_up_alone_is_trained_as_upstream(make, capsys):
    make("OPTIM.MAX_EPOCH", 1).train()
    out = capsys.readouterr().out
    assert (
        rates_of(out) == [1e-5]
        and "Note: the warm-up of 1 epochs leaves none of 1 to train in" in out
    )


def test_checkpoints_that_stay(make):
    trainer = make("TRAIN.CHECKPOINT_FREQ", 2, "TEST.FINAL_MODEL", "best_val")
    trainer.train()
    kept = [
        "checkpoint",
        "model-best.pth.tar",
        "model.pth.tar-2",
        "model.pth.tar-4",
        "model.pth.tar-5",
    ]
    assert files(trainer) == kept
    last = saved(trainer, 5)
    of_training = ["optimizer", "scheduler", "images"]
    assert {*last} == {"about", "epoch", "state_dict", "val_result", *of_training}
    best = torch.load(f"{trainer.output_dir}/linear/model-best.pth.tar", weights_only=True)
    assert best["val_result"] == trainer.best_result >= last["val_result"]
    assert torch.equal(
        trainer.model[2].weight, best["state_dict"]["2.weight"]
    )  # the best was tested


def test_killed_between_the_last_file_and_the_end(make, monkeypatch):
    """The file of the epoch before is then removed by who goes on."""
    trainer = make()
    remove = trainer._remove_rolling
    monkeypatch.setattr(trainer, "_remove_rolling", lambda: trainer.epoch < 4 and remove())
    trainer.train()
    assert "model.pth.tar-4" in files(trainer)
    make().train()
    assert files(trainer) == ["checkpoint", "model.pth.tar-5"]


def test_the_best_result_is_known_after_resuming(make, tmp_path):
    trainer = make("TEST.FINAL_MODEL", "best_val")
    trainer.fail_at = (4, 0)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    again = make("TEST.FINAL_MODEL", "best_val")
    again.before_train()
    assert again.best_result == trainer.best_result > 0
    again.close_writer()


LINE = (
    r"epoch \[{}/5\] batch \[{}/4\] time \d+\.\d{{3}} \(\d+\.\d{{3}}\) "
    r"data \d+\.\d{{3}} \(\d+\.\d{{3}}\) "
    r"loss \d+\.\d{{4}} \(\d+\.\d{{4}}\) lr {} eta \d+:\d\d:\d\d"
)


def test_what_is_printed(make, capsys):
    make().train()
    captured = capsys.readouterr()
    assert captured.err == ""  # no bar where there is no terminal
    lines = captured.out.splitlines()
    logged = [line for line in lines if line.startswith("epoch")]
    lr = ["1.0000e-05", "3.5000e-03", "3.1658e-03", "2.2908e-03", "1.2092e-03", "3.3422e-04"]
    expected = [LINE.format(e + 1, b, lr[e + (b == 4)]) for e in range(5) for b in (2, 4)]
    assert len(logged) == 10
    for line, pattern in zip(logged, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    end = lines[lines.index("Finish training") :]
    assert end[1:4] == ["Deploy the last-epoch model", "Evaluate on the *test* set", "=> result"]
    assert re.fullmatch(r"Elapsed: \d+:\d\d:\d\d", end[-1])


def test_few_batches_are_all_printed(make, capsys):
    make("TRAIN.PRINT_FREQ", 5, "OPTIM.MAX_EPOCH", 2).train()
    assert sum(line.startswith("epoch") for line in capsys.readouterr().out.splitlines()) == 8


def test_tensorboard(make):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make()
    trainer.train()
    events = EventAccumulator(f"{trainer.output_dir}/tensorboard").Reload()
    assert {"train/loss", "train/lr", "test/accuracy"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 20, 2))


@pytest.mark.parametrize(("print_freq", "seen_at"), [(1, 2), (2, 2), (3, 3), (50, 2)])
def test_nan_loss_stops_the_run_and_saves_nothing(make, print_freq, seen_at):
    trainer = make("TRAIN.PRINT_FREQ", print_freq)
    trainer.nan_at = (2, 1)
    with pytest.raises(Failure) as caught:
        trainer.train()
    line = str(caught.value)
    assert line.startswith(
        f"The loss is NaN or infinite by epoch [3/5] batch [{seen_at}/4]. Choose a lower OPTIM.LR"
    )
    assert files(trainer) == ["checkpoint", "model.pth.tar-1", "model.pth.tar-2"]


def test_nan_weights_are_not_saved(make):
    trainer = make()
    with torch.no_grad():
        trainer.model[2].bias[1] = float("nan")
    with pytest.raises(Failure, match="Epoch 1 left 2.bias NaN or infinite"):
        trainer.save_model(0, trainer.output_dir)
    assert not os.path.exists(trainer.output_dir)


def test_losses_are_read_only_when_printed(make, monkeypatch):
    read, to_float = [], torch.Tensor.__float__

    def counting(tensor):
        read.append(tensor)
        return to_float(tensor)

    trainer = make("TRAIN.PRINT_FREQ", 4, "INPUT.TRANSFORMS", ())
    monkeypatch.setattr(torch.Tensor, "__float__", counting)
    trainer.run_epoch()
    assert (
        len(read) <= 4
    )  # value and average for the line, the average for the check and for tensorboard


def test_detect_anomaly(make):
    trainer = make()
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 1, 4, 20
    trainer.detect_anomaly(torch.tensor(1.0))
    for value in ("nan", "inf"):
        with pytest.raises(Failure, match=r"at epoch \[2/5\] batch \[5/20\]"):
            trainer.detect_anomaly(torch.tensor(float(value)))


def test_no_space_while_training_leaves_a_run_to_resume(make, whole, monkeypatch):
    trainer = make()
    save = torch.save

    def full(state, file):
        if state["epoch"] == 3:
            file.write(b"x" * 100)
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Failure, match=r"Cannot write .*model.pth.tar-3: No space left on device"):
        trainer.train()
    assert files(trainer) == ["checkpoint", "model.pth.tar-1", "model.pth.tar-2"]
    monkeypatch.undo()
    trainer = make()
    trainer.train()
    assert_same(saved(trainer, 5), saved(whole, 5))


def test_an_output_folder_that_cannot_be_made(make, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="Cannot make the folder .*file/out: Not a directory"):
        make("OUTPUT_DIR", str(tmp_path / "file" / "out")).train()


# -- load_model


def test_load_model(make, whole):
    trainer = make()
    trainer.load_model(whole.output_dir, epoch=5)
    assert_same(dict(trainer.model.state_dict()), dict(saved(whole, 5)["state_dict"]))
    trainer.load_model("")  # nothing given, nothing done
    with pytest.raises(Failure) as caught:
        trainer.load_model(whole.output_dir, epoch=3)
    folder = f"{whole.output_dir}/linear"
    told = (
        f"No model at {folder}/model.pth.tar-3. The folder holds model.pth.tar-5 (--load-epoch 5)"
    )
    assert str(caught.value) == told
    with pytest.raises(Failure, match="No model in .*nowhere/linear: train it first"):
        trainer.load_model(f"{whole.output_dir}/nowhere")


def test_load_model_without_an_epoch_takes_the_best_else_the_newest(make, whole):
    trainer = make()
    trainer.load_model(whole.output_dir)
    assert_same(dict(trainer.model.state_dict()), dict(saved(whole, 5)["state_dict"]))
    best = saved(whole, 5)
    best["state_dict"]["2.bias"] += 1
    torch.save(best, f"{whole.output_dir}/linear/model-best.pth.tar")
    trainer.load_model(whole.output_dir)
    assert_same(dict(trainer.model.state_dict()), dict(best["state_dict"]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda s: s.update({"2.weight": torch.zeros(3, 9)}),
            "2.weight has shape (3, 9) in the file, (3, 192) in",
        ),
        (lambda s: s.pop("2.bias"), "it lacks 2.bias, shape (3,)"),
        (lambda s: s.update(deep=torch.zeros(2, 4)), "the model has no deep, shape (2, 4)"),
    ],
)
def test_a_checkpoint_that_does_not_fit(make, whole, change, told):
    checkpoint = saved(whole, 5)
    change(checkpoint["state_dict"])
    path = f"{whole.output_dir}/linear/model.pth.tar-5"
    torch.save(checkpoint, path)
    trainer = make()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(Failure) as caught:
        trainer.load_model(whole.output_dir, epoch=5)
    assert str(caught.value).startswith(
        f"{path} is of another method, architecture or config: {told}"
    )
    assert_same(before, dict(trainer.model.state_dict()))


def test_upstreams_extra_keys_and_dtypes(make, whole):
    checkpoint = saved(whole, 5)
    weights = checkpoint["state_dict"]
    expected = {k: v.clone() for k, v in weights.items()}
    weights.update({k: v.half() for k, v in weights.items()})
    weights["prompt_learner.token_prefix"] = weights["token_suffix"] = torch.zeros(7)
    weights["frozen.weight"] = torch.zeros(3)
    torch.save(checkpoint, f"{whole.output_dir}/linear/model.pth.tar-5")
    trainer = make()
    with pytest.raises(Failure, match="the model has no .*token_"):
        trainer.load_model(whole.output_dir, epoch=5)
    trainer.derived_buffers = ("token_prefix", "token_suffix")
    trainer.clean_state_dict = lambda name, s: {
        k: v for k, v in s.items() if not k.startswith("frozen.")
    }
    trainer.load_model(whole.output_dir, epoch=5)
    for key, value in trainer.model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[key], atol=1e-3, rtol=1e-3)


def test_a_trainer_may_save_only_what_it_learns(make):
    trainer = make("OPTIM.MAX_EPOCH", 2)
    trainer.weights_to_save = lambda name: {"2.bias": trainer.model[2].bias.detach()}
    trainer.train()
    assert list(saved(trainer, 2)["state_dict"]) == ["2.bias"]
    trainer.load_model(trainer.output_dir, epoch=2)


def test_resuming_with_anothers_scheduler_is_refused(make):
    trainer = make()
    trainer.fail_at = (2, 0)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    checkpoint = saved(trainer, 2)
    checkpoint["scheduler"]["successor"] = torch.zeros(1)
    torch.save(checkpoint, f"{trainer.output_dir}/linear/model.pth.tar-2")
    with pytest.raises(
        Failure, match="Training cannot go on from .* the state of its scheduler is of another"
    ):
        make().train()


# -- the rest


def test_unknown_names(make):
    for key, value in (
        ("TRAINER.NAME", "Liner"),
        ("DATASET.NAME", "Noize"),
        ("TEST.EVALUATOR", "Classificaton"),
        ("TEST.FINAL_MODEL", "best"),
        ("TEST.SPLIT", "tset"),
    ):
        with pytest.raises(UsageError, match=f'"{value}": did you mean'):
            make(key, value)


def test_negative_seed_is_drawn_and_told(make, capsys):
    trainer = make("SEED", -1)
    assert trainer.seed >= 0 and f"drew {trainer.seed}" in capsys.readouterr().out


def test_modes_and_names(make):
    trainer = make()
    trainer.set_model_mode("eval")
    assert not trainer.model.training
    trainer.set_model_mode("train", "linear")
    assert trainer.model.training
    assert trainer.get_model_names() == trainer.get_model_names("linear") == ["linear"]
    with pytest.raises(UsageError):
        trainer.set_model_mode("evaluate")


@pytest.mark.parametrize(("count", "batches"), [("train_x", 4), ("train_u", 3), ("smaller_one", 3)])
def test_trainer_xu(make, count, batches):
    trainer = make("TRAINER.NAME", "LinearXU", "TRAIN.COUNT_ITER", count, "OPTIM.MAX_EPOCH", 2)
    trainer.train()
    assert trainer.num_batches == batches and len(trainer.seen) == 2 * batches
    assert [tensor.shape for tensor in trainer.seen[0]] == [(4, 3, 8, 8), (4,), (4, 3, 8, 8)]
    images_u = [tensors[2] for tensors in trainer.seen]
    assert not any(
        torch.equal(images_u[0], other) for other in images_u[1:]
    )  # each pass draws anew


def test_config():
    cfg = get_cfg_default()
    cfg.OPTIM.LR = 7.0
    assert get_cfg_default().OPTIM.LR == 0.0003
    assert (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.TEST.FINAL_MODEL) == ("all", "last_step")
    for node in ("COOP", "MAPLE"):
        cfg.TRAINER[node] = type(cfg)()
    clean_cfg(cfg, "CoOp")
    assert sorted(cfg.TRAINER) == ["COOP", "NAME"]


def test_the_log_says_which_device_computes(make, capsys):
    make("VERBOSE", True)
    out = capsys.readouterr().out
    assert re.search(r"^Device: cpu \(.+, 1 thread\)$", out, re.MULTILINE) and "CUDA" not in out


def test_logged_times_wait_for_the_device(make, monkeypatch, capsys):
    """Seconds per batch since the last line, and the epoch's so far; an epoch has 4 batches, a line
    comes every 2.

    Only the device moves the clock: by 8 seconds in the first wait, by 2 in the second.
    """
    waits, clock = [8.0, 2.0] * 5, [0.0]
    trainer = make()
    trainer.train_loader_x = list(trainer.train_loader_x)

    def synchronize(device):
        clock[0] += waits.pop(0)

    monkeypatch.setattr("dassl.engine.trainer.time.time", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    trainer.parse_batch_train = lambda batch: (batch["img"], batch["label"], batch["domain"])
    trainer.device = torch.device("cuda")
    monkeypatch.setattr("dassl.engine.trainer.device_name", str)
    trainer.max_epoch, trainer.epoch = 1, 0
    trainer.run_epoch()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    times = [re.search(r"time (\S+) \((\S+)\)", line).groups() for line in lines]
    assert times == [("4.000", "4.000"), ("1.000", "2.500")]
    assert [line.rpartition("eta ")[2] for line in lines] == ["0:00:08", "0:00:00"]
