"""What a user can cause ends in one clear line and the right exit code, and loses nothing that was saved.

Whole runs; what has no run of its own here is tested beside its code (weights in tests/clip, data in tests/datasets).
"""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from dassl.utils import checkpoint, tools
from tests.runs import HANG, REPO, arguments, run, wait_for
from trainers.base import PromptTrainer

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
    process = subprocess.Popen([sys.executable, "train.py"], cwd=REPO, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(), pause=0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=HANG)[1] == "" and process.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("flags", "opts", "line"),
    [
        (("--trainer", "P2D"), (), 'Unknown trainer "P2D": did you mean P2C?'),
        (("--dataset-config-file", "eurosat"), (), "no config file eurosat"),
        ((), ("DATASET.NAME", "Shape"), 'Unknown dataset "Shape": did you mean Shapes?'),
        ((), ("DATASET.SUBSAMPLE_CLASSES", "nwe"), 'Unknown DATASET.SUBSAMPLE_CLASSES "nwe": did you mean new?'),
        ((), ("OPTIM.MAX_EPOCH", "1"), "the warm-up leaves no epoch to train in"),
        ((), ("OPTIM.NAME", "sdg"), 'Unknown optimizer "sdg": did you mean sgd?'),
        ((), ("TRAINER.P2C.CTX_INIT", "a"), "CTX_INIT 'a' has 1 tokens, fewer than N_CTX 2"),
        ((), ("TRAINER.P2C",), "config keys and values come in pairs"),
        # a script's own pairs follow the user's
        ((), ("TRAINER.P2C.N_CTX", "DATASET.NUM_SHOTS", "1"), "but TRAINER.P2C.N_CTX has no value"),
        (("--seed=1", "--resume", "/nowhere/at/all"), (), "There is nothing to resume in /nowhere/at/all"),
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
        ("INPUT.SIZE", ("(32,)", "(32,0)", "(32.0,32.0)", "('a','b')", "None"), "height and width in pixels"),
        ("INPUT.PIXEL_MEAN", ("[0.5]",), "three numbers"),
        ("INPUT.PIXEL_STD", ("[0.0,0.0,0.0]", "[0.2,0.2]", "['a',1,1]"), "three numbers above 0"),
        ("TRAINER.COOP.CTX_INIT", ("5",), "words, True or False"),
    ],
)
def test_a_value_that_no_run_can_have(key, values, allowed, data, tmp_path, capsys):
    for value in values:
        assert run("CoOp_ATP", data, tmp_path, key, value) == 2
        assert re.fullmatch(rf"error: {key} .*: must be {allowed}\n", the_line(capsys)), value


def test_the_least_values_that_a_run_can_have(data, tmp_path):
    least = {"DATALOADER.TRAIN_X.BATCH_SIZE": "1", "DATALOADER.TEST.BATCH_SIZE": "1", "TRAIN.PRINT_FREQ": "1",
             "DATASET.NUM_SHOTS": "1", "DATALOADER.NUM_WORKERS": "0", "DATALOADER.CACHE_MB": "0", "OPTIM.LR": "0.0",
             "OPTIM.MOMENTUM": "0.0", "OPTIM.WEIGHT_DECAY": "0.0", "OPTIM.MAX_EPOCH": "2"}  # fmt: skip
    assert run("CoOp", data, tmp_path, *(word for pair in least.items() for word in pair)) == 0


@pytest.mark.parametrize("trainer", ["CoOp_ATP", "CoCoOp_ATP", "MaPLe_ATP", "P2C"])
@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (("N_ATT1", "-1"), "N_ATT1 -1: must be 0 or more"),
        (("N_ATT3", "-1"), "N_ATT3 -1: must be 0 or more"),  # not in use, but in the file
        (("ATT_NUM", "1", "ATT1_TEXT", ""), "ATT_NUM 1: give ATT_NUM 1 to 3 and that many of ATT1_TEXT"),
        (("ATT_NUM", "2", "ATT1_TEXT", "fur", "ATT2_TEXT", " "), "ATT_NUM 2: give ATT_NUM 1 to 3 and that many"),
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
        (("DATASET.NUM_SHOTS 4", "DATASET.NUM_SHOTS 16"), "as 4 and as 16; the scripts take it from SHOTS"),
        (("OPTIM.LR 0.1", "OPTIM.LR 0.2"), "OPTIM.LR is given twice, as 0.1 and as 0.2"),
        (("SEED 7",), "SEED is given twice, by --seed and as 7"),
        (("OUTPUT_DIR elsewhere",), "OUTPUT_DIR is given twice, by --output-dir and as elsewhere"),
    ],
)
def test_a_key_given_twice(opts, line, data, tmp_path, capsys):
    assert run("P2C", data, tmp_path, *" ".join(opts).split(), flags=("--seed", "1")) == 2
    assert the_line(capsys).endswith(f"{line}\n")


def test_a_key_given_twice_with_one_value(data, tmp_path):
    twice = "OPTIM.LR 0.10 SEED 1 INPUT.TRANSFORMS ['normalize'] OPTIM.LR 0.1".split()
    args = arguments("P2C", data, tmp_path, *twice, flags=("--transforms", "normalize", "--seed", "1"))
    assert train.setup_cfg(train.parse_args(args)).OPTIM.LR == 0.1


def test_a_number_where_text_is_wanted_is_text(data):
    args = arguments("P2C", data, Path("2024"), "DATASET.FOLDER", "1e3", "TRAINER.ATPROMPT.ATT1_TEXT", "True")
    cfg = train.setup_cfg(train.parse_args(args))
    assert (cfg.OUTPUT_DIR, cfg.DATASET.FOLDER, cfg.TRAINER.ATPROMPT.ATT1_TEXT) == ("2024", "1e3", "True")


def test_no_memory_left(data, tmp_path, capsys, monkeypatch):
    """In the second epoch, and then in the test; what lowers the test's need is no other run."""
    forward_backward, inference = PromptTrainer.forward_backward, PromptTrainer.model_inference

    def full(self, batch):
        if self.epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …")
        return forward_backward(self, batch)

    def full_too(self, image):
        if len(image) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …")
        return inference(self, image)

    monkeypatch.setattr(PromptTrainer, "forward_backward", full)
    assert run("P2C", data, tmp_path, *EPOCHS) == 1
    line = the_line(capsys)
    assert "memory is full" in line and "DATALOADER.TRAIN_X.BATCH_SIZE" in line and model(tmp_path, 1).exists()
    monkeypatch.setattr(PromptTrainer, "forward_backward", forward_backward)
    monkeypatch.setattr(PromptTrainer, "model_inference", full_too)
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
    assert f"{model(out)} is truncated, damaged or no checkpoint: going back" in capsys.readouterr().out
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
    assert run("P2C", data, tmp_path / "b", flags=("--eval-only", "--model-dir", str(tmp_path / "wide"))) == 1
    assert "prompt_learner.ctx has shape (2, 256) in the file, (2, 128) in the model" in the_line(capsys)


def test_a_checkpoint_that_would_run_code(data, trained, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    model(tmp_path / "evil").parent.mkdir(parents=True)
    torch.save({"state_dict": Evil()}, model(tmp_path / "evil"))
    assert run("P2C", data, tmp_path / "out", flags=("--eval-only", "--model-dir", str(tmp_path / "evil"))) == 1
    assert "mkdir" in the_line(capsys) and not (tmp_path / "owned").exists()


def test_no_space_while_saving(data, trained, tmp_path, capsys, monkeypatch):
    """The second epoch's checkpoint does not fit: the first one stays, and the run goes on from there."""
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
    assert sorted(p.name for p in model(tmp_path).parent.iterdir()) == ["checkpoint", "model.pth.tar-1"]
    assert run("P2C", data, tmp_path, *EPOCHS) == 0
    a, b = (torch.load(model(o), weights_only=True)["state_dict"] for o in (trained, tmp_path))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_output_folder_that_cannot_be_written(data, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    assert run("P2C", data, tmp_path / "file" / "out") == 1
    assert str(tmp_path / "file" / "out") in the_line(capsys)

    def read_only(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tools.os, "makedirs", read_only)  # tests may run as root, who can write everywhere
    assert run("P2C", data, tmp_path / "out") == 1
    assert "Permission denied" in the_line(capsys)


def test_weights_that_cannot_be_had(data, tmp_path, capsys, monkeypatch):
    """Offline with nothing in the cache; a file in the cache that is another than its SHA-256 says is not taken."""
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
    assert "and CLIP reads 77: shorten the name, or the context" in line and "the prompt of class '" in line


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
