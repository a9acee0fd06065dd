"""What is measured: the rows of the bench's tables, and a batch for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from open_clip import IMAGENET_CLASSNAMES
from torch import Tensor

from reference.weights import ARCHS

PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16", "amp")}
EUROSAT = (
    "Annual Crop Land|Forest|Herbaceous Vegetation Land|Highway or Road|Industrial Buildings|"
    "Pasture Land|Permanent Crop Land|Residential Buildings|River|Sea or Lake"
).split("|")

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
        """Whether an evaluation is measured, not a training step."""
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
    """Those that a table has on a device."""
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
