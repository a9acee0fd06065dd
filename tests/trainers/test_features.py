"""Kept image features (DATALOADER.FEATURES): the logits of a test with them are, bit for bit, those
without."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms import v2

import train
from clip.model import CLIP
from clip.weights import BUNDLED
from dassl.data import DatasetWrapper
from dassl.engine import TrainerX, build_trainer
from tests.clip.resnets import rn50_state_dict
from tests.runs import arguments, run
from tests.trainers.methods import build, shake
from trainers.base import CustomCLIP
from trainers.coop import CoOp
from trainers.frozen_clip import allow_tf32

LEAVE_IT_ALONE = (
    "ZeroshotCLIP ZeroshotCLIP2 CoOp CoOp_ATP CoCoOp CoCoOp_ATP KgCoOp ProGrad TCP "
    "BayesianPrompt EMPL ReBaPL_CoOp".split()
)
PROMPT_IT = "MaPLe MaPLe_ATP P2C PromptSRC MultiModalAdapter".split()
BATCH = "DATALOADER.TEST.BATCH_SIZE"  # of 64 test images; 24 leaves 16 for the last


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The sizes of the batches of images that the image tower has seen."""
    monkeypatch.setattr("clip.model.FEW", sys.maxsize)  # a batch is encoded at once
    sizes, encode = [], CLIP.encode_image
    monkeypatch.setattr(
        CLIP,
        "encode_image",
        lambda clip, x, *a, **k: sizes.append(len(x)) or encode(clip, x, *a, **k),
    )
    return sizes


def logits(trainer: TrainerX, folder: Path | str, split: str = "test") -> list[Tensor]:
    """Those of a test, by batch; its features are kept in `folder`."""
    trainer.cfg.defrost()
    trainer.cfg.DATALOADER.FEATURES = str(folder)
    got, process = [], trainer.evaluator.process
    trainer.evaluator.process = lambda mo, gt: got.append(mo) or process(mo, gt)
    trainer.test(split)
    trainer.evaluator.process = process
    return got


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def kept(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix != ".lock"]


def unread(monkeypatch) -> None:
    def refuse(self, idx):
        raise AssertionError("an image is read")

    monkeypatch.setattr(DatasetWrapper, "_read", refuse)


def test_all_methods_and_seeds_share_one_file(data, tmp_path, weights, encoded, monkeypatch):
    made = []
    for seed, name in enumerate(LEAVE_IT_ALONE):
        allow_tf32(True)  # each is a process of its own, where nobody has said yet what is allowed
        trainer = build(name, data, tmp_path / "out", weights, BATCH, "24", "SEED", str(seed))
        if hasattr(trainer, "model"):
            shake(trainer.model)
        expected = logits(trainer, "")
        assert [len(batch) for batch in expected] == [24, 24, 16]
        encoded.clear()
        with pytest.MonkeyPatch.context() as patch:
            if made:
                unread(patch)
            assert same(logits(trainer, tmp_path / "kept"), expected), name
        made += encoded
    assert made == [24, 24, 16] and len(kept(tmp_path / "kept")) == 1


@pytest.mark.parametrize("name", ["CoOp", "CoCoOp"])
def test_of_a_resnet(name, data, tmp_path):
    narrow = rn50_state_dict(text_layers=2, width=16, size=64)
    trainer = build(name, data, tmp_path, narrow, "MODEL.BACKBONE.NAME", "RN50", BATCH, "24")
    expected = logits(trainer, "")
    assert same(logits(trainer, tmp_path / "kept"), expected)  # made
    assert same(logits(trainer, tmp_path / "kept"), expected)  # found


@pytest.mark.parametrize("name", PROMPT_IT)
def test_who_prompts_the_image_tower_never_has_them(name, data, tmp_path, weights, encoded):
    trainer = build(name, data, tmp_path, weights)
    for _ in range(2):
        logits(trainer, tmp_path / "kept")
        assert sum(encoded[-1:]) == 64 and not (tmp_path / "kept").exists()
    assert trainer.features_key(trainer.test_loader) is None


class FlippedLearner(torch.nn.Module):
    """Looks at another image than it is given."""

    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def text_features(self, clip):
        return self.learner.text_features(clip)

    def image_features(self, clip, image):
        return self.learner.image_features(clip, image.flip(-1))


class FlippedModel(CustomCLIP):
    def forward(self, image):
        return super().forward(image.flip(-1))


class FlippedFeatures(CustomCLIP):
    def image_features(self, image):
        return super().image_features(image.flip(-1))


class FlippedInference(CoOp):
    def model_inference(self, image):
        return super().model_inference(image.flip(-1))


class FlippedBatch(CoOp):
    def parse_batch_test(self, batch):
        image, label = super().parse_batch_test(batch)
        return image.flip(-1), label


class FlippedSubclass:
    """A learner of CoOp's own class with another image tower."""

    def __init__(self, learner):
        class Subclass(type(learner)):
            def image_features(self, clip, image):
                return super().image_features(clip, image.flip(-1))

        learner.__class__ = Subclass


def overridden(trainer: TrainerX, by: type) -> None:
    """Makes a trainer of CoOp one of a subclass that says nothing about the image tower."""
    trainer.__class__ = by if issubclass(by, CoOp) else type("Subclass", (CoOp,), {})
    if by is FlippedLearner:
        trainer.model.learner = FlippedLearner(trainer.model.learner)
    elif by is FlippedSubclass:
        FlippedSubclass(trainer.model.learner)
    elif issubclass(by, CustomCLIP):
        trainer.model.__class__ = by


@pytest.mark.parametrize(
    "by",
    [
        FlippedLearner,
        FlippedSubclass,
        FlippedModel,
        FlippedFeatures,
        FlippedInference,
        FlippedBatch,
    ],
)
def test_a_subclass_that_says_nothing_gets_images(by, data, tmp_path, weights):
    trainer = build("CoOp", data, tmp_path, weights)
    before = logits(trainer, tmp_path / "kept")
    overridden(trainer, by)
    expected = logits(trainer, "")
    assert not same(expected, before) and same(logits(trainer, tmp_path / "kept"), expected)


@pytest.mark.parametrize("says", [{"frozen_image_tower": True}, {"frozen_image_tower": False}, {}])
def test_a_subclass_speaks_for_itself(says, data, tmp_path, weights):
    trainer = build("CoOp", data, tmp_path, weights)
    trainer.__class__ = type("Subclass", (CoOp,), says)
    logits(trainer, tmp_path / "kept")
    assert (tmp_path / "kept").exists() == any(says.values())


def wrapped(trainer: TrainerX) -> None:
    trainer.test_loader.dataset.__class__ = type("Wrapper", (DatasetWrapper,), {})


def transformed(trainer: TrainerX) -> None:
    dataset = trainer.test_loader.dataset
    dataset.transform = v2.Compose([*dataset.transform.transforms, v2.RandomHorizontalFlip()])


def learned(trainer: TrainerX) -> None:
    trainer.model.clip.visual.proj.requires_grad_()


@pytest.mark.parametrize("change", [wrapped, transformed, learned])
def test_other_images_and_a_tower_that_learns_have_no_kept_features(
    change, data, tmp_path, weights
):
    trainer = build("CoOp", data, tmp_path, weights)
    change(trainer)
    logits(trainer, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_in_a_random_order_there_are_none(data, tmp_path, weights):
    trainer = build("CoOp", data, tmp_path, weights, "DATALOADER.TEST.SAMPLER", "RandomSampler")
    logits(trainer, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "opts",
    [
        (BATCH, "32"),
        ("TRAINER.COOP.PREC", "bf16"),
        ("INPUT.INTERPOLATION", "nearest"),
        ("INPUT.PIXEL_MEAN", "[0.5,0.5,0.5]"),
        ("DATASET.SUBSAMPLE_CLASSES", "new"),
        ("MODEL.BACKBONE.WEIGHTS", "{}/other.safetensors"),
        ("MODEL.BACKBONE.ACTIVATION", "gelu"),
    ],
)
def test_what_makes_other_features_has_a_file_of_its_own(opts, data, tmp_path, encoded):
    weights = load_file(BUNDLED / "vit_tiny_8.safetensors")
    generator = torch.Generator().manual_seed(1)
    weights["visual.proj"] += torch.randn(weights["visual.proj"].shape, generator=generator).to(
        weights["visual.proj"]
    )
    save_file(weights, tmp_path / "other.safetensors")
    opts = tuple(word.format(tmp_path) for word in opts)

    def made(*opts: str) -> TrainerX:
        return build_trainer(
            train.setup_cfg(train.parse_args(arguments("KgCoOp", data, tmp_path / "out", *opts)))
        )

    logits(made(), tmp_path / "kept")
    expected = logits(made(*opts), "")
    assert (
        same(logits(made(*opts), tmp_path / "kept"), expected) and len(kept(tmp_path / "kept")) == 2
    )
    encoded.clear()
    assert same(logits(made(*opts), tmp_path / "kept"), expected) and not encoded


def test_threads_and_the_device_are_in_the_key(data, tmp_path, weights, monkeypatch):
    """And so are versions and code: each changes kernels, or may."""
    trainer = build("CoOp", data, tmp_path, weights)
    trainer.cfg.defrost()
    trainer.cfg.DATALOADER.FEATURES = "kept"
    first = trainer.features_key(trainer.test_loader)
    assert json.loads(json.dumps(first[0])) == first[0]
    changes = [
        ("torch.get_num_threads", lambda: 7),
        ("torch.__version__", "2.99"),
        ("torchvision.__version__", "0.99"),
        ("PIL.__version__", "99"),
        ("trainers.features.device_name", lambda _: "NVIDIA H100"),
        ("torch.backends.cpu.get_cpu_capability", lambda: "SVE"),
        ("trainers.features.code_of", lambda *_: "another encoder"),
        ("dassl.data.kept_images.code_of", lambda *_: "other transforms"),
    ]
    for name, value in changes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, value)
            assert trainer.features_key(trainer.test_loader) != first, name
    assert trainer.features_key(trainer.test_loader) == first


def test_a_changed_image_is_noticed(data, tmp_path, weights):
    shutil.copytree(data, tmp_path / "data")
    trainer = build("CoOp", tmp_path / "data", tmp_path / "out", weights)
    before = logits(trainer, "kept")
    path = Path(trainer.test_loader.dataset.data_source[40].impath)
    stat = path.stat()
    with Image.open(path) as image:
        image.rotate(180).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = logits(trainer, "kept")
    assert same(after, logits(trainer, "")) and not same(after, before)
    assert len(kept(tmp_path / "data" / "kept")) == 1


@pytest.mark.parametrize("fault", ["torn", "full", "folder"])
def test_a_file_that_cannot_be_used_changes_nothing(
    fault, data, tmp_path, weights, encoded, capsys
):
    trainer = build("KgCoOp", data, tmp_path / "out", weights, BATCH, "24")
    folder = tmp_path / "kept"
    expected = logits(trainer, folder)
    [path] = kept(folder)
    if fault == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    if fault == "full":
        path.rename(f"{path}.tmp")
        os.remove(f"{path}.tmp")
        os.symlink("/dev/full", f"{path}.tmp")
    if fault == "folder":
        shutil.rmtree(folder)
        folder.touch()
    capsys.readouterr()
    encoded.clear()
    assert same(logits(trainer, folder), expected) and encoded == [24, 24, 16]  # nothing twice
    said = {
        "torn": f"{path} is damaged",
        "full": f"Cannot write {path}",
        "folder": f"Cannot write to {folder}",
    }
    assert said[fault] in capsys.readouterr().out


def test_with_decoded_images_too(data, tmp_path, weights):
    trainer = build("TCP", data, tmp_path, weights, BATCH, "24")
    expected = logits(trainer, "")
    trainer.cfg.DATALOADER.TEST_CACHE = str(tmp_path / "crops")
    assert same(logits(trainer, ""), expected) and same(logits(trainer, ""), expected)
    assert trainer.recorder.test_from == "crops"
    assert (
        same(logits(trainer, tmp_path / "kept"), expected) and trainer.recorder.test_from == "crops"
    )
    assert (
        same(logits(trainer, tmp_path / "kept"), expected)
        and trainer.recorder.test_from == "features"
    )


def test_a_prompted_image_tower_has_decoded_images(data, tmp_path, weights):
    trainer = build("P2C", data, tmp_path, weights, BATCH, "24")
    expected = logits(trainer, "")
    trainer.cfg.DATALOADER.TEST_CACHE = str(tmp_path / "crops")
    for test_from in ("images", "crops"):
        assert same(logits(trainer, ""), expected) and trainer.recorder.test_from == test_from


# -- whole runs


def record(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def differs(a: dict, b: dict) -> list[str]:
    """What two records of equal results differ in, times and folders left out."""
    return [key for key in ("metrics", "per_class", "loss", "test_from") if a[key] != b[key]]


def test_best_val(data, tmp_path, encoded, capsys):
    """Validation images too are encoded once for all epochs and runs."""
    best = ("TEST.FINAL_MODEL", "best_val", BATCH, "24", "DATALOADER.TRAIN_X.BATCH_SIZE", "4")
    root = tmp_path / "data"
    shutil.copytree(data, root)
    tests = []
    for out, folder in ("without", ""), ("made", "kept"), ("found", "kept"):
        encoded.clear()
        assert run("CoOp", root, tmp_path / out, *best, "DATALOADER.FEATURES", folder) == 0
        tests.append([size for size in encoded if size > 4])  # training has batches of 4
    val, test = [16], [24, 24, 16]
    assert tests == [3 * val + test, val + test, []]
    runs = [record(tmp_path / out) for out in ("without", "made", "found")]
    assert not differs(runs[0], runs[1]) and differs(runs[0], runs[2]) == ["test_from"]
    assert runs[2]["test_from"] == "features" and runs[2]["images_per_second"]["test"] is None
    assert runs[1]["test_from"] == "images" and runs[1]["images_per_second"]["test"] > 0
    for name in ("model-best.pth.tar", "model.pth.tar-3"):
        files = [
            torch.load(tmp_path / out / "prompt_learner" / name) for out in ("without", "found")
        ]
        assert files[0]["val_result"] == files[1]["val_result"] and torch.equal(
            files[0]["state_dict"]["ctx"], files[1]["state_dict"]["ctx"]
        )
    assert f"{root}/kept/Shapes-val-" in capsys.readouterr().out
