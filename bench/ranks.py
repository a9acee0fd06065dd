"""What processes that share a run gain: torchrun --standalone --nproc_per_node 2 -m bench.ranks

P2C on ViT-B/16 with random weights. In turns the first process works alone while the others wait,
then all share the batch (or the test's batches), then the classes too. On a CPU set
OMP_NUM_THREADS, the threads of each process; there should be a core for each.
"""

import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import torch

from dassl.commands import OneLineParser, leave
from dassl.utils import ranks
from reference.weights import openai_state_dict

from .cases import Batch, Case, make_batch
from .ours import our_evaluation, our_step, our_trainer
from .record import Record, add_record
from .timing import code, machine, ms, ratios, synchronize


def seconds(step: Callable[[], object], device: str, alone: bool = False) -> float:
    """Until all are done. alone: the first does it, all of it."""
    ranks.wait()
    start = time.perf_counter()
    if not alone:
        step()
    elif ranks.first():
        with ranks.alone():
            step()
    synchronize(device)
    ranks.wait()
    return time.perf_counter() - start


def row(what: str, sides: dict[str, Callable[[], float]], rounds: int) -> list[dict[str, object]]:
    """A row for each way of sharing, beside the first side, one process."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()  # warm-up
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(side())
    one, *shared = found
    return [
        {"": what, "shared": name, f"{one} ms": ms(found[one]), "shared ms": ms(found[name]),
         f"{one} / shared: min / median / max": ratios(found[one], found[name])}
        for name in shared
    ]  # fmt: skip


def training(case: Case, weights: dict, rounds: int) -> list[dict[str, object]]:
    """Rows of a training step."""
    trainer, device = our_trainer(case, weights), case.device
    step = our_step(trainer, make_batch(case))

    def shared(classes: bool) -> float:
        trainer.compute.share_classes = classes
        return seconds(step, device)

    sides = {
        "one process": lambda: seconds(step, device, alone=True),
        "images": lambda: shared(False),
        "images and classes": lambda: shared(True),
    }
    return row(str(case), sides, rounds)


def evaluation(case: Case, weights: dict, rounds: int) -> list[dict[str, object]]:
    """A row of a batch for each process, text features made before."""
    batches: list[Batch] = [make_batch(case)] * ranks.count()
    trainer = our_trainer(case, weights)
    evaluate = our_evaluation(trainer, batches[0])

    def test() -> None:
        for _ in ranks.turns(batches):
            evaluate()

    sides = {
        "one process": lambda: seconds(test, case.device, alone=True),
        "batches": lambda: seconds(test, case.device),
    }
    return row(f"{case}, {len(batches)} batches", sides, rounds)


def main() -> None:
    """Prints a table."""
    parser = OneLineParser("python -m bench.ranks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny towers and few classes")
    add_record(parser)
    args = parser.parse_args()
    ranks.join()
    if ranks.count() == 1:
        leave("this is of several processes: torchrun --nproc_per_node 2 -m bench.ranks", 2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    program = f"torchrun --standalone --nproc_per_node {ranks.count()} -m bench.ranks"
    record = Record(args.record if ranks.first() else None, program)
    arch, few, many = ("tiny", 5, 11) if args.quick else ("ViT-B/16", 50, 500)
    of = {"device": device, "arch": arch}
    weights = openai_state_dict(arch)
    with ranks.silent():
        print(f"{ranks.count()} processes on {machine()}; {code()}\n", flush=True)
        rows = []
        with redirect_stdout(sys.stderr):  # what the trainers say
            for classes in (few, many):
                rows += training(Case("p2c", "P2C", classes, 4, **of), weights, args.rounds)
            rows += evaluation(Case("eval", "P2C", 2 * many, 16, **of), weights, args.rounds)
        print(record.table("ranks", rows))
    ranks.end()


if __name__ == "__main__":
    main()
