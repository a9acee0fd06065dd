"""Ours beside the plain computation, on the same weights and batches, in tables.

The plain path is what upstream's code does: every class's whole sentence of 77 tokens in
every block, every image token in every block, nn.MultiheadAttention, the text features again
for every batch, CoCoOp one image after the other. It is reference/ on random weights. Ours
are the trainers as train.py makes them, without data. Both compute the same loss, which is
checked for every row of a time beside a plain one (P2C's without noise).

Names for --only:
  maple, p2c  a training step: forward, backward, optimizer
  eval        P2C on a batch of 100 images; ours has its text features from the batch before
  cocoop      a training step with 1 image, and one with 8, which ours computes at once
  overhead    a step of P2C beside one of itself without noise and auxiliary loss
  memory      what a training step takes beyond the model, on a CPU in a process of its own
  share       how much of our step is not the two towers (on the CPU)
  capture     our step as a CUDA graph beside the same step computed as usual (on a GPU)
  bf16        our step in bf16 beside the one in fp32 (on the CPU); bf16_eval: our evaluation
  rivals      a training step of BayesianPrompt, MMRL, VaMP, EMPL and ReBaPL; plain is a loop over
              images and draws. rivals_eval: an evaluation; rivals_memory: what a step takes
"""

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import date, timedelta
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dassl.commands import OneLineParser
from dassl.engine import TrainerX
from dassl.utils import Failure, UsageError
from reference.weights import openai_state_dict
from trainers import prompt_text

from .cases import HEADINGS, NAMES, PRECISIONS, Batch, Case, Step, cases, make_batch
from .floor import floor_flops, matrix_rate, plain_flops
from .memory import SIDES, memory_in_a_process, memory_of
from .ours import WITHOUT_NOISE, our_evaluation, our_step, our_trainer
from .plain import check, pair
from .record import Record, add_record
from .timing import alternate, code, machine, ms, ratios, seconds_of

# FLOPs of a plain step from which a CPU measures two rounds, the first of them the check.
LONG = 1e12
MANY = 3  # times as many rounds for two things of almost the same length
OURS_ALONE = ("overhead", "share", "bf16", "bf16_eval", "capture")  # no plain path beside it
Row = dict[str, str]


@dataclass(frozen=True)
class Setting:
    """What rows need beside their case."""

    weights: Mapping[str, Tensor]
    rates: Mapping[str, float]  # precision -> FLOP/s
    repeats: int


def beside(case: Case, ratio: str, **seconds: Sequence[float]) -> Row:
    """Both sides' times, and their ratio: `a / b` by the names of the sides."""
    above, below = (seconds[name] for name in ratio.split(" / "))
    columns = {f"{name} ms": ms(times) for name, times in seconds.items()}
    columns[f"{ratio}: min / median / max"] = ratios(above, below)
    return {"measurement": str(case)} | columns


def is_long(case: Case) -> bool:
    """Whether the plain path is too slow here for the usual number of rounds."""
    return case.device == "cpu" and plain_flops(case) > LONG


def plain_row(case: Case, setting: Setting) -> Row:
    """Ours beside the plain path, and but for rivals both beside the floor."""
    plain, trainer, steps = pair(case, setting.weights)
    first = check(case, trainer, steps)
    if is_long(case):  # so long that a first round needs no warm-up
        before, after = alternate(*steps, min(2, setting.repeats) - 1, case.device)
        before, after = [first[0], *before], [first[1], *after]
    else:
        before, after = alternate(*steps, setting.repeats, case.device)
    row = beside(case, "plain / ours", plain=before, ours=after)
    if case.is_rival:
        return row
    floor = floor_flops(case, plain) / setting.rates[case.prec]
    return row | {
        "plain images/s": f"{case.batch / median(before):.1f}",
        "ours images/s": f"{case.batch / median(after):.1f}",
        "floor ms": ms([floor]),
        "ours / floor": f"{median(after) / floor:.2f}",
    }


def overhead_row(case: Case, setting: Setting) -> Row:
    """P2C beside itself without noise and auxiliary loss."""
    batch = make_batch(case)
    noisy = our_step(our_trainer(case, setting.weights), batch)
    clean = our_step(our_trainer(case, setting.weights, *WITHOUT_NOISE), batch)
    noisy(), clean()  # warm-up
    with_noise, without = alternate(noisy, clean, MANY * setting.repeats, case.device)
    return beside(case, "P2C / baseline", baseline=without, P2C=with_noise)


def capture_row(case: Case, setting: Setting) -> Row:
    """Replayed steps beside the same computed as usual."""
    batch = make_batch(case)
    rounds = MANY * setting.repeats
    usual, captured = (our_trainer(case, setting.weights) for _ in range(2))
    usual.compute.refused = True
    steps = our_step(usual, batch), our_step(captured, batch)

    def first_of_an_epoch() -> None:
        captured.compute.begin_epoch()
        steps[1]()

    before, after = alternate(*steps, rounds, case.device)
    if captured.compute.refused:
        raise Failure(f"{case}: its steps could not be replayed")
    proofs = [seconds_of(first_of_an_epoch, case.device) for _ in range(rounds)]
    row = beside(case, "usual / graph", usual=before, graph=after)
    return row | {"first step of an epoch ms": ms(proofs)}


def towers_alone(trainer: TrainerX, batch: Batch) -> Step:
    """Both towers alone, forward and backward, with the arguments that a step gives them."""
    model = trainer.model.clip
    calls = []

    def recorded(tower: Callable) -> Callable:
        def call(*args, **kwargs):
            calls.append((tower, args, kwargs))
            return tower(*args, **kwargs)

        return call

    with (
        patch.object(model, "encode_image", recorded(model.encode_image)),
        patch.object(prompt_text, "encode_prompts", recorded(prompt_text.encode_prompts)),
    ):
        trainer.loss(batch["img"], batch["label"])
    if len(calls) != 2:
        raise Failure(f"a step calls CLIP's towers {len(calls)} times, not once each")

    def leaf(x: Tensor) -> Tensor:
        return x.detach().requires_grad_(x.requires_grad)

    def towers() -> Tensor:
        outputs = []
        for tower, args, kwargs in calls:
            args, kwargs = tree_map_only(Tensor, leaf, (args, kwargs))
            outputs.append(tower(*args, **kwargs))
        torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
        return outputs[0].sum().detach()

    return towers


def share_row(case: Case, setting: Setting) -> Row:
    """A step beside its towers alone."""
    trainer = our_trainer(case, setting.weights)
    batch = make_batch(case)
    step = our_step(trainer, batch)
    towers = towers_alone(trainer, batch)
    step(), towers()  # warm-up
    whole, part = alternate(step, towers, setting.repeats, case.device)
    rest = median(w - p for w, p in zip(whole, part, strict=True))
    return {
        "measurement": str(case),
        "step ms": ms(whole),
        "towers ms": ms(part),
        "rest ms": f"{1000 * rest:.1f}",
        "share of the step": f"{100 * rest / median(whole):.1f}%",
    }


def bf16_row(case: Case, setting: Setting) -> Row:
    """Ours in bf16 beside ours in fp32."""
    make = our_evaluation if case.evaluates else our_step
    batch = make_batch(case)
    steps = []
    for prec in ("fp32", "bf16"):
        trainer = our_trainer(replace(case, prec=prec), setting.weights)
        steps.append(make(trainer, batch))
        steps[-1]()  # warm-up
    fp32, bf16 = alternate(*steps, setting.repeats, case.device)
    row = beside(case, "fp32 / bf16", fp32=fp32, bf16=bf16)
    return row | {"measurement": row["measurement"].removesuffix(f", {case.prec}")}


def memory_row(case: Case, setting: Setting) -> Row:
    """Peak memory of a step on both sides."""
    if case.device == "cuda":  # whose allocator counts exactly
        plain, ours = (memory_of(case, side, setting.weights) for side in SIDES)
    else:
        plain, ours = (memory_in_a_process(case, side) for side in SIDES)
    return {
        "measurement": str(case),
        "plain MB": f"{plain:.0f}",
        "ours MB": f"{ours:.0f}",
        "plain / ours": f"{plain / ours:.1f}",
    }


ROWS = {
    "overhead": overhead_row,
    "share": share_row,
    "bf16": bf16_row,
    "bf16_eval": bf16_row,
    "capture": capture_row,
    "memory": memory_row,
    "rivals_memory": memory_row,
}  # the others: plain_row


# The program


def gpu_name(device: str) -> str:
    """Empty for a CPU."""
    return torch.cuda.get_device_name() if device == "cuda" else ""


def about(device: str, rates: Mapping[str, float], argv: Sequence[str]) -> str:
    """Where and with what this was measured."""
    rate = ", ".join(f"{prec} {flops / 1e12:.3g}" for prec, flops in rates.items())
    return (
        f"`bash scripts/bench.sh {shlex.join(argv)}`, {date.today()}. CPU: {machine()}; "
        f"GPU: {gpu_name(device) or 'none used'}; {code()}. Matrix products, TFLOP/s: {rate}."
    )


def work(case: Case, repeats: int) -> float:
    """About the FLOPs of a row, for the time left."""
    rounds = 1 + (MANY * repeats if case.table in ("overhead", "capture") else repeats)
    if case.table in OURS_ALONE:  # two of ours, each about a plain step with few classes
        return 2 * rounds * plain_flops(replace(case, classes=5))
    if case.table.endswith("memory"):
        rounds = 1
    elif is_long(case):
        rounds = 2
    return rounds * (plain_flops(case) + plain_flops(replace(case, classes=1)))


def run(todo: Sequence[Case], setting: Setting, record: Record) -> None:
    """Measures and prints; each table as soon as it is complete."""
    costs = [work(case, setting.repeats) for case in todo]
    start = time.monotonic()
    rows = []
    for i, case in enumerate(todo):
        done, left = sum(costs[:i]), sum(costs[i:])
        pace = (time.monotonic() - start) / done if done else 1.5 / setting.rates[case.prec]
        eta = timedelta(seconds=round(left * pace))
        line = f"[{i + 1}/{len(todo)}] {case.table}: {case}; about {eta} left"
        print(line, file=sys.stderr, flush=True)
        with redirect_stdout(sys.stderr):
            rows.append(ROWS.get(case.table, plain_row)(case, setting))
        if case is todo[-1] or todo[i + 1].table != case.table:
            table = record.table(case.table, rows)
            print(f"\n### {HEADINGS[case.table]}\n\n{table}", flush=True)
            rows = []


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("bash scripts/bench.sh", description=__doc__)
    add = parser.add_argument
    add("device", nargs="?", default="cpu", choices=("cpu", "cuda"))
    add("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    rounds = "rounds; long ones on a CPU take 2 at most (default: 3)"
    add("--repeats", type=int, default=3, help=rounds)
    add("--quick", action="store_true", help="tiny towers, to try the bench itself")
    add_record(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """0, or what a Failure's exit code is, after its line."""
    args = parse_args(argv)
    try:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("there is no GPU here that torch can use")
        if args.repeats < 1:
            raise UsageError(f"--repeats {args.repeats}: must be 1 or more")
        todo = cases(args.device, args.quick, args.only)
        if not todo:
            raise UsageError(f"{' '.join(args.only)} is not measured on {args.device}")
        gc.freeze()  # what was imported is not looked through before each round
        record = Record(args.record, "bash scripts/bench.sh", argv, gpu_name(args.device))
        weights = openai_state_dict(todo[0].arch)
        precisions = PRECISIONS[args.device]
        rates = {prec: matrix_rate(args.device, prec, args.quick) for prec in precisions}
        print(about(args.device, rates, argv), flush=True)
        record.table(
            "rates",
            [{"precision": prec, "TFLOP/s": f"{rate / 1e12:.3g}"} for prec, rate in rates.items()],
        )
        run(todo, Setting(weights, rates, args.repeats), record)
    except Failure as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
