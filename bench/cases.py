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
    "rivals": "The cloud's rivals: a training step",
    "rivals_eval": "The cloud's rivals: evaluation of a batch, text included",
    "rivals_memory": "The cloud's rivals: peak memory of a training step, above the model's",
}
NAMES = tuple(HEADINGS)
ONLY_ON = {"share": "cpu", "bf16": "cpu", "bf16_eval": "cpu", "capture": "cuda"}
IN_ALL_PRECISIONS = ("p2c", "eval", "capture")  # on a GPU; the others in the usual fp16
OF_RIVALS = ("rivals", "rivals_eval", "rivals_memory")  # in fp32: their references have no other

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
    draws: int = 0  # for an image, of what the rivals draw or are given, which is called:
    drawn: str = "draws"

    @property
    def is_rival(self) -> bool:
        """Whether the row is of the rivals' tables."""
        return self.table in OF_RIVALS

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is measured, not a training step."""
        return self.table.endswith("eval")

    def __str__(self) -> str:
        what = "evaluation" if self.evaluates else "step"
        sizes = f"{self.classes} classes, batch {self.batch}"
        sizes += f", {self.draws} {self.drawn}" if self.draws else ""
        return f"{self.method} {what}, {sizes}, {self.prec}"


# Method, batch size, draws and what these are. Published are more of them, which a loop over
# images and draws takes too long for.
RIVALS = [
    ("BayesianPrompt", 1, 2, "draws"),
    ("unconditional BayesianPrompt", 1, 2, "draws"),
    ("MMRL", 4, 0, ""),
    ("VaMP", 2, 1, "draw"),
    ("VaMP_MMRL", 2, 1, "draw"),
    ("EMPL", 1, 2, "chains of a step"),
    ("ReBaPL_MaPLe", 1, 32, "reference images"),
]
RIVALS_EVAL = [
    ("BayesianPrompt", 2, 5, "draws"),
    ("unconditional BayesianPrompt", 10, 5, "draws"),
    ("MMRL", 10, 0, ""),
    ("VaMP", 2, 5, "draws"),
    ("VaMP_MMRL", 2, 5, "draws"),
    ("EMPL", 2, 2, "chains of a step"),
    ("ReBaPL_MaPLe", 10, 3, "samples"),
]


def rivals(device: str, quick: bool, table: str) -> list[Case]:
    """The rows of one of the rivals' tables."""
    methods = RIVALS_EVAL if table.endswith("eval") else RIVALS
    if quick:  # few, of all kinds of steps or one of memory
        methods = [(m, b, min(n, 3), drawn) for m, b, n, drawn in methods]
        methods = methods[3:4] if table == "rivals_memory" else methods
    return [
        Case(table, method, count, batch, "fp32", device, arch_of(quick), n, drawn)
        for method, batch, n, drawn in methods
        for count in ((3,) if quick else (10, 100))
    ]


def arch_of(quick: bool) -> str:
    """Whose towers are measured."""
    return "tiny" if quick else "ViT-B/16"


def family(device: str, quick: bool, table: str) -> list[Case]:
    """The rows of a table of MaPLe, P2C or CoCoOp."""
    return [
        Case(table, method, count, batch, prec, device, arch_of(quick))
        for prec in precisions(table, device)
        for method, batch, counts in sizes(quick)[table]
        for count in counts
    ]


def sizes(quick: bool) -> dict[str, list[tuple[str, int, tuple[int, ...]]]]:
    """Of each of the family's tables: methods, batch sizes, numbers of classes."""
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
    here = [name for name in NAMES if name in only and ONLY_ON.get(name, device) == device]
    return [
        case
        for table in here
        for case in (rivals if table in OF_RIVALS else family)(device, quick, table)
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
