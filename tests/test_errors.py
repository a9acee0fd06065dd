"""What a user can cause ends in one clear line and the right exit code, and loses nothing that was
saved.

Whole runs; what has no run of its own here is tested beside its code (weights in tests/clip, data
in tests/datasets).
"""

import errno
import fcntl
import importlib.util
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from dassl.utils import checkpoint, tools
from results.logs import newest_result, read_log
from tests.forked import forked
from tests.runs import HANG, REPO, arguments, run, wait_for
from trainers.base import CLIPTrainer

EPOCHS = ("OPTIM.MAX_EPOCH", "2")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """The output folder of a P2C run of two epochs."""
    out = tmp_path_factory.mktemp("trained")
    assert run("P2C", data, out, *EPOCHS) == 0
    return out


def model(out: Path, epoch: int = 2) -> Path:
    return out / "MultiModalPromptLearner" / f"model.pth.tar-{epoch}"


def the_line(capsys) -> str:
    """The one line on stderr."""
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_an_unknown_flag_is_one_line(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run("P2C", data, tmp_path, flags=("--sede=1",))
    assert caught.value.code == 2 and "--sede=1" in the_line(capsys)


def test_ctrl_c_during_the_imports():
    """Torch takes seconds to import, and is in memory from the first of them on."""
    process = subprocess.Popen(
        [sys.executable, "train.py"], cwd=REPO, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), pause=0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=HANG)[1] == "" and process.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("flags", "opts", "line"),
    [
        (("--trainer", "P2D"), (), 'Unknown trainer "P2D": did you mean P2C?'),
        (("--dataset-config-file", "eurosat"), (), "no config file eurosat"),
        ((), ("DATASET.NAME", "Shape"), 'Unknown dataset "Shape": did you mean Shapes?'),
        (
            (),
            ("DATASET.SUBSAMPLE_CLASSES", "nwe"),
            'Unknown DATASET.SUBSAMPLE_CLASSES "nwe": did you mean new?',
        ),
        ((), ("OPTIM.MAX_EPOCH", "1"), "the warm-up leaves no epoch to train in"),
        ((), ("OPTIM.NAME", "sdg"), 'Unknown optimizer "sdg": did you mean sgd?'),
        ((), ("TRAINER.P2C.CTX_INIT", "a"), "CTX_INIT 'a' has 1 tokens, fewer than N_CTX 2"),
        ((), ("TRAINER.P2C",), "config keys and values come in pairs"),
        # a script's own pairs follow the user's
        ((), ("TRAINER.P2C.N_CTX", "DATASET.NUM_SHOTS", "1"), "but TRAINER.P2C.N_CTX has no value"),
        (
            ("--seed=1", "--resume", "/nowhere/at/all"),
            (),
            "There is nothing to resume in /nowhere/at/all",
        ),
    ],
)
def test_wrong_names_and_values(flags, opts, line, data, tmp_path, capsys):
    code = run("P2C", data, tmp_path, *opts, flags=flags)
    assert line in the_line(capsys)
    assert code == (1 if "resume" in str(flags) else 2)


@pytest.mark.parametrize(
    ("key", "values", "allowed"),
    [
        ("OPTIM.MAX_EPOCH", ("0", "-1"), "1 or more"),
        ("TRAIN.PRINT_FREQ", ("0",), "1 or more"),
        ("DATALOADER.K_TRANSFORMS", ("0",), "1 or more"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", ("0", "-2"), "1 or more"),
        ("DATALOADER.TEST.BATCH_SIZE", ("0",), "1 or more"),
        ("DATALOADER.TRAIN_X.N_INS", ("0",), "1 or more"),
        ("DATALOADER.NUM_WORKERS", ("-1",), "0 or more"),
        ("OPTIM.LR", ("-0.1",), "0 or more"),
        ("OPTIM.MOMENTUM", ("-1.0",), "0 or more"),
        ("OPTIM.WEIGHT_DECAY", ("-1.0",), "0 or more"),
        ("OPTIM.ADAM_BETA1", ("1.5", "1.0", "-0.1"), "0 or more and below 1"),
        ("DATASET.NUM_SHOTS", ("0", "-2"), "1 or more, or -1 for all images"),
        (
            "INPUT.SIZE",
            ("(32,)", "(32,0)", "(32.0,32.0)", "('a','b')", "None"),
            "height and width in pixels",
        ),
        ("INPUT.PIXEL_MEAN", ("[0.5]",), "three numbers"),
        ("INPUT.PIXEL_STD", ("[0.0,0.0,0.0]", "[0.2,0.2]", "['a',1,1]"), "three numbers above 0"),
        ("TRAINER.COOP.CTX_INIT", ("5",), "words, True or False"),
        ("OPTIM.MOMENTUM", ("1.0", "5.0"), "below 1"),
        ("OPTIM.RMSPROP_ALPHA", ("1.0",), "below 1"),
        ("OPTIM.WARMUP_CONS_LR", ("-1.0",), "0 or more"),
    ],
)
def test_a_value_that_no_run_can_have(key, values, allowed, data, tmp_path, capsys):
    for value in values:
        assert run("CoOp_ATP", data, tmp_path, key, value) == 2
        assert re.fullmatch(rf"error: {key} .*: must be {allowed}\n", the_line(capsys)), value


def test_the_least_values_that_a_run_can_have(data, tmp_path):
    least = """
        DATALOADER.TRAIN_X.BATCH_SIZE 1 DATALOADER.TEST.BATCH_SIZE 1 DATALOADER.NUM_WORKERS 0
        DATALOADER.CACHE_MB 0 DATASET.NUM_SHOTS 1 TRAIN.PRINT_FREQ 1 OPTIM.MAX_EPOCH 2
        OPTIM.LR 0.0 OPTIM.MOMENTUM 0.0 OPTIM.WEIGHT_DECAY 0.0
    """
    assert run("CoOp", data, tmp_path, *least.split()) == 0


@pytest.mark.parametrize("trainer", ["CoOp_ATP", "CoCoOp_ATP", "MaPLe_ATP", "P2C"])
@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (("N_ATT1", "-1"), "N_ATT1 -1: must be 0 or more"),
        (("N_ATT3", "-1"), "N_ATT3 -1: must be 0 or more"),  # not in use, but in the file
        (
            ("ATT_NUM", "1", "ATT1_TEXT", ""),
            "ATT_NUM 1: give ATT_NUM 1 to 3 and that many of ATT1_TEXT",
        ),
        (
            ("ATT_NUM", "2", "ATT1_TEXT", "fur", "ATT2_TEXT", " "),
            "ATT_NUM 2: give ATT_NUM 1 to 3 and that many",
        ),
        (("ATT_NUM", "-1"), "ATT_NUM -1: give ATT_NUM 1 to 3"),
        (("DATASET", "Owls"), "ATT_NUM 0: Owls has no attributes here; give ATT_NUM 1 to 3"),
    ],
)
def test_attributes_that_cannot_be(trainer, opts, line, data, tmp_path, capsys):
    pairs = zip(opts[::2], opts[1::2], strict=True)
    opts = [word for key, value in pairs for word in (f"TRAINER.ATPROMPT.{key}", value)]
    assert run(trainer, data, tmp_path, *opts) == 2
    assert the_line(capsys).startswith(f"error: TRAINER.ATPROMPT.{line}")


@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (
            ("DATASET.NUM_SHOTS 4", "DATASET.NUM_SHOTS 16"),
            "as 4 and as 16; the scripts take it from SHOTS",
        ),
        (("OPTIM.LR 0.1", "OPTIM.LR 0.2"), "OPTIM.LR is given twice, as 0.1 and as 0.2"),
        (("SEED 7",), "SEED is given twice, by --seed and as 7"),
        (("OUTPUT_DIR elsewhere",), "OUTPUT_DIR is given twice, by --output-dir and as elsewhere"),
    ],
)
def test_a_key_given_twice(opts, line, data, tmp_path, capsys):
    assert run("P2C", data, tmp_path, *" ".join(opts).split(), flags=("--seed", "1")) == 2
    assert the_line(capsys).endswith(f"{line}\n")


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Whoever comes to reading data or weights fails."""

    def read(*args, **kwargs):
        raise AssertionError("it was read")

    monkeypatch.setattr("dassl.data.data_manager.build_dataset", read)
    monkeypatch.setattr("trainers.frozen_clip.read_state_dict", read)


@pytest.mark.parametrize(
    ("trainer", "flags", "opts", "line"),
    [
        ("P2C", (), ("OPTIM.MAX_EPOCH", "1"), "the warm-up leaves no epoch to train in"),
        ("P2C", (), ("OPTIM.NAME", "sdg"), 'Unknown optimizer "sdg": did you mean sgd?'),
        ("P2C", (), ("OPTIM.LR_SCHEDULER", "cos"), 'Unknown learning rate scheduler "cos"'),
        (
            "P2C",
            (),
            ("OPTIM.LR_SCHEDULER", "single_step", "OPTIM.STEPSIZE", "()"),
            "must be a list of epochs",
        ),
        ("P2C", (), ("OPTIM.WARMUP_TYPE", "const"), 'Unknown OPTIM.WARMUP_TYPE "const"'),
        ("P2C", (), ("TEST.SPLIT", "tset"), 'Unknown TEST.SPLIT "tset"'),
        ("P2C", (), ("INPUT.TRANSFORMS", "('flip',)"), 'Unknown transform "flip"'),
        (
            "P2C",
            (),
            ("TRAINER.P2C.PREC", "fp8"),
            "PREC 'fp8': choose from fp32, tf32, fp16, bf16, amp",
        ),
        ("P2C", (), ("MODEL.BACKBONE.NAME", "ViT-B/17"), "unknown CLIP model 'ViT-B/17'"),
        (
            "PromptSRC",
            (),
            ("TRAINER.ATPROMPT.USE_ATPROMPT", "True"),
            "PromptSRC has no place for attributes",
        ),
        ("P2C", ("--head", "mlp"), (), "MODEL.HEAD.NAME mlp (--head): has no effect"),
        ("ZeroshotCLIP", ("--head", "mlp"), (), "MODEL.HEAD.NAME mlp (--head): has no effect"),
        ("ZeroshotCLIP", (), ("MODEL.BACKBONE.NAME", "ViT-B/17"), "unknown CLIP model 'ViT-B/17'"),
        ("P2C", ("--load-epoch", "2"), (), "--load-epoch has no effect without --eval-only"),
        ("P2C", ("--load-epoch", "0"), (), "--load-epoch has no effect without --eval-only"),
        ("P2C", ("--model-dir", "x"), (), "--model-dir has no effect without --eval-only"),
        (
            "P2C",
            ("--eval-only", "--model-dir", "x", "--no-train"),
            (),
            "--no-train has no effect with --eval-only",
        ),
        (
            "P2C",
            ("--eval-only", "--model-dir", "x", "--resume", "y"),
            (),
            "--resume has no effect with --eval-only",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(
    trainer, flags, opts, line, nothing_is_read, data, tmp_path, capsys
):
    assert run(trainer, data, tmp_path, *opts, flags=flags) == 2
    assert line in the_line(capsys)


@pytest.mark.parametrize(
    ("flags", "opts", "line"),
    [
        (
            ("--source-domains", "day", "--seed", "1"),
            (),
            "DATASET.SOURCE_DOMAINS ('day',): has no effect on Shapes",
        ),
        (
            ("--target-domains", "day", "--seed", "1"),
            (),
            "DATASET.TARGET_DOMAINS ('day',): has no effect on Shapes",
        ),
        ((), ("DATASET.NUM_LABELED", "4"), "DATASET.NUM_LABELED 4: has no effect on Shapes"),
    ],
)
def test_keys_without_effect_on_the_benchmarks(flags, opts, line, data, tmp_path, capsys):
    assert run("P2C", data, tmp_path, *opts, flags=flags) == 2
    assert line in the_line(capsys)


@pytest.mark.parametrize("name", ["evil.py", "evil.yaml", "evil"])
def test_a_config_is_text_and_runs_nothing(name, data, tmp_path, capsys):
    (tmp_path / name).write_text(
        f"import os\nos.mkdir({str(tmp_path / 'owned')!r})\ncfg = {{'SEED': 3}}\n"
    )
    assert run("P2C", data, tmp_path / "out", flags=("--config-file", str(tmp_path / name))) == 2
    assert name in the_line(capsys) and not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("OPTIM:\n  LR: 0.1\n  LR: 0.2\n", "own.yaml: LR: is there twice"),
        ("OPTIM:\n  LR: 0.1\nSEED: 1\nOPTIM:\n  MAX_EPOCH: 5\n", "own.yaml: OPTIM: is there twice"),
        ("just words", "own.yaml: it holds no keys with values"),
        ("[" * 5000, "own.yaml: it is nested too deep"),
        ("a: !!python/object/apply:os.getcwd []", "own.yaml: could not determine a constructor"),
        ("\udcff", "own.yaml: "),
    ],
)
def test_config_files_that_are_none(text, line, data, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(text, errors="surrogateescape")
    assert (
        run("P2C", data, tmp_path / "out", flags=("--config-file", str(tmp_path / "own.yaml"))) == 2
    )
    assert line in the_line(capsys)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"words", b"OPTIM: [", b"SEED: 1\nSEED: 1\n"])
def test_a_damaged_record_of_the_config(content, data, tmp_path, capsys):
    (tmp_path / "config.yaml").write_bytes(content)
    assert run("P2C", data, tmp_path) == 2
    line = the_line(capsys)
    assert (
        f"{tmp_path}/config.yaml: " in line and "get it back, or remove it if you are sure" in line
    )


@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (
            ("TRAINER.P2C.N_CTX", "4"),
            "cannot be continued with another TRAINER.P2C.N_CTX (2; now 4)",
        ),
        (("SEED", "2"), "cannot be continued with another SEED (1; now 2)"),
        (("OPTIM.NAME", "adam"), "cannot be continued with another OPTIM.NAME (sgd; now adam)"),
        (
            ("DATASET.NUM_SHOTS", "2"),
            "cannot be continued with another DATASET.NUM_SHOTS (1; now 2)",
        ),
    ],
)
def test_what_cannot_be_continued(trained, opts, line, nothing_is_read, data, tmp_path, capsys):
    assert run("P2C", data, tmp_path, *EPOCHS, *opts, flags=("--resume", str(trained))) == 2
    assert line in the_line(capsys)


def test_more_epochs_at_another_rate_in_another_folder(data, trained, tmp_path):
    flags = ("--resume", str(trained))
    opts = ("OPTIM.MAX_EPOCH", "3", "OPTIM.LR", "0.01", "TRAINER.P2C.PREC", "fp32")
    assert run("P2C", data, tmp_path, *opts, flags=flags) == 0
    log = (tmp_path / "log.txt").read_text()
    assert re.findall(r"\[(\d/\d)\] batch \[2/4\] .* lr (\S+) eta", log) == [
        ("3/3", "7.5000e-03")
    ]  # .01 (1 + cos 60°)/2
    assert (
        json.loads((tmp_path / "results.json").read_text())["loss"][:2]
        == json.loads((trained / "results.json").read_text())["loss"]
    )


def test_promptsrc_cannot_average_over_another_number_of_epochs(data, tmp_path, capsys):
    assert run("PromptSRC", data, tmp_path / "a", *EPOCHS) == 0
    flags = ("--resume", str(tmp_path / "a"))
    assert run("PromptSRC", data, tmp_path / "b", "OPTIM.MAX_EPOCH", "3", flags=flags) == 2
    assert "the weights of the average are those of 2 epochs" in the_line(capsys)


def test_weights_that_are_nan_are_not_tested(data, trained, tmp_path, capsys):
    state = torch.load(model(trained), weights_only=True)
    state["state_dict"]["prompt_learner.ctx"][0, 0] = float("nan")
    model(tmp_path / "a").parent.mkdir(parents=True)
    torch.save(state, model(tmp_path / "a"))
    assert (
        run("P2C", data, tmp_path / "b", flags=("--eval-only", "--model-dir", str(tmp_path / "a")))
        == 1
    )
    assert "prompt_learner.ctx in" in (line := the_line(capsys)) and "is NaN or infinite" in line


def test_scores_that_are_nan_are_no_result(data, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        CLIPTrainer,
        "model_inference",
        lambda self, image: torch.full((len(image), 16), torch.nan),
    )
    assert (
        run("P2C", data, tmp_path, *EPOCHS, flags=("--eval-only", "--model-dir", str(trained))) == 1
    )
    assert (
        "The scores of 64 images are NaN" in the_line(capsys)
        and not (tmp_path / "results.json").exists()
    )


def test_a_second_run_in_the_same_folder(data, tmp_path, capsys):
    """It ends with one line, writes nothing, and starts when the first is gone, however it went."""
    begun, go_on = multiprocessing.Event(), multiprocessing.Event()

    def first():
        forward_backward = CLIPTrainer.forward_backward

        def waiting(self, batch):
            begun.set()
            go_on.wait()
            return forward_backward(self, batch)

        CLIPTrainer.forward_backward = waiting
        run("P2C", data, tmp_path, *EPOCHS, "DATALOADER.NUM_WORKERS", "1")

    process = multiprocessing.get_context("fork").Process(target=first)
    process.start()
    try:
        begun.wait()
        before = sorted(tmp_path.rglob("*"))
        assert run("P2C", data, tmp_path, *EPOCHS) == 1
        line = the_line(capsys)
        assert f"Another run is at work in {tmp_path} (it holds {tmp_path}/.lock)" in line
        assert sorted(tmp_path.rglob("*")) == before
    finally:
        process.kill()
        process.join()
    assert run("P2C", data, tmp_path, *EPOCHS) == 0


def test_a_lock_handed_over_is_held_already(data, tmp_path):
    """As runs/pool.py does it: the run has its file open."""
    lock = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, b"its command")
    assert run("ZeroshotCLIP", data, tmp_path) == 0
    os.close(lock)
    assert (tmp_path / ".lock").read_bytes() == b"its command"
    assert run("ZeroshotCLIP", data, tmp_path) == 0


def test_a_lock_that_is_a_folder(data, tmp_path, capsys):
    (tmp_path / ".lock").mkdir()
    assert run("ZeroshotCLIP", data, tmp_path) == 1
    assert f"Cannot write {tmp_path}/.lock: Is a directory" in the_line(capsys)


def test_a_run_cut_before_its_record_is_not_finished(data, tmp_path, monkeypatch):
    """The record comes first: a log that has a result is never without."""

    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("dassl.engine.record.write_json", cut)
    assert run("ZeroshotCLIP", data, tmp_path) == 130
    assert read_log(tmp_path / "log.txt") is None
    monkeypatch.undo()
    assert run("ZeroshotCLIP", data, tmp_path) == 0
    assert (
        newest_result(tmp_path, "accuracy", eval_only=True) and (tmp_path / "results.json").exists()
    )


@pytest.mark.parametrize("workers", ["0", "2"])
def test_no_memory_left_in_the_machine(workers, data, tmp_path, capsys, monkeypatch):
    def read(self, idx):
        torch.empty(2**60)

    monkeypatch.setattr("dassl.data.data_manager.DatasetWrapper._read", read)
    assert run("P2C", data, tmp_path, "DATALOADER.NUM_WORKERS", workers) == 1
    assert "the memory is full" in the_line(capsys)


def test_a_worker_that_is_killed(data, tmp_path, capsys, monkeypatch):
    def read(self, idx):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("dassl.data.data_manager.DatasetWrapper._read", read)
    assert run("P2C", data, tmp_path, "DATALOADER.NUM_WORKERS", "1") == 1
    assert (
        "a process that reads images was killed" in (line := the_line(capsys))
        and "NUM_WORKERS" in line
    )


def test_no_space_for_anything(data, trained, tmp_path, capfd):
    """Whatever is being written when the disk is full (log, tensorboard, checkpoint, record): one
    line, and what had been saved goes on."""

    def full(out, size, stderr):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = open(os.devnull, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        return run("P2C", data, out, *EPOCHS)

    largest = max(path.stat().st_size for path in trained.rglob("*") if path.is_file())
    for size in [0, 10, 100, 1000, 3000, 6000, largest // 2, largest - 1]:
        out = tmp_path / f"{size}"
        ours, its = os.pipe()  # a file would be full too
        assert forked(lambda here=(out, size, its): full(*here), tmp_path / "said").code == 1, size
        os.close(its)
        with open(ours) as stderr:
            lines = stderr.read().splitlines()
        assert (
            len(lines) == 1 and "File too large" in lines[0] and lines[0].startswith("error: ")
        ), lines
        assert not list(out.rglob("*.tmp"))
    assert run("P2C", data, out, *EPOCHS) == 0
    whole = (torch.load(model(o), weights_only=True)["state_dict"] for o in (trained, out))
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in whole), strict=True))


def test_no_space_to_draw_the_bundled_benchmark(tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("datasets.shapes.save_png", full)
    assert run("ZeroshotCLIP", tmp_path / "data", tmp_path / "out") == 1
    line = the_line(capsys)
    assert f"Cannot draw Shapes into {tmp_path}/data/shapes/images: No space left on device" in line


@pytest.mark.parametrize("module", ["dassl/utils/lock.py", "runs/pool.py"])
def test_other_systems_are_one_line(module, monkeypatch):
    """Without fcntl, as on Windows."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    name = module.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, REPO / module)
    with pytest.raises(
        SystemExit, match="^error: this runs on Linux and macOS; on Windows use WSL$"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_key_given_twice_with_one_value(data, tmp_path):
    twice = "OPTIM.LR 0.10 SEED 1 INPUT.TRANSFORMS ['normalize'] OPTIM.LR 0.1".split()
    args = arguments(
        "P2C", data, tmp_path, *twice, flags=("--transforms", "normalize", "--seed", "1")
    )
    assert train.setup_cfg(train.parse_args(args)).OPTIM.LR == 0.1


def test_a_number_where_text_is_wanted_is_text(data):
    args = arguments(
        "P2C", data, Path("2024"), "DATASET.FOLDER", "1e3", "TRAINER.ATPROMPT.ATT1_TEXT", "True"
    )
    cfg = train.setup_cfg(train.parse_args(args))
    assert (cfg.OUTPUT_DIR, cfg.DATASET.FOLDER, cfg.TRAINER.ATPROMPT.ATT1_TEXT) == (
        "2024",
        "1e3",
        "True",
    )


def test_no_memory_left(data, tmp_path, capsys, monkeypatch):
    """In the second epoch, and then in the test; what lowers the test's need is no other run."""
    forward_backward, inference = CLIPTrainer.forward_backward, CLIPTrainer.model_inference

    def full(self, batch):
        if self.epoch == 1:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …"
            )
        return forward_backward(self, batch)

    def full_too(self, image):
        if len(image) > 8:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …"
            )
        return inference(self, image)

    monkeypatch.setattr(CLIPTrainer, "forward_backward", full)
    assert run("P2C", data, tmp_path, *EPOCHS) == 1
    line = the_line(capsys)
    assert (
        "memory is full" in line
        and "DATALOADER.TRAIN_X.BATCH_SIZE" in line
        and model(tmp_path, 1).exists()
    )
    monkeypatch.setattr(CLIPTrainer, "forward_backward", forward_backward)
    monkeypatch.setattr(CLIPTrainer, "model_inference", full_too)
    assert run("P2C", data, tmp_path, *EPOCHS) == 1
    assert "DATALOADER.TEST.BATCH_SIZE" in the_line(capsys) and model(tmp_path).exists()
    assert run("P2C", data, tmp_path, *EPOCHS, "DATALOADER.TEST.BATCH_SIZE", "8") == 0
    assert "* accuracy:" in capsys.readouterr().out


def test_no_data_folder(tmp_path, capsys):
    flags = ("--dataset-config-file", f"{REPO}/configs/datasets/eurosat.yaml")
    assert run("P2C", tmp_path / "nowhere", tmp_path / "out", flags=flags) == 1
    line = the_line(capsys)
    assert str(tmp_path / "nowhere" / "eurosat") in line and "`shapes` needs no data" in line


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_image_is_named(data, tmp_path, capsys, workers, size):
    shutil.copytree(data, tmp_path / "data")
    for image in (tmp_path / "data" / "shapes" / "images").rglob("0000.png"):
        os.truncate(image, size)
    assert run("P2C", tmp_path / "data", tmp_path / "out", "DATALOADER.NUM_WORKERS", workers) == 1
    line = the_line(capsys)
    assert "Cannot read the image" in line and "0000.png" in line and "Replace or remove it" in line


def test_a_truncated_checkpoint(data, trained, tmp_path, capsys):
    """Testing it is refused; a run goes on from the whole one before."""
    out = tmp_path / "out"
    assert run("P2C", data, out, *EPOCHS, "TRAIN.CHECKPOINT_FREQ", "1") == 0
    os.truncate(model(out), 1000)
    flags = ("--eval-only", "--model-dir", str(out))
    capsys.readouterr()
    assert run("P2C", data, tmp_path / "test", *EPOCHS, flags=flags) == 1
    assert f"{model(out)} is truncated" in the_line(capsys)
    assert run("P2C", data, out, *EPOCHS, "TRAIN.CHECKPOINT_FREQ", "1") == 0
    assert (
        f"{model(out)} is truncated, damaged or no checkpoint: going back"
        in capsys.readouterr().out
    )
    whole = (torch.load(model(o), weights_only=True)["state_dict"] for o in (trained, out))
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in whole), strict=True))


def test_a_checkpoint_that_is_another_methods_or_clips(data, trained, tmp_path, capsys):
    flags = ("--eval-only", "--model-dir", str(trained))
    assert run("MaPLe", data, tmp_path / "a", flags=flags) == 1
    assert "is of another method, architecture or config: " in the_line(capsys)
    state = torch.load(model(trained), weights_only=True)
    state["state_dict"] = {k: torch.cat([v, v], dim=-1) for k, v in state["state_dict"].items()}
    model(tmp_path / "wide").parent.mkdir(parents=True)
    torch.save(state, model(tmp_path / "wide"))
    assert (
        run(
            "P2C",
            data,
            tmp_path / "b",
            flags=("--eval-only", "--model-dir", str(tmp_path / "wide")),
        )
        == 1
    )
    assert "prompt_learner.ctx has shape (2, 256) in the file, (2, 128) in the model" in the_line(
        capsys
    )


def test_a_checkpoint_that_would_run_code(data, trained, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    model(tmp_path / "evil").parent.mkdir(parents=True)
    torch.save({"state_dict": Evil()}, model(tmp_path / "evil"))
    assert (
        run(
            "P2C",
            data,
            tmp_path / "out",
            flags=("--eval-only", "--model-dir", str(tmp_path / "evil")),
        )
        == 1
    )
    assert "mkdir" in the_line(capsys) and not (tmp_path / "owned").exists()


def test_no_space_while_saving(data, trained, tmp_path, capsys, monkeypatch):
    """The second epoch's checkpoint does not fit: the first one stays, and the run goes on from
    there."""
    save, calls = torch.save, []

    def full(state, file):
        calls.append(state["epoch"])
        if len(calls) == 2:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, file)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    assert run("P2C", data, tmp_path, *EPOCHS) == 1
    line = the_line(capsys)
    assert "No space left on device" in line and str(model(tmp_path)) in line
    assert sorted(p.name for p in model(tmp_path).parent.iterdir()) == [
        "checkpoint",
        "model.pth.tar-1",
    ]
    assert run("P2C", data, tmp_path, *EPOCHS) == 0
    a, b = (torch.load(model(o), weights_only=True)["state_dict"] for o in (trained, tmp_path))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_output_folder_that_cannot_be_written(data, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    assert run("P2C", data, tmp_path / "file" / "out") == 1
    assert str(tmp_path / "file" / "out") in the_line(capsys)

    def read_only(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(
        tools.os, "makedirs", read_only
    )  # tests may run as root, who can write everywhere
    assert run("P2C", data, tmp_path / "out") == 1
    assert "Permission denied" in the_line(capsys)


def test_weights_that_cannot_be_had(data, tmp_path, capsys, monkeypatch):
    """Offline with nothing in the cache; a file in the cache that is another than its SHA-256 says
    is not taken."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLIP_MIRROR", "http://127.0.0.1:9/nobody")  # refused at once
    opts = ("INPUT.SIZE", "(224,224)")
    assert run("P2C", data, tmp_path / "out", *opts, flags=("--backbone", "ViT-B/16")) == 1
    line = the_line(capsys)
    cached = tmp_path / ".cache" / "clip" / "ViT-B-16.pt"
    assert "cannot download http://127.0.0.1:9" in line and f"put the file at {cached}" in line
    cached.write_bytes(b"another file")
    assert run("P2C", data, tmp_path / "out", *opts, flags=("--backbone", "ViT-B/16")) == 1
    assert "the file there is another, its SHA-256 is wrong" in the_line(capsys)
    assert cached.read_bytes() == b"another file"


def test_a_context_or_class_name_too_long(data, tmp_path, capsys):
    assert run("P2C", data, tmp_path, "TRAINER.P2C.N_CTX", "70") == 2
    line = the_line(capsys)
    assert (
        "and CLIP reads 77: shorten the name, or the context" in line
        and "the prompt of class '" in line
    )


def test_labels_and_names_that_do_not_fit(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    split = tmp_path / "data" / "shapes" / "split_zhou_Shapes.json"
    content = json.loads(split.read_text())
    content["test"][0][2] = "solid pink elephant"
    split.write_text(json.dumps(content))
    assert run("P2C", tmp_path / "data", tmp_path / "out") == 1
    assert "label/class-name mismatch" in the_line(capsys)
    (tmp_path / "data" / "shapes" / "images" / content["train"][0][0]).unlink()
    assert run("P2C", tmp_path / "data", tmp_path / "out") == 1
    assert content["train"][0][0] in the_line(capsys)
