"""What is measured, and our side of it: the trainers as train.py makes them, without data."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from open_clip import IMAGENET_CLASSNAMES
from torch import Tensor

import train
import trainers.base
from dassl.engine import TRAINER_REGISTRY, TrainerX
from reference.weights import ARCHS

CONFIGS = {
    "MaPLe": "vit_b16_c2_ep5_batch4_2ctx",
    "P2C": "vit_b16_ep5_batch4",
    "CoCoOp": "vit_b16_c4_ep10_batch1_ctxv1",
}
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16", "amp")}
EUROSAT = (
    "Annual Crop Land|Forest|Herbaceous Vegetation Land|Highway or Road|Industrial Buildings|"
    "Pasture Land|Permanent Crop Land|Residential Buildings|River|Sea or Lake"
).split("|")
WITHOUT_NOISE = ("TRAINER.P2C.DPD.ENABLED", "False", "TRAINER.P2C.AUX.ENABLED", "False")

HEADINGS = {
    "maple": "MaPLe: a training step",
    "p2c": "P2C: a training step",
    "eval": "P2C: evaluation of a batch",
    "cocoop": "CoCoOp: a training step",
    "overhead": "P2C beside itself without noise and auxiliary loss",
    "share": "What is not the towers in a training step",
    "bf16": "P2C in bf16 beside fp32: a training step",
    "bf16_eval": "P2C in bf16 beside fp32: evaluation of a batch",
    "capture": "P2C's step as a CUDA graph beside the step computed as usual",
    "memory": "Peak memory of a training step, above the model's",
}
NAMES = tuple(HEADINGS)
ONLY_ON = {"share": "cpu", "bf16": "cpu", "bf16_eval": "cpu", "capture": "cuda"}
IN_ALL_PRECISIONS = ("p2c", "eval", "capture")  # on a GPU; the others in the usual fp16

Batch = dict[str, Tensor]  # img (B, 3, R, R), label (B,), domain (B,)
Step = Callable[[], Tensor]  # does something and gives its loss


@dataclass(frozen=True)
class Case:
    """A row of a table."""

    table: str
    method: str
    classes: int
    batch: int
    prec: str = "fp32"
    device: str = "cpu"
    arch: str = "ViT-B/16"

    @property
    def evaluates(self) -> bool:
        return self.table.endswith("eval")

    def __str__(self) -> str:
        what = "evaluation" if self.evaluates else "step"
        return f"{self.method} {what}, {self.classes} classes, batch {self.batch}, {self.prec}"


def sizes(quick: bool) -> dict[str, list[tuple[str, int, tuple[int, ...]]]]:
    """Of each table: methods, batch sizes, numbers of classes."""
    train = (2, 11) if quick else (5, 50, 500)
    few = train[:1] if quick else train[:2]
    images = 6 if quick else 100
    test = (3, 11) if quick else (10, 100, 1000)
    one = (3,) if quick else (10, 50, 100)
    eight = (3,) if quick else (50,)
    pairs = [("P2C", 4, few)]
    return {
        "maple": [("MaPLe", 4, train)],
        "p2c": [("P2C", 4, train)],
        "eval": [("P2C", images, test)],
        "cocoop": [("CoCoOp", 1, one), ("CoCoOp", 8, eight)],
        **dict.fromkeys(("overhead", "share", "bf16", "capture"), pairs),
        "bf16_eval": [("P2C", images, test[:1])],
        "memory": [("P2C", 4, train[1:] if quick else train), ("CoCoOp", 1, one)],
    }


def precisions(table: str, device: str) -> Sequence[str]:
    return PRECISIONS[device] if device == "cpu" or table in IN_ALL_PRECISIONS else ("fp16",)


def cases(device: str, quick: bool, only: Sequence[str] = NAMES) -> list[Case]:
    """All rows, table by table."""
    arch = "tiny" if quick else "ViT-B/16"
    here = [name for name in NAMES if name in only and ONLY_ON.get(name, device) == device]
    return [
        Case(table, method, count, batch, prec, device, arch)
        for table in here
        for prec in precisions(table, device)
        for method, batch, counts in sizes(quick)[table]
        for count in counts
    ]


def class_names(count: int) -> list[str]:
    """EuroSAT's, the base ones first, or if these are too few ImageNet's."""
    return EUROSAT[:count] if count <= len(EUROSAT) else list(IMAGENET_CLASSNAMES[:count])


def make_batch(case: Case) -> Batch:
    """Random images and labels, on the device."""
    generator = torch.Generator().manual_seed(1)
    size = ARCHS[case.arch].image_size
    image = torch.randn(case.batch, 3, size, size, generator=generator)
    label = torch.randint(case.classes, (case.batch,), generator=generator)
    batch = {"img": image, "label": label, "domain": torch.zeros_like(label)}
    return {name: value.to(case.device) for name, value in batch.items()}


class NoData:
    """Put before a trainer's class, it gives class names in the place of a dataset."""

    classnames: list[str]

    def build_data_loader(self) -> None:
        self.num_classes = len(self.classnames)
        self.lab2cname = dict(enumerate(self.classnames))
        dataset = SimpleNamespace(classnames=self.classnames)
        self.dm = SimpleNamespace(dataset=dataset, num_classes=self.num_classes)
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None


def our_trainer(case: Case, weights: Mapping[str, Tensor], *opts: str) -> TrainerX:
    """The method's trainer as published, ready for a step of its first epoch."""
    arch = ARCHS[case.arch]
    node = f"TRAINER.{case.method.upper()}"
    settings = {
        # Whose attributes are learned.
        "DATASET.NAME": "EuroSAT" if case.classes <= len(EUROSAT) else "ImageNet",
        "USE_CUDA": case.device == "cuda",
        "INPUT.SIZE": f"({arch.image_size},{arch.image_size})",
        f"{node}.PREC": case.prec,
        "SEED": 1,
        "VERBOSE": False,
    }
    if case.method != "CoCoOp":
        settings[f"{node}.PROMPT_DEPTH"] = min(9, arch.text_layers)
    flags = ["--trainer", case.method]
    flags += ["--config-file", f"configs/trainers/{case.method}/{CONFIGS[case.method]}.yaml"]
    words = [str(word) for pair in settings.items() for word in pair]
    cfg = train.setup_cfg(train.parse_args([*flags, *words, *opts]))
    bases = (NoData, TRAINER_REGISTRY.get(case.method))
    without_data = type(case.method, bases, {"classnames": class_names(case.classes)})
    with (
        patch.object(trainers.base, "find_weights", lambda *_: Path(__file__)),
        patch.object(trainers.base, "read_state_dict", lambda _: dict(weights)),
    ):
        trainer = without_data(cfg)
    trainer.epoch = trainer.batch_idx = 0
    trainer.num_batches = sys.maxsize  # an epoch that does not end
    trainer.before_epoch()
    trainer.set_model_mode("train")
    return trainer


@contextmanager
def without_noise(trainer: TrainerX) -> Iterator[None]:
    """P2C's text prompts are clean, so that its loss can be compared."""
    cfg = trainer.cfg
    cfg.defrost()
    # Not ENABLED False: a CUDA graph captured meanwhile would stay without noise.
    before = cfg.TRAINER.P2C.DPD.SIGMA_MAX
    cfg.TRAINER.P2C.DPD.SIGMA_MAX = 0.0
    trainer.before_epoch()
    yield
    cfg.TRAINER.P2C.DPD.SIGMA_MAX = before
    trainer.before_epoch()


def our_step(trainer: TrainerX, batch: Batch) -> Step:
    """What computes a case our way: a training step."""
    return lambda: trainer.forward_backward(batch)["loss"]


def our_evaluation(trainer: TrainerX, batch: Batch) -> Step:
    """The same of an evaluation, whose text features are kept from the batch before."""
    trainer.set_model_mode("eval")

    @torch.no_grad()
    def evaluate() -> Tensor:
        return F.cross_entropy(trainer.model_inference(batch["img"]).float(), batch["label"])

    return evaluate
