"""Ours beside the plain computation, on the same weights and batches, in one run: tables for
docs/BENCHMARKS.md.

The plain path is what upstream's code does: every class's whole sentence of 77 tokens in every
block, every image token in every block, nn.MultiheadAttention, the text features again for every
batch, CoCoOp one image after the other. It is reference/ on random weights. Ours are the
trainers as train.py makes them, without data. Both compute the same loss, which is checked for
every row.

Names for --only:
  maple, p2c  a training step: forward, backward, optimizer
  eval        P2C on a batch of 100 images; ours has its text features from the batch before
  cocoop      a training step with 1 image, and ours with 8 at once beside the plain one's image by image
  overhead    a step of P2C beside one of itself without noise and auxiliary loss
  memory      what a training step takes beyond the model, each in a process of its own
  share       how much of our step is not the two towers (on the CPU)
  capture     our step as a CUDA graph beside the same step computed as usual (on a GPU)
  bf16        our step in bf16 beside the one in fp32 (on the CPU); bf16_eval: our evaluation
"""

import argparse
import ctypes
import gc
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from open_clip import IMAGENET_CLASSNAMES
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import train
import trainers.frozen_clip
from clip.frozen import linear
from dassl.commands import OneLineParser
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.engine.record import commit
from dassl.utils.errors import Failure, UsageError
from reference import cocoop_plain, maple_plain, p2c_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import as_leaves, class_prompt, tokenise
from reference.weights import ARCHS, Arch, openai_state_dict
from trainers.atprompt import attribute_words

CONFIGS = {
    "MaPLe": "vit_b16_c2_ep5_batch4_2ctx",
    "P2C": "vit_b16_ep5_batch4",
    "CoCoOp": "vit_b16_c4_ep10_batch1_ctxv1",
}
# What stays, frozen, between the context and the name: MaPLe learns two vectors of "a photo of a".
FROZEN_WORDS = {"MaPLe": "of a", "P2C": "", "CoCoOp": ""}
METHODS = {"maple": "MaPLe", "cocoop": "CoCoOp"}  # of the tables that are not P2C's
NAMES = (
    "maple",
    "p2c",
    "eval",
    "cocoop",
    "overhead",
    "share",
    "bf16",
    "bf16_eval",
    "capture",
    "memory",
)
ONLY_ON = {"share": "cpu", "bf16": "cpu", "bf16_eval": "cpu", "capture": "cuda"}
PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16", "amp")}
IN_ALL = (
    "p2c",
    "eval",
    "capture",
)  # tables that a GPU has in all of them, the others in the usual fp16
# Relative difference of the two losses; half precision rounds the features to three digits and the
# logits amplify that.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.05, "amp": 0.05}
EUROSAT = (
    "Annual Crop Land|Forest|Herbaceous Vegetation Land|Highway or Road|Industrial Buildings|"
    "Pasture Land|Permanent Crop Land|Residential Buildings|River|Sea or Lake"
).split("|")
WITHOUT_NOISE = ("TRAINER.P2C.DPD.ENABLED", "False", "TRAINER.P2C.AUX.ENABLED", "False")
LONG = (
    1e12  # FLOPs of a plain step from which a CPU measures two rounds, the first of them the check
)
ROUND = 0.5  # seconds of a GPU's round, of at most 20 steps
MANY = 3  # times as many rounds for two things of almost the same length

Batch = dict[str, Tensor]  # img (B, 3, R, R), label (B,), domain (B,)
Step = Callable[[], Tensor]  # does something and gives its loss
Count = tuple[float, float]  # FLOPs of matrix products with weights, FLOPs of attention


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

    def __str__(self) -> str:
        what = "evaluation" if self.table.endswith("eval") else "step"
        return f"{self.method} {what}, {self.classes} classes, batch {self.batch}, {self.prec}"


def cases(device: str, quick: bool, only: Sequence[str] = NAMES) -> list[Case]:
    """All rows, table by table."""
    arch, images, train, test, pairs = "ViT-B/16", 100, (5, 50, 500), (10, 100, 1000), (5, 50)
    one, eight, full = (10, 50, 100), (50,), (5, 50, 500)
    if quick:
        arch, images, train, test, pairs, one, eight, full = (
            "tiny",
            6,
            (2, 11),
            (3, 11),
            (2,),
            (3,),
            (3,),
            (11,),
        )
    sizes = {
        "maple": [(n, 4) for n in train],
        "p2c": [(n, 4) for n in train],
        "eval": [(n, images) for n in test],
        "cocoop": [*((n, 1) for n in one), *((n, 8) for n in eight)],
        "overhead": [(n, 4) for n in pairs],
        "share": [(n, 4) for n in pairs],
        "bf16": [(n, 4) for n in pairs],
        "bf16_eval": [(n, images) for n in test[:1]],
        "capture": [(n, 4) for n in pairs],
    }

    def precisions(table: str) -> Sequence[str]:
        return PRECISIONS[device] if device == "cpu" or table in IN_ALL else ("fp16",)

    made = [
        Case(table, METHODS.get(table, "P2C"), *size, prec, device, arch)
        for table in sizes
        if ONLY_ON.get(table, device) == device
        for prec in precisions(table)
        for size in sizes[table]
    ]
    for method, batch, counts in (("P2C", 4, full), ("CoCoOp", 1, one)):
        made += [
            Case("memory", method, n, batch, prec, device, arch)
            for prec in precisions("memory")
            for n in counts
        ]
    return [c for c in made if c.table in only]


def class_names(count: int) -> list[str]:
    """EuroSAT's, the base ones first, or if these are too few ImageNet's."""
    return EUROSAT[:count] if count <= len(EUROSAT) else list(IMAGENET_CLASSNAMES[:count])


def make_batch(case: Case) -> Batch:
    """Random images and labels, on the device."""
    generator, size = torch.Generator().manual_seed(1), ARCHS[case.arch].image_size
    image = torch.randn(case.batch, 3, size, size, generator=generator)
    label = torch.randint(case.classes, (case.batch,), generator=generator)
    batch = {"img": image, "label": label, "domain": torch.zeros_like(label)}
    return {name: value.to(case.device) for name, value in batch.items()}


# Ours


class NoData:
    """In a trainer's bases: class names instead of a dataset."""

    classnames: list[str]

    def build_data_loader(self) -> None:
        self.num_classes, self.lab2cname = len(self.classnames), dict(enumerate(self.classnames))
        self.dm = SimpleNamespace(
            dataset=SimpleNamespace(classnames=self.classnames), num_classes=self.num_classes
        )
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None


def our_trainer(case: Case, weights: Mapping[str, Tensor], *opts: str) -> TrainerX:
    """The method's trainer with its published settings, ready for a step of its first epoch."""
    size, node = (
        ARCHS[case.arch].image_size,
        "COCOOP" if case.method == "CoCoOp" else case.method.upper(),
    )
    depth = min(9, ARCHS[case.arch].text_layers)
    opts = (
        "INPUT.SIZE",
        f"({size},{size})",
        f"TRAINER.{node}.PREC",
        case.prec,
        "SEED",
        "1",
        "VERBOSE",
        "False",
        *opts,
    )
    if case.method != "CoCoOp":
        opts = (f"TRAINER.{node}.PROMPT_DEPTH", str(depth), *opts)
    dataset = "EuroSAT" if case.classes <= len(EUROSAT) else "ImageNet"  # says which attributes
    config = f"configs/trainers/{case.method}/{CONFIGS[case.method]}.yaml"
    arguments = ["--trainer", case.method, "--config-file", config, "DATASET.NAME", dataset]
    cfg = train.setup_cfg(
        train.parse_args([*arguments, "USE_CUDA", str(case.device == "cuda"), *opts])
    )
    method = TRAINER_REGISTRY.get(case.method)
    own = {"classnames": class_names(case.classes), "graphed": method.graphed}
    kind = type(case.method, (NoData, method), own)
    with (
        patch.object(trainers.frozen_clip, "find_weights", lambda *_: Path(__file__)),
        patch.object(trainers.frozen_clip, "read_state_dict", lambda _: dict(weights)),
    ):
        trainer = kind(cfg)
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
    before, cfg.TRAINER.P2C.DPD.SIGMA_MAX = cfg.TRAINER.P2C.DPD.SIGMA_MAX, 0.0
    trainer.before_epoch()
    yield
    cfg.TRAINER.P2C.DPD.SIGMA_MAX = before
    trainer.before_epoch()


def our_step(trainer: TrainerX, batch: Batch) -> Step:
    return lambda: trainer.forward_backward(batch)["loss"]


def our_evaluation(trainer: TrainerX, batch: Batch) -> Step:
    trainer.set_model_mode("eval")

    @torch.no_grad()
    def evaluate() -> Tensor:
        return F.cross_entropy(trainer.model_inference(batch["img"]).float(), batch["label"])

    return evaluate


# The plain path


class Plain:
    """A method as upstream computes it, from the same start as a trainer of ours."""

    def __init__(self, case: Case, weights: Mapping[str, Tensor], trainer: TrainerX):
        self.case, self.learner = case, trainer.model.learner
        self.clip = PlainCLIP(weights, trainers.frozen_clip.PRECISIONS[case.prec]).to(case.device)
        for module in self.clip.modules():
            if isinstance(
                module, nn.MultiheadAttention
            ):  # upstream asks for no weights, so torch may take a kernel
                module.register_forward_pre_hook(
                    lambda _, a, kw: (a, kw | {"need_weights": False}), with_kwargs=True
                )
        self.prompts = as_leaves(dict(self.learner.named_parameters()))
        first = trainer.optim.param_groups[0]
        options = {key: first[key] for key in ("lr", "momentum", "weight_decay")}
        self.optim = torch.optim.SGD(self.prompts.values(), **options)
        self.scaler = torch.amp.GradScaler(case.device, enabled=case.prec == "amp")
        self.cfg = trainer.cfg
        self.write_sentences(attribute_words(trainer.cfg))

    def write_sentences(self, attributes: Sequence[str]) -> None:
        """All classes' sentences, once as upstream does, and where the learned vectors go."""
        words = FROZEN_WORDS[self.case.method]
        with torch.device(self.case.device):
            names = class_names(self.case.classes)
            sentences = [
                class_prompt(self.clip, self.prompts, name, attributes, words) for name in names
            ]
            self.embeddings = torch.stack([s.embeddings for s in sentences]).detach()
            self.eot = torch.tensor([s.eot for s in sentences])
        self.where, at = {}, 1
        for k, attribute in enumerate(attributes, start=1):
            self.where[f"ctx_att{k}"] = at
            at += len(self.prompts[f"ctx_att{k}"]) + len(tokenise(attribute))
        self.where["ctx"] = at
        self.prefix = at + len(self.prompts["ctx"]) + len(tokenise(words))
        self.suffixes = [s.eot + 1 - self.prefix for s in sentences]

    def text(
        self, vectors: Mapping[str, Tensor], deep: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """(C, D), not normalised, of the sentences with these vectors (N, W) in them."""
        pieces, at = [], 0
        for name, start in self.where.items():
            own = vectors[name].to(self.clip.dtype).expand(len(self.embeddings), -1, -1)
            pieces += [self.embeddings[:, at:start], own]
            at = start + own.shape[1]
        sentences = torch.cat([*pieces, self.embeddings[:, at:]], dim=1)
        deep = {block: (self.where["ctx"], p) for block, p in (deep or {}).items()}
        return self.clip.text_tower(sentences, self.eot, deep)

    def logits(self, image: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
        """(B, C) of MaPLe and P2C, whose text prompts are `vectors`."""
        text = self.text(vectors, maple_plain.deep_text_prompts(self.prompts))
        return self.clip.logits(
            maple_plain.image_features(self.clip, self.prompts, image), text
        ).float()

    def conditional_logits(self, image: Tensor) -> Tensor:
        """(1, C) of CoCoOp."""
        feature = self.clip.encode_image(image)[0]
        shift = cocoop_plain.bias(self.prompts, (feature / feature.norm()).float())
        return self.clip.logits(
            feature[None], self.text({"ctx": self.prompts["ctx"] + shift})
        ).float()

    def losses(self, image: Tensor, label: Tensor) -> Iterator[Tensor]:
        """The loss, or CoCoOp's images' shares of it."""
        if self.case.method == "CoCoOp":
            for i in range(len(image)):
                logits = self.conditional_logits(image[i : i + 1])
                yield F.cross_entropy(logits, label[i : i + 1]) / len(image)
            return
        if self.case.method == "MaPLe":
            yield F.cross_entropy(self.logits(image, self.prompts), label)
            return
        dpd, aux = self.cfg.TRAINER.P2C.DPD, self.cfg.TRAINER.P2C.AUX
        vectors = self.prompts
        if dpd.ENABLED:  # a draw is no part of the comparison: the same code for both sides
            sigma = p2c_plain.sigma_at_epoch(
                dpd.SCHEDULE, 0, self.cfg.OPTIM.MAX_EPOCH, dpd.SIGMA_MAX
            )
            vectors = {
                name: self.prompts[name] + sigma * self.learner.noise(self.prompts[name])
                for name in self.where
            }
        loss = F.cross_entropy(self.logits(image, vectors), label)
        if aux.ENABLED:
            eta = aux.SIGMA * torch.randn_like(self.prompts["ctx"])
            loss = loss + aux.LAMBDA * p2c_plain.auxiliary_loss(self.prompts, eta)
        yield loss

    def autocast(self):
        return (
            torch.autocast(self.case.device, torch.float16)
            if self.case.prec == "amp"
            else nullcontext()
        )

    def step(self, batch: Batch) -> Step:
        def step() -> Tensor:
            total = torch.zeros((), device=self.case.device)
            self.optim.zero_grad()
            losses = self.losses(batch["img"], batch["label"])
            while True:
                with self.autocast():
                    loss = next(losses, None)
                if loss is None:
                    break
                self.scaler.scale(loss).backward()
                total += loss.detach()
            self.scaler.step(self.optim)
            self.scaler.update()
            return total

        return step

    def evaluation(self, batch: Batch) -> Step:
        @torch.no_grad()
        def evaluate() -> Tensor:
            with self.autocast():
                return F.cross_entropy(self.logits(batch["img"], self.prompts), batch["label"])

        return evaluate


def pair(case: Case, weights: Mapping[str, Tensor]) -> tuple[Plain, TrainerX, tuple[Step, Step]]:
    """What computes a case plainly and what does so our way, and a step of each."""
    trainer = our_trainer(case, weights)
    plain, batch = Plain(case, weights, trainer), make_batch(case)
    if case.table == "eval":
        return plain, trainer, (plain.evaluation(batch), our_evaluation(trainer, batch))
    return plain, trainer, (plain.step(batch), our_step(trainer, batch))


def check(case: Case, trainer: TrainerX, steps: tuple[Step, Step]) -> tuple[float, float]:
    """The first round: seconds of both, whose losses are equal. Raises: Failure if they are not."""
    losses: list[Tensor] = []
    with without_noise(trainer):
        first, second = (seconds_of(lambda s=s: losses.append(s()), case.device, 1) for s in steps)
    expected, loss = map(float, losses)
    if not abs(loss - expected) <= TOLERANCE[case.prec] * abs(expected):
        raise Failure(
            f"{case}: the plain path's loss is {expected:.6f}, ours {loss:.6f}: they differ"
        )
    return first, second


# The floor


def text_count(prefix: int, suffixes: Sequence[int], arch: Arch) -> Count:
    """FLOPs of classes behind a shared prefix, forward; of the last block only what the EOTs
    need."""
    width, tokens = arch.text_width, prefix + sum(suffixes)
    looks = prefix * (prefix + 1) / 2 + sum(n * prefix + n * (n + 1) / 2 for n in suffixes)
    linear = (arch.text_layers - 1) * 24 * width**2 * tokens + width**2 * (
        4 * tokens + 20 * len(suffixes)
    )
    last_looks = sum(prefix + n for n in suffixes)
    return linear, 4 * width * ((arch.text_layers - 1) * looks + last_looks)


def image_count(prompts: int, arch: Arch) -> Count:
    """FLOPs of an image, forward; of the last block only what the class token needs."""
    width, patches = arch.vision_width, (arch.image_size // arch.patch_size) ** 2
    tokens, blocks = patches + 1 + prompts, arch.vision_layers - 1
    linear = (
        width**2 * (24 * blocks * tokens + 4 * tokens + 20)
        + 6 * patches * arch.patch_size**2 * width
    )
    return linear, 4 * width * (blocks * tokens**2 + tokens)


def floor_flops(case: Case, plain: Plain) -> float:
    """FLOPs that must be done: both towers forward, and in training backward to the prompts.

    The weights are frozen, so backward a product with them costs as much as forward, and attention
    twice as much. CoCoOp's image tower has no backward pass and its text tower has every image's
    prefix.
    """
    arch, shifted = ARCHS[case.arch], case.method == "CoCoOp"
    text = [
        n * (case.batch if shifted else 1) for n in text_count(plain.prefix, plain.suffixes, arch)
    ]
    image = [n * case.batch for n in image_count(0 if shifted else len(plain.prompts["ctx"]), arch)]
    if case.table == "eval":
        return sum(image)  # the text features are there
    both = [2 * text[0], 3 * text[1]]
    return sum(both) + (sum(image) if shifted else 2 * image[0] + 3 * image[1])


def plain_flops(case: Case) -> float:
    """About what the plain path does in a step, for the time left and the number of rounds."""
    arch, forward_and_backward = ARCHS[case.arch], 1 if case.table.endswith("eval") else 2
    sentences = case.classes * (case.batch if case.method == "CoCoOp" else 1)
    text = 77 * sentences * 24 * arch.text_width**2 * arch.text_layers
    return forward_and_backward * (text + case.batch * sum(image_count(2, arch)))


def matrix_rate(device: str, prec: str, quick: bool) -> float:
    """FLOP/s of the best of a few products of the towers' shapes."""
    dtype = torch.float16 if prec == "amp" else trainers.frozen_clip.PRECISIONS[prec]
    rows, repeats, count = (512, 2, 2) if quick else (4096, 5, 100 if device == "cuda" else 5)
    best = 0.0
    for width, hidden in ((512, 2048), (2048, 512), (768, 3072), (3072, 768)):
        x = torch.randn(rows, width, device=device, dtype=dtype)
        weight = torch.randn(hidden, width, device=device, dtype=dtype)
        bias = weight[:, 0].clone()
        product = partial(linear, x, weight, bias)  # as the towers do it
        seconds = min(seconds_of(product, device, count) for _ in range(repeats))
        best = max(best, 2 * rows * width * hidden / seconds)
    return best


# Measuring


def seconds_of(step: Callable[[], object], device: str, count: int) -> float:
    """Of one of `count` calls behind each other, until the device is done."""
    gc.collect()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / count


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def alternate(
    first: Step, second: Step, rounds: int, device: str
) -> tuple[list[float], list[float]]:
    """Seconds of both in each round; who goes first changes, so that a machine that slows down
    favours neither."""
    counts = [1, 1]
    if device == "cuda":  # of whose steps the host is ahead
        for side, step in enumerate((first, second)):
            seconds_of(step, device, 3)  # more of a warm-up: graphs are captured, algorithms chosen
            counts[side] = max(1, min(20, int(ROUND / seconds_of(step, device, 1))))
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        for side in (1, 0) if i % 2 == 0 else (0, 1):
            seconds[side].append(seconds_of((first, second)[side], device, counts[side]))
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> str:
    """Round by round: min / median / max."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    digits = 2 if median(values) < 100 else 0
    return " / ".join(f"{v:.{digits}f}" for v in (min(values), median(values), max(values)))


def ms(seconds: Sequence[float]) -> str:
    value = 1000 * median(seconds)
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def is_long(case: Case) -> bool:
    return case.device == "cpu" and plain_flops(case) > LONG


@dataclass(frozen=True)
class Machine:
    """What rows need beside their case."""

    weights: Mapping[str, Tensor]
    rates: Mapping[str, float]  # precision -> FLOP/s
    repeats: int
    quick: bool


def time_row(case: Case, machine: Machine) -> dict[str, str]:
    plain, trainer, steps = pair(case, machine.weights)
    first = check(case, trainer, steps)
    if is_long(case):  # so long that a first round needs no warm-up
        before, after = alternate(*steps, min(2, machine.repeats) - 1, case.device)
        before, after = [first[0], *before], [first[1], *after]
    else:
        before, after = alternate(*steps, machine.repeats, case.device)
    floor = floor_flops(case, plain) / machine.rates[case.prec]
    return {
        "measurement": str(case),
        "plain ms": ms(before),
        "ours ms": ms(after),
        "plain / ours: min / median / max": ratios(before, after),
        "plain images/s": f"{case.batch / median(before):.1f}",
        "ours images/s": f"{case.batch / median(after):.1f}",
        "floor ms": ms([floor]),
        "ours / floor": f"{median(after) / floor:.2f}",
    }


def overhead_row(case: Case, machine: Machine) -> dict[str, str]:
    batch = make_batch(case)
    whole, baseline = (
        our_step(our_trainer(case, machine.weights, *o), batch) for o in ((), WITHOUT_NOISE)
    )
    whole(), baseline()  # warm-up
    with_noise, without = alternate(whole, baseline, MANY * machine.repeats, case.device)
    return {
        "measurement": str(case),
        "baseline ms": ms(without),
        "P2C ms": ms(with_noise),
        "P2C / baseline: min / median / max": ratios(with_noise, without),
    }


def capture_row(case: Case, machine: Machine) -> dict[str, str]:
    batch = make_batch(case)
    usual, captured = (our_trainer(case, machine.weights) for _ in range(2))
    usual.compute.refused = True
    steps = our_step(usual, batch), our_step(captured, batch)

    def first_of_an_epoch() -> None:
        captured.compute.begin_epoch()
        steps[1]()

    before, after = alternate(*steps, MANY * machine.repeats, case.device)
    if captured.compute.refused:
        raise Failure(f"{case}: its steps could not be replayed")
    proofs = [seconds_of(first_of_an_epoch, case.device, 1) for _ in range(MANY * machine.repeats)]
    return {
        "measurement": str(case),
        "usual ms": ms(before),
        "graph ms": ms(after),
        "usual / graph: min / median / max": ratios(before, after),
        "first step of an epoch ms": ms(proofs),
    }


def towers_alone(trainer: TrainerX, batch: Batch) -> Step:
    """Forward and backward of the two towers with the arguments that a step gives them, and nothing
    else."""
    model, calls = trainer.model.clip, []

    def recorded(tower: Callable) -> Callable:
        def call(*args, **kwargs):
            calls.append((tower, args, kwargs))
            return tower(*args, **kwargs)

        return call

    with (
        patch.object(model, "encode_image", recorded(model.encode_image)),
        patch.object(model, "encode_prompts", recorded(model.encode_prompts)),
    ):
        trainer.loss(batch["img"], batch["label"])
    if len(calls) != 2:
        raise Failure(
            f"a step calls CLIP's towers {len(calls)} times, not once each: their share cannot be told"
        )

    def leaf(x: Tensor) -> Tensor:
        return x.detach().requires_grad_(x.requires_grad)

    def towers() -> Tensor:
        outputs = [
            tower(*tree_map_only(Tensor, leaf, a), **tree_map_only(Tensor, leaf, kw))
            for tower, a, kw in calls
        ]
        torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
        return outputs[0].sum().detach()

    return towers


def share_row(case: Case, machine: Machine) -> dict[str, str]:
    trainer, batch = our_trainer(case, machine.weights), make_batch(case)
    step, towers = our_step(trainer, batch), towers_alone(trainer, batch)
    step(), towers()  # warm-up
    whole, part = alternate(step, towers, machine.repeats, case.device)
    rest = median(w - p for w, p in zip(whole, part, strict=True))
    return {
        "measurement": str(case),
        "step ms": ms(whole),
        "towers ms": ms(part),
        "rest ms": f"{1000 * rest:.1f}",
        "share of the step": f"{100 * rest / median(whole):.1f}%",
    }


def bf16_row(case: Case, machine: Machine) -> dict[str, str]:
    batch, make = make_batch(case), our_evaluation if case.table.endswith("eval") else our_step
    steps = [
        make(our_trainer(replace(case, prec=prec), machine.weights), batch)
        for prec in ("fp32", "bf16")
    ]
    for step in steps:
        step()  # warm-up
    fp32, bf16 = alternate(*steps, machine.repeats, case.device)
    return {
        "measurement": str(case),
        "fp32 ms": ms(fp32),
        "bf16 ms": ms(bf16),
        "fp32 / bf16: min / median / max": ratios(fp32, bf16),
    }


# Memory


def memory_row(case: Case, machine: Machine) -> dict[str, str]:
    if case.device == "cuda":  # whose allocator counts exactly
        plain, ours = (memory_of(case, side, machine.weights) for side in ("plain", "ours"))
    else:
        plain, ours = (memory_in_a_process(case, side, machine.quick) for side in ("plain", "ours"))
    name = {"measurement": str(case)}
    return name | {
        "plain MB": f"{plain:.0f}",
        "ours MB": f"{ours:.0f}",
        "plain / ours": f"{plain / ours:.1f}",
    }


def memory_in_a_process(case: Case, side: str, quick: bool) -> float:
    """MB of a case's first step on that side, in a fresh process. Raises: Failure if it does not
    live to say so."""
    words = [case.method, str(case.classes), str(case.batch), case.prec, side]
    command = [
        sys.executable,
        "-m",
        "bench.steps",
        case.device,
        *(["--quick"] if quick else []),
        "--memory-of",
    ]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    if done.returncode:
        last = (
            done.stderr.strip().splitlines() or ["it was killed, as happens when memory is short"]
        )[-1]
        raise Failure(
            f"{case}: measuring the {side} path's memory ended with {done.returncode}: {last}"
        )
    return float(done.stdout.split()[-1])


def memory_of(case: Case, side: str, weights: Mapping[str, Tensor]) -> float:
    """MB that the peak of a step is above what was in use before it. On a CPU: resident memory, as
    Linux counts it."""
    for step in pair(replace(case, arch="tiny", classes=2), openai_state_dict("tiny"))[2]:
        step()  # what torch loads and takes for its first step of any size
    kept = pair(case, weights)
    step = kept[2][("plain", "ours").index(side)]
    gc.collect()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(
            0
        )  # what has been freed is given back, else the step would have it for nothing
    with suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak so far is forgotten
    with open("/proc/self/statm") as f:
        before = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    step()
    with open("/proc/self/status") as f:  # getrusage's peak is the parent's, if that had more
        [peak] = [int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:")]
    return (peak - before) / 2**20


# The program

ROWS = {
    "overhead": overhead_row,
    "share": share_row,
    "bf16": bf16_row,
    "bf16_eval": bf16_row,
    "capture": capture_row,
    "memory": memory_row,
}  # others: time_row
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


def about(device: str, rates: Mapping[str, float], argv: Sequence[str]) -> str:
    """Where and with what this was measured."""
    with suppress(OSError), open("/proc/cpuinfo") as f:
        models = {line.split(":")[1].strip() for line in f if line.startswith("model name")}
    cpu = ", ".join(models) or platform.processor()
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none used"
    code = commit()
    state = (
        f"{str(code['commit'])[:12]}{' with changes' if code['dirty'] else ''}"
        if code.get("commit")
        else "unknown"
    )
    rate = ", ".join(f"{prec} {flops / 1e12:.3g}" for prec, flops in rates.items())
    return (
        f"`bash scripts/bench.sh {shlex.join(argv)}`, {date.today()}. CPU: {cpu}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; GPU: {gpu}; Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}; commit {state}. Matrix products, TFLOP/s: {rate}."
    )


def run(todo: Sequence[Case], machine: Machine) -> None:
    """Measures and prints; each table as soon as it is complete."""

    def work(case: Case) -> float:
        many = 1 + MANY * machine.repeats
        rounds = {"memory": 1, "overhead": many, "capture": many}
        if case.table in (
            *ONLY_ON,
            "overhead",
        ):  # two of ours, each about a plain step with few classes
            return (
                2
                * rounds.get(case.table, 1 + machine.repeats)
                * plain_flops(replace(case, classes=5))
            )
        ours = plain_flops(replace(case, classes=1))
        return (plain_flops(case) + ours) * rounds.get(
            case.table, 2 if is_long(case) else 1 + machine.repeats
        )

    left, done, start, rows = sum(map(work, todo)), 0.0, time.monotonic(), []
    for i, case in enumerate(todo):
        spent = time.monotonic() - start
        eta = timedelta(
            seconds=round(left * spent / done if done else 1.5 * left / machine.rates[case.prec])
        )
        print(
            f"[{i + 1}/{len(todo)}] {case.table}: {case}; about {eta} left",
            file=sys.stderr,
            flush=True,
        )
        with redirect_stdout(sys.stderr):
            rows.append(ROWS.get(case.table, time_row)(case, machine))
        done, left = done + work(case), left - work(case)
        if case is todo[-1] or todo[i + 1].table != case.table:
            table = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
            print(f"\n### {HEADINGS[case.table]}\n\n{table}", flush=True)
            rows = []


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser("bash scripts/bench.sh", description=__doc__)
    parser.add_argument("device", nargs="?", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="rounds; long ones on a CPU take 2 at most (default: 3)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny towers and few classes: to try the bench itself"
    )
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)  # the measuring process
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    try:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("there is no GPU here that torch can use")
        if args.repeats < 1:
            raise UsageError(f"--repeats {args.repeats}: must be 1 or more")
        arch = "tiny" if args.quick else "ViT-B/16"
        weights = openai_state_dict(arch)
        if args.memory_of:
            method, classes, batch, prec, side = args.memory_of
            case = Case("memory", method, int(classes), int(batch), prec, args.device, arch)
            with redirect_stdout(sys.stderr):
                taken = memory_of(case, side, weights)
            print(taken)
            return 0
        todo = cases(args.device, args.quick, args.only)
        if not todo:
            raise UsageError(f"{' '.join(args.only)} is not measured on {args.device}")
        rates = {
            prec: matrix_rate(args.device, prec, args.quick) for prec in PRECISIONS[args.device]
        }
        print(about(args.device, rates, argv), flush=True)
        run(todo, Machine(weights, rates, args.repeats, args.quick))
    except Failure as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
