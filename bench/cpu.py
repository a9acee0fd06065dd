"""Where a CPU's time goes in P2C's evaluation and training step: python -m bench.cpu.

ViT-B/16 with random weights. First the towers' matrix products by torch (MKL) and by
oneDNN, in turns; then the shares of torch's operators.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from clip import frozen
from reference.weights import openai_state_dict

from .cases import Case, make_batch
from .ours import our_evaluation, our_step, our_trainer
from .timing import alternate, machine, ms, ratios, table

SHAPES = ((1592, 768, 3072), (1592, 3072, 768), (796, 768, 2304), (796, 768, 768), (250, 512, 2048))
PARTS = {  # the beginning of an operator's name -> what it is called in the table
    "mkldnn::_linear_pointwise": "products with weights",
    "aten::addmm": "products with weights",
    "aten::mm": "products with weights",
    "aten::_scaled_dot_product": "attention",
    "aten::native_layer_norm": "layer norm",
    "aten::silu": "activation",
    "aten::mkldnn_convolution": "patches (convolution)",
    "aten::cat": "joining prompts and tokens",
    "aten::add": "sums",
    "aten::mul": "factors",
    "aten::copy_": "copies and casts",
}


def products(rounds: int) -> str:
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
    return table(rows)


def shares(name: str, step: Callable[[], object], rounds: int) -> str:
    """A row for each kind of operator, the most costly first."""
    step()  # warm-up
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(rounds):
            step()
    parts = Counter()
    for event in profile.key_averages():
        names = (part for start, part in PARTS.items() if event.key.startswith(start))
        parts[next(names, "the rest")] += event.self_cpu_time_total
    heading = f"{name}, {parts.total() / rounds / 1e3:.0f} ms"
    rows = []
    for part, spent in parts.most_common():
        rows.append({heading: part, "share": f"{100 * spent / parts.total():.1f}%"})
    return table(rows)


def main() -> None:
    """Prints the tables of the products and of the operators' shares."""
    parser = argparse.ArgumentParser("python -m bench.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--prec", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{machine()}\n")
    if frozen.ONEDNN:
        print(products(args.rounds))
    weights = openai_state_dict("ViT-B/16")
    evaluation = Case("eval", "P2C", classes=10, batch=16, prec=args.prec)
    training = Case("p2c", "P2C", classes=50, batch=4, prec=args.prec)
    for case, make in ((evaluation, our_evaluation), (training, our_step)):
        step = make(our_trainer(case, weights), make_batch(case))
        print(f"\n{shares(str(case), step, args.rounds)}")


if __name__ == "__main__":
    main()
