"""Where the time of an evaluation and of a training step goes on a CPU: P2C, ViT-B/16 with random
weights.

    python bench/cpu.py [--prec fp32] [--rounds 5]

First the towers' matrix products by torch (MKL) and by oneDNN, in turns; then the shares of torch's
operators.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from bench.steps import Case, make_batch, our_evaluation, our_step, our_trainer  # noqa: E402
from clip import frozen  # noqa: E402
from dassl.engine.record import device_name  # noqa: E402
from reference.weights import openai_state_dict  # noqa: E402

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


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def products(rounds: int) -> None:
    print(
        "| rows × inputs × outputs | torch ms | oneDNN ms | torch / oneDNN: min / median / max |\n|---|---|---|---|"
    )
    for rows, width, out in SHAPES:
        x, weight, bias = torch.randn(rows, width), torch.randn(out, width), torch.randn(out)
        both = [partial(product, x, weight, bias) for product in (F.linear, frozen._onednn)]
        pairs = [[seconds(step) for step in both] for _ in range(4 * rounds + 1)]
        torchs, onednns = zip(*pairs[1:], strict=True)  # the first is a warm-up
        ratios = [a / b for a, b in pairs[1:]]
        spread = " / ".join(f"{r:.2f}" for r in (min(ratios), median(ratios), max(ratios)))
        print(
            f"| {rows} × {width} × {out} | {median(torchs) * 1e3:.2f} | {median(onednns) * 1e3:.2f} | {spread} |"
        )


def shares(name: str, step: Callable[[], object], rounds: int) -> None:
    step()  # warm-up
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(rounds):
            step()
    parts = Counter()
    for event in profile.key_averages():
        part = next(
            (part for start, part in PARTS.items() if event.key.startswith(start)), "the rest"
        )
        parts[part] += event.self_cpu_time_total
    print(f"\n| {name}, {parts.total() / rounds / 1e3:.0f} ms | share |\n|---|---|")
    for part, spent in parts.most_common():
        print(f"| {part} | {100 * spent / parts.total():.1f}% |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prec", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(
        f"{device_name(torch.device('cpu'))}, load {os.getloadavg()[0]:.1f}; PyTorch {torch.__version__}\n"
    )
    if frozen.ONEDNN:
        products(args.rounds)
    weights = openai_state_dict("ViT-B/16")
    for case, make in (
        (Case("eval", "P2C", 10, 16, args.prec), our_evaluation),
        (Case("p2c", "P2C", 50, 4, args.prec), our_step),
    ):
        shares(str(case), make(our_trainer(case, weights), make_batch(case)), args.rounds)


if __name__ == "__main__":
    main()
