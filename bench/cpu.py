"""Where a CPU's time goes in P2C's evaluation and training step: python -m bench.cpu.

ViT-B/16 with random weights. First the towers' matrix products by torch (MKL) and by
oneDNN, in turns; then what was chosen for CPUs beside what it replaces, in turns; then the shares
of torch's operators.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import frozen, model
from reference.weights import openai_state_dict

from .cases import Case, Step, arch_of, make_batch
from .ours import our_evaluation, our_step, our_trainer
from .record import Record, add_record
from .timing import alternate, machine, ms, ratios

SHAPES = ((1592, 768, 3072), (1592, 3072, 768), (796, 768, 2304), (796, 768, 768), (250, 512, 2048))
PARTS = {  # the beginning of an operator's name -> what it is called in the table
    "mkldnn::_linear_pointwise": "products with weights",
    "aten::addmm": "products with weights",
    "aten::mm": "products with weights",
    "aten::_scaled_dot_product": "attention",
    "aten::native_layer_norm": "layer norm",
    "aten::silu": "activation",
    "aten::cat": "joining prompts and tokens",
    "aten::add": "sums and factors",
    "aten::mul": "sums and factors",
    "aten::copy_": "copies and casts",
}
REST = "patches and the rest"


def products(rounds: int) -> list[dict[str, str]]:
    """A row for each shape of the towers' products."""
    rows = []
    for count, width, out in SHAPES:
        x = torch.randn(count, width)
        weight, bias = torch.randn(out, width), torch.randn(out)
        both = [partial(product, x, weight, bias) for product in (F.linear, frozen._onednn)]
        alternate(*both, rounds=1)  # warm-up
        mkl, onednn = alternate(*both, rounds=4 * rounds)
        rows.append({
            "rows × inputs × outputs": f"{count} × {width} × {out}",
            "torch ms": ms(mkl),
            "oneDNN ms": ms(onednn),
            "torch / oneDNN: min / median / max": ratios(mkl, onednn),
        })  # fmt: skip
    return rows


def instead(step: Step, module: ModuleType, name: str, value: object) -> Step:
    """The same step with another value of a module's name."""

    def other() -> Tensor:
        with patch.object(module, name, value):
            return step()

    return other


def attend(dtype: torch.dtype) -> Step:
    """Attention of an image tower's block to 4 images, with its gradient."""
    qkv = torch.randn(3, 4, 12, 197, 64, dtype=dtype, requires_grad=True)

    def step() -> Tensor:
        [grad] = torch.autograd.grad(F.scaled_dot_product_attention(*qkv).sum(), qkv)
        return grad

    return step


def choices(weights: Mapping[str, Tensor], arch: str, rounds: int) -> list[dict[str, str]]:
    """A row for each thing not chosen beside what was; it takes longer where the choice pays."""
    of_many = Case("eval", "P2C", classes=10, batch=48, arch=arch)
    of_few = Case("p2c", "P2C", classes=3 if arch == "tiny" else 50, batch=4, arch=arch)
    evaluate = our_evaluation(our_trainer(of_many, weights), make_batch(of_many))
    train = our_step(our_trainer(of_few, weights), make_batch(of_few))
    at_once = instead(evaluate, model, "FEW", of_many.batch)
    in_bf16, in_fp32 = attend(torch.bfloat16), attend(torch.float32)
    found = [
        ("attention and its gradient in bf16, not fp32", in_bf16, in_fp32),
        (f"{of_many}: all images at once, not {model.FEW}", at_once, evaluate),
    ]
    other, chosen = ("torch's", "oneDNN's") if frozen.ONEDNN else ("oneDNN's", "torch's")
    for case, step in ((of_many, evaluate), (of_few, train)) if frozen.HAS_ONEDNN else ():
        what = f"{case}: {other} products, not {chosen}"
        found.append((what, instead(step, frozen, "ONEDNN", not frozen.ONEDNN), step))
    rows = []
    for what, replaced, step in found:
        replaced(), step()  # warm-up
        above, below = alternate(replaced, step, rounds)
        row = {"": what, "ms": ms(above), "as chosen ms": ms(below)}
        rows.append(row | {"longer: min / median / max": ratios(above, below)})
    return rows


def shares(step: Step, rounds: int) -> dict[str, float]:
    """Each kind of operator's share of the time, in %."""
    step()  # warm-up
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(rounds):
            step()
    parts = Counter(dict.fromkeys([*PARTS.values(), REST], 0.0))
    for event in profile.key_averages():
        names = (part for start, part in PARTS.items() if event.key.startswith(start))
        parts[next(names, REST)] += event.self_cpu_time_total
    return {part: 100 * spent / parts.total() for part, spent in parts.items()}


def main() -> None:
    """Prints the tables of the products and of the operators' shares."""
    parser = argparse.ArgumentParser("python -m bench.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--prec", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny towers, few classes")
    add_record(parser)
    args = parser.parse_args()
    record = Record(args.record, parser.prog)
    print(f"{machine()}\n")
    if frozen.HAS_ONEDNN:
        print(f"{record.table('products', products(args.rounds))}\n")
    arch = arch_of(args.quick)
    weights = openai_state_dict(arch)
    print(f"{record.table('choices', choices(weights, arch, args.rounds))}\n")
    columns = {}
    for prec in args.prec:
        evaluation = Case("eval", "P2C", classes=10, batch=16, prec=prec, arch=arch)
        training = Case(
            "p2c", "P2C", classes=3 if args.quick else 50, batch=4, prec=prec, arch=arch
        )
        for case, make in ((evaluation, our_evaluation), (training, our_step)):
            step = make(our_trainer(case, weights), make_batch(case))
            columns[str(case)] = shares(step, args.rounds)
    rows = [
        {"": part} | {name: f"{found[part]:.1f}%" for name, found in columns.items()}
        for part in dict.fromkeys([*PARTS.values(), REST])
    ]
    print(record.table("shares", rows))


if __name__ == "__main__":
    main()
