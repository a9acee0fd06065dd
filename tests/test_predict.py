"""inference/predict.py: beside the runs' own tests, and by a model whose answers are known."""

import csv
import hashlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.utils import Failure
from inference import predict
from inference.image_files import find_images
from inference.load import load_run

from .runs import REPO, run
from .test_startup import imported

METHODS = ["P2C", "CoOp", "CoCoOp", "PromptSRC", "MultiModalAdapter"]


def the_line(capsys, text: str) -> None:
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and text in error[0], error


# Beside the runs' own tests


@pytest.fixture(scope="module", params=METHODS)
def trained(request, data, tmp_path_factory) -> Path:
    """Output folders of a method: of its training, and of its test on the new classes."""
    out = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        assert run(request.param, data, out / "train", "OPTIM.MAX_EPOCH", "2") == 0
        flags = ("--eval-only", "--model-dir", str(out / "train"), "--load-epoch", "2")
        patch.setattr(sys, "argv", ["train.py", *flags])
        new = ("DATASET.SUBSAMPLE_CLASSES", "new")
        assert run(request.param, data, out / "test", *new, flags=flags) == 0
    return out


def own_test(folder: Path) -> tuple[list[str], dict[str, dict[str, float]]]:
    """A run's classes, and {image: {class: probability}} of its test, by trainer and dataset."""
    trainer, found = load_run(folder), {}
    for batch in trainer.test_loader:
        with torch.no_grad():
            logits = trainer.model_inference(batch["img"].to(trainer.device))
        for path, row in zip(batch["impath"], logits.double().softmax(dim=1).tolist(), strict=True):
            found[path] = dict(zip(trainer.dm.dataset.classnames, row, strict=True))
    return trainer.dm.dataset.classnames, found


def ask(folder: Path, images: list[str], out: Path, *options: str) -> dict[str, dict[str, float]]:
    """The same of predict, whose classes are ordered by probability."""
    arguments = [str(folder), *images, "--topk", "99", "--format", "jsonl", "--out", str(out)]
    assert predict.main([*arguments, *options]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["image"] for line in lines] == images
    return {line["image"]: {c["name"]: c["probability"] for c in line["classes"]} for line in lines}


def assert_equal(got: dict, own: dict) -> None:
    for image, expected in own.items():
        assert got[image] == pytest.approx(expected, abs=2e-6)
        assert next(iter(got[image])) == max(expected, key=expected.get)
        assert [*got[image].values()] == sorted(got[image].values(), reverse=True)


def test_as_the_runs_own_test(trained, tmp_path, monkeypatch, capsys):
    """Image by image, without the dataset; and the accuracy is that of results.json."""
    _, own = own_test(trained / "train")
    monkeypatch.setattr("dassl.data.data_manager.build_dataset", None)
    got = ask(trained / "train", list(own), tmp_path / "out", "--batch-size", "7")
    assert len(got) == 64
    assert_equal(got, own)
    metrics = json.loads((trained / "train" / "results.json").read_text())["metrics"]
    told = re.search(r"accuracy (\S+)%: (\d+) of 64 images", capsys.readouterr().err)
    assert float(told[1]) == pytest.approx(metrics["accuracy"], abs=0.051)


def test_other_names_as_a_base_to_new_test(trained, tmp_path):
    """By the names alone, in another order; and from a file."""
    names, own = own_test(trained / "test")
    order = names[1::2] + names[::2]
    got = ask(trained / "train", list(own), tmp_path / "out", "--classes", *order)
    assert_equal(got, own)
    (tmp_path / "names").write_text("\n".join([*order, "", ""]))
    options = ("--classes-file", str(tmp_path / "names"))
    assert ask(trained / "train", list(own), tmp_path / "again", *options) == got
    assert_equal(ask(trained / "test", list(own), tmp_path / "own"), own)


# By a model whose answers are known: the share of red, green and blue


class Colours:
    """Its logits are ten times an image's mean red, green and blue."""

    classnames = ["red", "deep green", "blue"]
    device = "no device"
    about = {
        "trainer": "Colours",
        "clip": {"name": "none"},
        "preprocessing": {
            "resize": 4, "crop": [4, 4], "interpolation": "bilinear", "mean": None, "std": None,
        },
    }  # fmt: skip

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.dtype == np.float32 and pixels.shape[1:] == (3, 4, 4)
        self.batches = [*getattr(self, "batches", []), len(pixels)]
        return 10 * pixels.mean((2, 3))


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SURE = math.exp(10) / (math.exp(10) + 2)


def paint(file: Path, colour: tuple[int, int, int]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 6), colour).save(file)
    return str(file)


@pytest.fixture
def model(monkeypatch) -> Colours:
    """What predict is given for a run."""
    made = Colours()
    monkeypatch.setattr(predict, "open_model", lambda *_, **__: made)
    return made


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of six images, named by class, of which one is another colour; and other files."""
    folder = tmp_path / "photos"
    for i in (2, 1):
        paint(folder / "red" / f"{i}.png", RED)
        paint(folder / "deep_green" / f"{i}.jpg", GREEN)
        paint(folder / "a" / "blue" / f"{i}.PNG", BLUE if i == 1 else RED)
    paint(folder / ".hidden" / "1.png", RED), paint(folder / "red" / ".1.png", RED)
    (folder / "red" / "notes.txt").write_text("no image")
    (folder / "red" / "round").symlink_to(folder)
    (folder / "red" / "itself").symlink_to("itself")
    return folder


def names_of(folder: Path) -> list[str]:
    found = ["a/blue/1.PNG", "a/blue/2.PNG", "deep_green/1.jpg", "deep_green/2.jpg"]
    return [f"{folder}/{name}" for name in [*found, "red/1.png", "red/2.png"]]


def test_csv(model, photos, capsys):
    assert predict.main([str(REPO), str(photos), "--format", "csv", "--topk", "2"]) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    header = ["image", "class_1", "probability_1", "class_2", "probability_2", "true_class"]
    assert list(rows[0]) == header
    assert [row["image"] for row in rows] == names_of(photos)
    best = ["blue", "red", "deep green", "deep green", "red", "red"]
    assert [row["class_1"] for row in rows] == best
    assert [row["true_class"] for row in rows] == ["blue"] * 2 + best[2:]
    assert rows[1]["class_2"] == "deep green"  # of equal ones the first
    assert float(rows[1]["probability_1"]) == pytest.approx(SURE, rel=1e-6)
    assert float(rows[1]["probability_2"]) == pytest.approx((1 - SURE) / 2, rel=1e-6)
    assert err.splitlines() == [
        "Colours on none, 3 classes, no device",
        "accuracy 83.3%: 5 of 6 images, by the names of their folders",
    ]


def test_json_lines_of_odd_names(model, tmp_path, monkeypatch, capsys):
    """Commas, quotes, newlines and other alphabets in names of files and classes."""
    monkeypatch.setattr(model, "classnames", ['a "big", red\nthing', "grün", "青"], raising=False)
    image = paint(tmp_path / 'a,"b"\n' / "красный.png", BLUE)
    assert predict.main([str(REPO), image, "--format", "jsonl"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "青" in line
    assert json.loads(line) == {
        "image": image,
        "classes": [
            {"name": "青", "probability": pytest.approx(SURE, rel=1e-6)},
            {"name": 'a "big", red\nthing', "probability": pytest.approx((1 - SURE) / 2)},
            {"name": "grün", "probability": pytest.approx((1 - SURE) / 2)},
        ],
    }
    assert predict.main([str(REPO), image, "--format", "csv"]) == 0
    (_, row) = csv.reader(io.StringIO(capsys.readouterr().out))
    # a cell is one line; JSON has names as they are
    assert row[:2] == [image.replace("\n", "\\n"), "青"] and row[3] == 'a "big", red\\nthing'
    assert predict.main([str(REPO), image]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_table(model, photos, monkeypatch, capsys):
    """All of it, and on a terminal what its width holds."""
    assert predict.main([str(REPO), str(photos / "a")]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert re.split(" {2,}", head) == ["image", "true class", "best", "best 2", "best 3"]
    assert re.split(" {2,}", rows[0].strip())[1:] == [
        "blue", "blue 100.0%", "red 0.0%", "deep green 0.0%",
    ]  # fmt: skip
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(len(str(photos)) + 60))
    for options, shown in ((), 2), (("--topk", "3"), 3):
        assert predict.main([str(REPO), str(photos / "a"), *options]) == 0
        out = capsys.readouterr().out
        assert "best 2" in out and ("best 3" in out) == (shown == 3)
        assert ("(the best 2 of 3:" in out) == (shown == 2)


@pytest.mark.parametrize("size", ["1", "4", "100"])
def test_batches(model, photos, size, tmp_path):
    got = ask(REPO, names_of(photos), tmp_path / "out", "--batch-size", size)
    best = ["blue", "red", "deep green", "deep green", "red", "red"]
    assert [next(iter(classes)) for classes in got.values()] == best
    assert model.batches == {"1": [1] * 6, "4": [4, 2], "100": [6]}[size]


def test_images_that_cannot_be_read(model, photos, tmp_path, capsys):
    """They are named, the others are predicted, and the exit code is 1."""
    whole = Path(paint(tmp_path / "noise.png", RED)).read_bytes()
    (photos / "red" / "0.png").write_bytes(whole[:40])
    (photos / "red" / "gone.png").symlink_to("nowhere")
    arguments = [str(REPO), str(photos), "--format", "csv", "--batch-size", "3"]
    assert predict.main(arguments) == 1
    out, err = capsys.readouterr()
    assert [row[0] for row in csv.reader(io.StringIO(out))][1:] == names_of(photos)
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2
    assert f"{photos}/red/0.png" in skipped[0] and f"{photos}/red/gone.png" in skipped[1]
    assert err.splitlines()[-1] == "2 of 8 images could not be read"
    assert "accuracy 83.3%: 5 of 6" in err

    assert predict.main([str(REPO), str(photos / "red" / "0.png"), "--format", "csv"]) == 1
    assert capsys.readouterr().out == ""


def test_photos_that_pillow_does_not_know(model, photos, capsys):
    """An iPhone's are named, not passed over as a list of names is."""
    (photos / "red" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (photos / "red" / "list.txt").write_text("names")
    assert predict.main([str(REPO), str(photos)]) == 1
    err = capsys.readouterr().err.splitlines()
    assert [line for line in err if "IMG_1.HEIC" in line and line.startswith("skipped: ")]
    assert err[-1] == "1 of 7 images could not be read"


def test_an_image_that_the_memory_does_not_hold(photos, monkeypatch):
    def full(*args):
        raise MemoryError

    monkeypatch.setattr(predict, "read_pixels", full)
    assert "red/1.png: the memory" in str(predict.read_row((f"{photos}/red/1.png",), {}))


def test_folders_that_are_nested_too_deep(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        for _ in range(1200):  # in steps: the whole path is longer than some systems allow
            os.mkdir("a")
            os.chdir("a")
    with pytest.raises(Failure, match="nested too deep|Cannot list"):
        find_images([str(tmp_path)])
    subprocess.run(["rm", "-r", tmp_path / "a"], check=True)  # pytest itself could not


def test_folders_that_are_no_classes(model, photos, capsys):
    """One of them, and no true classes are told; why is said if the others are classes."""
    other = paint(photos / "violet" / "1.png", BLUE)
    assert predict.main([str(REPO), str(photos), "--format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    assert not any("true_class" in json.loads(line) for line in out.splitlines())
    assert err.splitlines()[1:] == ["no accuracy: no class is called like the folder violet"]
    assert predict.main([str(REPO), str(other)]) == 0
    assert "accuracy" not in capsys.readouterr().err
    os.remove(other)
    assert predict.main([str(REPO), str(photos), "--format", "jsonl"]) == 0
    assert all("true_class" in json.loads(line) for line in capsys.readouterr().out.splitlines())


def test_of_an_image_beside_one(model, photos, monkeypatch, capsys):
    """Its class is the name of the folder one is in."""
    monkeypatch.chdir(photos / "red")
    assert predict.main([str(REPO), "1.png", "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["true_class"] == "red"


def test_out_is_written_whole_or_not_at_all(model, photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.csv"
    arguments = [str(REPO), str(photos), "--out", str(out), "--batch-size", "2"]  # CSV by its name
    assert predict.main(arguments) == 0
    assert capsys.readouterr().out == ""
    before = out.read_text()
    assert len(list(csv.reader(io.StringIO(before)))) == 7

    def stop(pixels):
        if len(model.batches) == 4:  # three of before
            raise KeyboardInterrupt
        return Colours.logits(model, pixels)

    monkeypatch.setattr(model, "logits", stop, raising=False)
    with pytest.raises(SystemExit) as left:
        predict.main(arguments)
    assert left.value.code == 130
    assert capsys.readouterr().err.splitlines()[1:] == ["error: stopped"]
    assert out.read_text() == before and sorted(os.listdir(tmp_path)) == ["out.csv", "photos"]


def test_pictures(model, photos, tmp_path, capsys):
    """Of images in the classes' folders three, else one and why."""
    arguments = [str(REPO), str(photos), "--picture", f"{tmp_path}/x.png"]
    assert predict.main(arguments) == 0
    told = capsys.readouterr().err.splitlines()[2:]
    assert told == [
        f"{tmp_path}/x.png: 6 images",
        f"{tmp_path}/x-mistakes.png: 1 mistake among 6 images",
        f"{tmp_path}/x-confusion.png: the confusion matrix",
    ]
    for name in ("x.png", "x-mistakes.png", "x-confusion.png"):
        os.remove(tmp_path / name)
    paint(photos / "violet" / "1.png", BLUE)
    assert predict.main([*arguments, "--picture-limit", "5"]) == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        "no accuracy: no class is called like the folder violet",
        f"{tmp_path}/x.png: the first 5 of 7 images",
        "no picture of mistakes: no class is called like the folder violet",
    ]
    assert sorted(os.listdir(tmp_path)) == ["photos", "x.png"]
    assert predict.main([str(REPO), str(photos / "violet"), *arguments[2:]]) == 0
    why = "no picture of mistakes: no folder is called like a class"
    assert capsys.readouterr().err.splitlines()[-1] == why


def test_scores_that_are_nan(model, photos, monkeypatch, capsys):
    monkeypatch.setattr(model, "logits", lambda x: np.full((len(x), 3), np.nan), raising=False)
    with pytest.raises(SystemExit) as left:
        predict.main([str(REPO), str(photos)])
    assert left.value.code == 1
    assert re.search("error: .*1.PNG: the scores are NaN", capsys.readouterr().err)


BAD = [
    (("/nowhere", "{photos}"), 2, "/nowhere: no such file or folder"),
    (("{run}", "/nowhere"), 2, "/nowhere: no such file or folder"),
    (("{run}", "nowhere"), 2, f"nowhere: no such file or folder in {os.getcwd()}"),
    (("{run}", "{photos}", "--classes", "a"), 2, "one class alone, 'a', has always 100%"),
    (("{run}",), 2, "required: IMAGE-OR-FOLDER"),
    (("{run}", "{empty}"), 1, "{empty}: no images in it or below it"),
    (("{run}", "{photos}", "{empty}"), 1, "{empty}: no images in it or below it"),
    (("{run}", "{photos}", "--classes", "a b", "c", "a_b"), 2, "class 'a b' is named twice"),
    (("{run}", "{photos}", "--classes", "a", ""), 2, "a class has no name"),
    (("{run}", "{photos}", "--classes", "a", "--classes-file", "{names}"), 2, "not allowed with"),
    (("{run}", "{photos}", "--classes-file", "{names}"), 2, "class 'cat' is named twice"),
    (("{run}", "{photos}", "--classes-file", "/nowhere"), 2, "cannot read /nowhere: No such file"),
    (("{run}", "{photos}", "--classes-file", "{blank}"), 2, "{blank}: no names in it"),
    (("{run}", "{photos}", "--classes-file", "{binary}"), 2, "cannot read {binary}: "),
    (("{run}", "{photos}", "--topk", "0"), 2, "0: must be a whole number, 1 or more"),
    (("{run}", "{photos}", "--batch-size", "-1"), 2, "must be a whole number"),
    (("{run}", "{photos}", "--format", "xml"), 2, "invalid choice: 'xml'"),
    (("{run}", "{photos}", "--picture", "x.jpg"), 2, "x.jpg: must be a .png in a folder"),
    (("{run}", "{photos}", "--picture", "/nowhere/x.png"), 2, "must be a .png in a folder"),
    (("{run}", "{photos}", "--picture", "{photos}/x.png"), 2, "one of the images in {photos}"),
    (("{run}", "{photos}", "--out", "{empty}"), 2, "--out {empty}: is a folder"),
    (("{run}", "{photos}", "--out", "/dev/null"), 2, "--out /dev/null: is a folder or device"),
    (("{run}", "{photos}", "--out", "x.csv", "--format", "jsonl"), 2, "no name for a file of"),
    (("{run}", "{photos}", "--out", "x.JPG"), 2, "--out x.JPG: is no name for a file of --format"),
    (("{run}", "{photos}", "--weights", "/nowhere"), 2, "/nowhere: no such file or folder"),
]


@pytest.mark.parametrize(("args", "code", "text"), BAD)
def test_bad_input(args, code, text, photos, tmp_path, capsys):
    names = {"run": REPO, "photos": photos}
    names |= {name: tmp_path / name for name in ("empty", "names", "blank", "binary")}
    names["empty"].mkdir()
    (names["empty"] / "notes.txt").write_text("no image")
    names["names"].write_text("cat\ndog\n cat \n")
    names["blank"].write_text("\n \n")
    names["binary"].write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SystemExit) as left:
        predict.main([arg.format(**names) for arg in args])
    assert left.value.code == code
    the_line(capsys, text.format(**names))


def test_a_place_without_a_model(photos, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SystemExit) as left:
        predict.main([str(tmp_path / "nothing"), str(photos)])
    assert left.value.code == 1
    the_line(capsys, "holds no trained model")


# As a program


@pytest.mark.parametrize("argv", [["--help"], [], [".", "/nowhere"]])
def test_nothing_slow_is_imported_to_say_what_is_wrong(argv):
    code = "from inference import predict\ntry: predict.main()\nexcept SystemExit: pass"
    slow = {"torch", "torchvision", "matplotlib", "onnxruntime", "inference.load"}
    assert not imported(code, *argv) & slow


def test_an_exported_model_is_asked_without_torch(photos, tmp_path):
    """A graph that is `Colours`, in the form of inference.export's folders."""
    onnx = pytest.importorskip("onnx", reason="makes the model.onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("inference.onnx_model", reason="is to come")
    make, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        make.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        make.make_node("Mul", ["mean", "ten"], ["logits"]),
    ]
    constants = [
        make.make_tensor("axes", onnx.TensorProto.INT64, [2], [2, 3]),
        make.make_tensor("ten", FLOAT, [], [10.0]),
    ]
    graph = make.make_graph(
        nodes,
        "colours",
        [make.make_tensor_value_info("image", FLOAT, ["batch", 3, 4, 4])],
        [make.make_tensor_value_info("logits", FLOAT, ["batch", 3])],
        constants,
    )
    about = {"format": 1, "input": "image", "output": "logits", "config": {}, "precision": "fp32"}
    about |= Colours.about | {"classnames": Colours.classnames}
    made = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    make.set_model_props(made, {"about": json.dumps(about)})
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    about["sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "preprocess.json").write_text(json.dumps(about))

    out = tmp_path / "out.csv"
    code = "from inference import predict\nassert predict.main() == 0"
    options = ("--format", "csv", "--out", str(out), "--picture", f"{tmp_path}/x.png")
    modules = imported(code, str(folder), str(photos), *options)
    assert "onnxruntime" in modules and "torch" not in modules
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["image"] for row in rows] == names_of(photos)
    best = ["blue", "red", "deep green", "deep green", "red", "red"]
    assert [row["class_1"] for row in rows] == best
    assert float(rows[0]["probability_1"]) == pytest.approx(SURE, rel=1e-6)


def test_the_script_and_a_closed_pipe(data, tmp_path):
    """`… | head` ends it without a traceback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        assert run("ZeroshotCLIP", data, tmp_path / "zero") == 0
    command = f"bash scripts/predict.sh {tmp_path}/zero {data}/shapes/images --format csv"
    shell = ["bash", "-o", "pipefail", "-c", f"{command} | head -c 13"]
    env = os.environ | {"VENV": sys.prefix}
    done = subprocess.run(shell, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.stdout == "image,class_1" and done.returncode == 128 + signal.SIGPIPE
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("ZeroshotCLIP on ViT-Tiny/8, 16")


def test_a_name_is_no_formula_in_csv(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(model, "classnames", ["=1+1", "@b", "c"], raising=False)
    image = paint(tmp_path / "=cmd.png", BLUE)
    assert predict.main([str(REPO), image, "--format", "csv", "--topk", "3"]) == 0
    row = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    names = {row[f"class_{i}"] for i in (1, 2, 3)}
    assert names == {"'=1+1", "'@b", "c"} and row["image"] == image
