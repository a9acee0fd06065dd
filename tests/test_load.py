"""What a model says of itself, and models read back without their datasets."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import train
from clip.weights import BUNDLED, OPENAI_SHA256
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import Failure, UsageError
from datasets.shapes import ShapesCount
from inference.card import record_of
from inference.load import config_of, load_model, load_run, recorded_weights
from inference.prompts_file import portable, read_prompts, save_prompts

from .runs import CONFIGS, arguments, run
from .test_parse import record, write
from .trainers.files import row_tensors
from .trainers.methods import CYCLES

SMALL_CLIP = BUNDLED / "vit_tiny_8.safetensors"
CSC = ("TRAINER.COOP.CSC", "True", "TRAINER.COOP.CTX_INIT", "")
OF_REBAPL = tuple(word for pair in CYCLES.items() for word in pair)


def trained(trainer: str, data: Path, out: Path, *opts: str) -> Path:
    """The output folder of a training."""
    assert run(trainer, data, out, *opts) == 0
    return out


def on_new_classes(folder: Path, data: Path, out: Path, trainer: str, *opts: str) -> Path:
    """The output folder of a test of its model on the new classes."""
    flags = ("--eval-only", "--model-dir", str(folder))
    with pytest.MonkeyPatch.context() as patch:  # results.json records the command
        patch.setattr(sys, "argv", ["train.py", *flags])
        new = () if "DATASET.SUBSAMPLE_CLASSES" in opts else ("DATASET.SUBSAMPLE_CLASSES", "new")
        assert run(trainer, data, out, *new, *opts, flags=flags) == 0
    return out


def logits(trainer: TrainerX) -> Tensor:
    """Of five random images (5, C)."""
    image = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return trainer.model_inference(image)


def names(trainer: TrainerX) -> list[str]:
    return trainer.describe()["classnames"]


def the_file(folder: Path) -> Path:
    """Its newest checkpoint."""
    return next(folder.glob("*/model.pth.tar-3"))


def edit(path: Path, change) -> None:
    """Saves what `change` makes of a checkpoint, in its place."""
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


@pytest.fixture(scope="module")
def p2c(data, tmp_path_factory) -> Path:
    return trained("P2C", data, tmp_path_factory.mktemp("p2c") / "train")


@pytest.fixture(scope="module")
def csc(data, tmp_path_factory) -> Path:
    return trained("CoOp", data, tmp_path_factory.mktemp("csc") / "train", *CSC)


# what it says


def test_a_file_says_what_it_is(p2c, data):
    record = json.loads((p2c / "results.json").read_text())
    about = torch.load(the_file(p2c), weights_only=True)["about"]
    split = json.loads((data / "shapes" / "split_zhou_Shapes.json").read_text())
    label_of = {name: label for _, label, name in split["test"]}
    base = sorted(label_of, key=label_of.get)[:16]
    for said in (record, about):
        assert said["classnames"] == base and said["trainer"] == "P2C"
        assert said["bound_to_classes"] is False and said["precision"] == "fp32"
        assert said["template"] == "a photo of a {}." and said["attributes"] == ["color", "shape"]
        assert said["preprocessing"] == {
            "resize": 32,
            "crop": [32, 32],
            "interpolation": "bicubic",
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
        }
        assert said["clip"]["name"] == "ViT-Tiny/8" and said["clip"]["file"] == str(SMALL_CLIP)
        assert said["config"]["TRAINER"]["P2C"]["N_CTX"] == 2
    assert about["format"] == record["format"] == 1
    assert not {"OUTPUT_DIR", "RESUME"} & about["config"].keys()
    assert "ROOT" not in about["config"]["DATASET"]
    assert json.loads(json.dumps(about)) == about  # plain data only


@pytest.mark.parametrize("trainer", CONFIGS)
def test_a_method_says_what_is_bound_to_its_classes(trainer, data, tmp_path):
    opts = OF_REBAPL if trainer.startswith("ReBaPL") else ()
    cfg = train.setup_cfg(train.parse_args(arguments(trainer, data, tmp_path, *opts)))
    said = build_trainer(cfg, ["a", "b", "c"]).class_rows
    assert said is not None and row_tensors(trainer, data, tmp_path, *opts) == set(said)


def test_csc_says_that_it_is_bound(data, tmp_path, csc):
    assert row_tensors("CoOp", data, tmp_path, *CSC) == {"ctx"}
    assert json.loads((csc / "results.json").read_text())["bound_to_classes"] is True


# without the dataset


def test_a_run_and_its_file_and_its_test(p2c, data, tmp_path):
    """As of the trainer with the dataset, with the names that the run or the test had."""
    of_test = on_new_classes(p2c, data, tmp_path / "test", "P2C")
    for folder in (p2c, of_test):
        with_data, without = load_run(folder), load_model(folder)
        assert names(without) == [d for _, d in sorted(with_data.lab2cname.items())]
        assert torch.equal(logits(without), logits(with_data))
    alone = Path(shutil.copy(the_file(p2c), tmp_path / "a_model"))
    assert torch.equal(logits(load_model(alone)), logits(load_model(p2c)))
    other = load_model(p2c, names(load_model(of_test)))
    assert torch.equal(logits(other), logits(load_model(of_test)))


def test_a_test_that_was_moved_alone(p2c, data, tmp_path, monkeypatch):
    """Its model is found where --model-dir named it, whatever the present folder is."""
    folder = on_new_classes(p2c, data, tmp_path / "test", "P2C")
    monkeypatch.chdir(tmp_path)
    expected = logits(load_model(folder))
    (tmp_path / "a" / "b").mkdir(parents=True)
    moved = Path(shutil.move(folder, tmp_path / "a" / "b" / "test"))
    assert torch.equal(logits(load_model(moved)), expected)


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CoCoOp", "MMRL", "VaMP", "ReBaPL_CoOp"])
def test_all_kinds_of_methods(trainer, data, tmp_path):
    opts = OF_REBAPL if trainer.startswith("ReBaPL") else ()
    folder = trained(trainer, data, tmp_path / "train", *opts)
    of_test = on_new_classes(folder, data, tmp_path / "test", trainer, *opts)
    new = names(load_run(of_test))
    assert torch.equal(logits(load_model(folder)), logits(load_run(folder)))
    expected = logits(load_run(of_test))
    assert torch.equal(logits(load_model(of_test)), expected)
    assert torch.equal(logits(load_model(folder, new)), expected)
    if trainer != "ZeroshotCLIP":
        save_prompts(load_run(folder), tmp_path / "prompts.safetensors")
        assert torch.equal(logits(load_model(tmp_path, new)), expected)


def test_an_old_file_needs_names(p2c, tmp_path, capsys):
    folder = Path(shutil.copytree(p2c, tmp_path / "old"))
    (folder / "results.json").unlink()
    expected, own = logits(load_model(folder)), names(load_model(p2c))  # the checkpoint says them
    edit(the_file(folder), lambda checkpoint: checkpoint.pop("about"))
    with pytest.raises(Failure, match="does not name its classes.*--classes"):
        load_model(folder)
    assert torch.equal(logits(load_model(folder, own)), expected)
    with pytest.raises(Failure, match="give the output folder of its run"):
        load_model(the_file(folder), own)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("nothing", "no such file or folder"),
        ("empty", "holds no trained model"),
        ("no model", "train it first|no checkpoint"),
        ("twice", "'a' is given twice"),
        ("text", "truncated, damaged or no checkpoint"),
        ("prompts", "truncated, damaged or no safetensors file"),
    ],
)
def test_bad_input_is_one_line(what, line, p2c, tmp_path):
    run, given = tmp_path / what, None
    if what == "empty":
        run.mkdir()
    if what == "no model":
        shutil.copytree(p2c, run)
        the_file(run).unlink()
        given = ["a", "b"]
    if what == "twice":
        run, given = p2c, ["a", "b", "a"]
    if what in ("text", "prompts"):
        run = tmp_path / ("a.safetensors" if what == "prompts" else "a.pt")
        run.write_text("no model")
    with pytest.raises((Failure, UsageError), match=line) as error:
        load_model(run, given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("classnames", [1, 2], "classnames are no list of names"),
        ("classnames", "abc", "classnames are no list of names"),
        ("clip", "ViT-B/16", "does not say its clip"),
        ("format", 9, "in format 9, not 1"),
    ],
)
def test_a_file_that_says_odd_things_of_itself(key, value, line, p2c, tmp_path):
    file = Path(shutil.copy(the_file(p2c), tmp_path / "a_model"))
    edit(file, lambda checkpoint: checkpoint["about"].update({key: value}))
    with pytest.raises(Failure, match=line):
        load_model(file)


# another CLIP


@pytest.fixture
def other_clip(tmp_path) -> str:
    """The small CLIP with other weights."""
    weights = load_file(SMALL_CLIP)
    weights["text_projection"] = weights["text_projection"] * 1.5
    path = tmp_path / "other.pt"
    rows = torch.zeros(49408, weights["token_embedding.weight"].shape[1])
    rows[weights.pop("token_embedding.ids").long()] = weights["token_embedding.weight"].float()
    torch.save(weights | {"token_embedding.weight": rows}, path)
    return str(path)


def test_a_model_of_another_clip_is_refused(p2c, other_clip, data, tmp_path, capsys):
    with pytest.raises(Failure, match="trained on another CLIP.*ViT-Tiny/8.*--any-clip"):
        load_model(p2c, weights=other_clip)
    assert load_model(p2c, weights=other_clip, any_clip=True).describe()["clip"]["file"]
    opts = ("MODEL.BACKBONE.WEIGHTS", other_clip)
    on_new_classes(p2c, data, tmp_path / "test", "P2C", *opts)
    assert "Note: trained on another CLIP" in capsys.readouterr().out
    with pytest.raises(Failure, match="trained on another CLIP"):
        load_model(tmp_path / "test")


def test_the_clip_that_only_the_training_was_told_of(p2c, other_clip, monkeypatch):
    """It is taken where it was, not OpenAI's, which would be downloaded."""
    monkeypatch.delenv("CLIP_WEIGHTS", raising=False)
    cfg = config_of(p2c)
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = "ViT-B/16"
    clip = {"name": "ViT-B/16", "file": other_clip, "sha256": "0" * 64}
    assert recorded_weights(p2c, cfg, clip, False) == other_clip
    openai = clip | {"sha256": OPENAI_SHA256["ViT-B/16"]}
    for said in (openai, {}):
        assert recorded_weights(p2c, cfg, said, False) == ""
    gone = clip | {"file": other_clip + "x"}
    with pytest.raises(Failure, match="not OpenAI's ViT-B/16 but .*other.ptx, .*--weights"):
        recorded_weights(p2c, cfg, gone, False)
    assert recorded_weights(p2c, cfg, gone, True) == ""
    monkeypatch.chdir(os.path.dirname(other_clip))  # a file called so need not be the one
    with pytest.raises(Failure, match="--weights"):
        recorded_weights(p2c, cfg, clip | {"file": "other.pt"}, False)
    monkeypatch.setenv("CLIP_WEIGHTS", other_clip)  # it has moved, and the user says where
    assert recorded_weights(p2c, cfg, gone, False) == ""


# bound to the classes


@pytest.mark.parametrize("trainer", ["CoOp", "ReBaPL_CoOp"])
def test_the_same_classes_in_another_order_are_found(trainer, csc, data, tmp_path):
    folder = csc
    if trainer != "CoOp":
        folder = trained(trainer, data, tmp_path / "train", *CSC, *OF_REBAPL)
    expected, own = logits(load_model(folder)), names(load_model(folder))
    torch.testing.assert_close(logits(load_model(folder, own[::-1])).flip(1), expected)
    some = logits(load_model(folder, [own[3], own[1]]))
    if trainer == "CoOp":  # an average of probabilities depends on the others
        torch.testing.assert_close(some, expected[:, [3, 1]])
    assert some[0, 0] - some[0, 1] != 0


def test_other_classes_are_refused(csc, data, tmp_path, capsys):
    own = names(load_model(csc))
    with pytest.raises(Failure, match="bound to the 16 classes it was trained on.*no 'zebra'"):
        load_model(csc, [*own[:3], "zebra"])


def linear_probe(class_rows: tuple[str, ...] | None) -> type[TrainerX]:
    """A method on the engine alone."""

    class LinearProbe(TrainerX):
        def build_model(self):
            pixels = 3 * self.cfg.INPUT.SIZE[0] * self.cfg.INPUT.SIZE[1]
            self.model = torch.nn.Linear(pixels, self.num_classes)
            self.optim = build_optimizer(self.model, self.cfg.OPTIM)
            self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
            self.register_model("probe", self.model, self.optim, self.sched)

        def model_inference(self, input):
            return self.model(input.flatten(1))

        def forward_backward(self, batch):
            image, label, _ = self.parse_batch_train(batch)
            loss = torch.nn.functional.cross_entropy(self.model_inference(image), label)
            self.model_backward_and_update(loss)
            if self.batch_idx + 1 == self.num_batches:
                self.update_lr()
            return {"loss": loss}

    LinearProbe.class_rows = class_rows
    return LinearProbe


@pytest.fixture
def probe(monkeypatch):
    """Registers a linear probe that says the given `class_rows`."""

    def register(class_rows):
        found = TRAINER_REGISTRY.get
        made = linear_probe(class_rows)
        monkeypatch.setattr(
            TRAINER_REGISTRY, "get", lambda name: made if name == "LinearProbe" else found(name)
        )

    return register


def probe_run(data: Path, out: Path, *opts: str, flags: Sequence[str] = ()) -> int:
    opts = ("TRAINER.NAME", "LinearProbe", *opts)
    words = arguments("ZeroshotCLIP", data, out, *opts, flags=tuple(flags))
    words[words.index("--trainer") + 1] = "LinearProbe"
    return train.main(words)


def test_a_linear_probe_is_not_tested_on_other_classes(probe, data, tmp_path, capsys):
    """There are as many: nothing else would tell."""
    probe(("weight", "bias"))
    assert probe_run(data, tmp_path / "train") == 0
    new = ("DATASET.SUBSAMPLE_CLASSES", "new")
    flags = ("--eval-only", "--model-dir", str(tmp_path / "train"))
    assert probe_run(data, tmp_path / "test", *new, flags=flags) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "is bound to the 16 classes it was trained on" in error[0]
    trainer = load_model(tmp_path / "train")
    turned = load_model(tmp_path / "train", names(trainer)[::-1])
    torch.testing.assert_close(logits(turned).flip(1), logits(trainer))


def test_a_trainer_that_does_not_say_is_noted(probe, data, tmp_path, capsys):
    probe(None)
    assert probe_run(data, tmp_path / "train") == 0
    flags = ("--eval-only", "--model-dir", str(tmp_path / "train"))
    assert "Note: " not in capsys.readouterr().out
    opts = ("DATASET.SUBSAMPLE_CLASSES", "new")
    assert probe_run(data, tmp_path / "test", *opts, flags=flags) == 0
    assert "was trained on other classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["about"]["classnames"].reverse(), "its classes were others, or in another"),
        (lambda c: c.update(images="0" * 64), "the images it was trained on were others"),
        (lambda c: c["about"]["clip"].update(sha256="0" * 64), "it was trained on another CLIP ("),
        (lambda c: c["about"]["clip"].update(activation="gelu"), "it was trained with activation"),
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_training_does_not_go_on_with_others(
    change, said, elsewhere, p2c, data, tmp_path, capsys
):
    folder = Path(shutil.copytree(p2c, tmp_path / "train"))
    file = the_file(folder)
    edit(file, change)
    before = file.read_bytes()
    out, flags = (tmp_path / "on", ("--resume", str(folder))) if elsewhere else (folder, ())
    assert run("P2C", data, out, flags=flags) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Training cannot go on from ") and said in line
    assert file.read_bytes() == before and not [*tmp_path.glob("on/*/model*")]


@pytest.mark.parametrize("rows", [torch.ones(3, 4, 128), torch.tensor(1.0), "rows"])
def test_rows_that_are_not_the_classes_are_one_line(rows, csc, data, tmp_path, capsys):
    """Of a file that is of its classes in another order."""
    folder = Path(shutil.copytree(csc, tmp_path / "train"))

    def spoil(checkpoint: dict) -> None:
        checkpoint["about"]["classnames"].reverse()
        checkpoint["state_dict"]["ctx"] = rows

    edit(the_file(folder), spoil)
    flags = ("--eval-only", "--model-dir", str(folder))
    assert run("CoOp", data, tmp_path / "test", *CSC, flags=flags) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "is of another method, architecture or config: ctx" in line


@pytest.mark.parametrize("unsaid", ["images", "about", "classnames", "clip"])
def test_a_training_of_before_these_were_noted_goes_on(unsaid, p2c, data, tmp_path, capsys):
    """As does one whose data lie elsewhere now."""
    folder, moved = Path(shutil.copytree(p2c, tmp_path / "train")), tmp_path / "moved"
    moved.symlink_to(data)

    def forget(checkpoint: dict) -> None:
        (checkpoint if unsaid in checkpoint else checkpoint["about"]).pop(unsaid)

    edit(the_file(folder), forget)
    assert run("P2C", moved, folder) == 0
    assert "Epochs done: 3" in capsys.readouterr().out


def test_a_training_whose_images_chance_picks_goes_on(data, tmp_path):
    """Of a program that leaves SEED at -1: other images are picked when it is started again."""
    cfg = train.setup_cfg(train.parse_args(arguments("CoOp", data, tmp_path / "out")))
    cfg.defrost()
    cfg.SEED = -1
    trainer = build_trainer(cfg)
    trainer.save_model(0, str(tmp_path / "out"))
    again = build_trainer(cfg)
    again.dm.dataset._train_x = again.dm.dataset.train_x[1:]
    assert again.resume_model_if_exist(str(tmp_path / "out")) == 1


def test_initial_rows_of_classes_go_to_their_classes(csc, data, tmp_path, capsys):
    """As does a test's."""
    folder = Path(shutil.copytree(csc, tmp_path / "train"))
    file = the_file(folder)
    rows = torch.load(file, weights_only=True)["state_dict"]["ctx"]

    def turned(checkpoint: dict) -> None:
        checkpoint["about"]["classnames"].reverse()
        checkpoint["state_dict"]["ctx"] = rows.flip(0)

    def other(checkpoint: dict) -> None:
        checkpoint["about"]["classnames"][3] = "teapot"

    edit(file, turned)
    start = ("MODEL.INIT_WEIGHTS", str(file), "OPTIM.LR", "0.0", "OPTIM.WARMUP_EPOCH", "-1")
    assert run("CoOp", data, tmp_path / "on", *CSC, *start) == 0
    assert torch.equal(
        torch.load(the_file(tmp_path / "on"), weights_only=True)["state_dict"]["ctx"], rows
    )
    edit(file, other)
    capsys.readouterr()
    assert run("CoOp", data, tmp_path / "other", *CSC, *start) == 1
    said = capsys.readouterr()
    assert "classes it was trained on" in said.out and "ctx left out" in said.out
    assert said.err.startswith("error: No weight in ")


# prompts.safetensors


@pytest.mark.parametrize(
    "given, kept", [("/home/me/b.pt", ""), ("https://x.org/b", "https://x.org/b")]
)
def test_an_export_has_no_paths_of_this_machine(given, kept):
    about = {"clip": {"file": "/home/me/b.pt"}}
    about["config"] = {"MODEL": {"BACKBONE": {"NAME": "ViT-B/16", "WEIGHTS": given}}}
    before = json.dumps(about)
    said = portable(about)
    assert "/home/me" not in json.dumps(said) and said["clip"]["file"] == "b.pt"
    assert said["config"]["MODEL"]["BACKBONE"] == {"NAME": "ViT-B/16", "WEIGHTS": kept}
    assert json.dumps(about) == before


@pytest.mark.parametrize("trainer", ["P2C", "ReBaPL_MaPLe"])
def test_prompts_are_the_checkpoints_bit_for_bit(trainer, data, tmp_path):
    opts = OF_REBAPL if trainer.startswith("ReBaPL") else ()
    folder = trained(trainer, data, tmp_path / "train", *opts)
    save_prompts(load_run(folder), tmp_path / "prompts.safetensors")
    of_file = torch.load(the_file(folder), weights_only=True)
    about, models = read_prompts(tmp_path / "prompts.safetensors")
    of_file["about"]["clip"]["file"] = "vit_tiny_8.safetensors"  # not where it is on this machine
    assert about == of_file["about"]
    [checkpoint] = models.values()

    def assert_same(a, b):
        if isinstance(a, Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b)
        elif isinstance(a, Mapping):
            assert a.keys() == b.keys()
            for key in a:
                assert_same(a[key], b[key])
        else:
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                assert_same(x, y)

    kept = ("state_dict", "samples") if trainer != "P2C" else ("state_dict",)
    assert_same({key: checkpoint[key] for key in kept}, {key: of_file[key] for key in kept})
    assert sorted(checkpoint) == sorted([*kept, "about"])
    assert torch.equal(logits(load_model(tmp_path)), logits(load_run(folder)))


@pytest.mark.parametrize("trainer", ["MMRL", "ReBaPL_MMRL"])
def test_mmrl_remembers_what_it_was_trained_on(trainer, data, tmp_path):
    """A test on another dataset reads the class token alone, also when its model was exported."""
    opts = OF_REBAPL if trainer.startswith("ReBaPL") else ()
    folder = trained(trainer, data, tmp_path / "train", *opts)
    other = ("DATASET.NAME", "ShapesCount", "DATASET.SUBSAMPLE_CLASSES", "all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShapesCount, "parts", {"train": 1, "val": 1, "test": 1})
        of_test = on_new_classes(folder, data, tmp_path / "test", trainer, *opts, *other)
    tester = load_model(of_test)
    assert not tester.model.fused and load_model(folder).model.fused
    save_prompts(tester, tmp_path / "prompts.safetensors")
    again = load_model(tmp_path)
    assert not again.model.fused and torch.equal(logits(again), logits(tester))


def test_a_flipped_bit_of_the_prompts_is_seen(p2c, tmp_path):
    """safetensors itself sees none in the numbers."""
    file = tmp_path / "prompts.safetensors"
    save_prompts(load_model(p2c), file)
    content = bytearray(file.read_bytes())
    content[-5] ^= 8
    file.write_bytes(content)
    with pytest.raises(Failure, match="damaged or no safetensors file: export it again"):
        load_model(tmp_path)


def test_names_that_are_no_text(p2c, tmp_path):
    """As of a folder whose name is not UTF-8."""
    odd = ["bad\udcff", "good"]
    save_prompts(load_model(p2c, odd), tmp_path / "prompts.safetensors")
    assert names(load_model(tmp_path)) == odd


def test_a_file_that_was_not_exported_here(tmp_path):
    from safetensors.torch import save_file

    save_file({"ctx": torch.zeros(2)}, tmp_path / "prompts.safetensors")
    with pytest.raises(Failure, match="does not say what it is"):
        load_model(tmp_path)


def test_a_card_tells_no_accuracy_of_an_older_model(tmp_path, capsys):
    train, test = tmp_path / "train", tmp_path / "test"
    files = {"net": ["model.pth.tar-1", hashlib.sha256(b"weights").hexdigest()]}
    model = {"folder": "../train", "epoch": None, "files": files}
    write(test, {"results.json": record(80.0, eval_only=True, model=model)})
    write(train / "net", {"model.pth.tar-1": "weights", "checkpoint": "model.pth.tar-1"})
    assert record_of(test)["metrics"]["accuracy"] == 80.0
    write(train / "net", {"model.pth.tar-1": "trained anew"})
    assert record_of(test) == {}
    assert "trained further, or anew, since this test: no accuracy" in capsys.readouterr().err
