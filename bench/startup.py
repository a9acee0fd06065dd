"""How long train.py takes before it touches data: python -m bench.startup [--runs 5].

Beside importing torch and torchvision alone. Each is a process of its own, in turns. CPU
seconds say more where other programs run too.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

from .record import Record, add_record
from .timing import machine

# The run ends where it would read the dataset.
BEFORE_DATA = """
import sys, train
from dassl.engine import trainer
trainer.DataManager = lambda cfg: sys.exit()
train.main()
"""
RUN = """--trainer P2C --config-file configs/trainers/P2C/vit_b16_ep5_batch4.yaml
--dataset-config-file configs/datasets/eurosat.yaml --output-dir""".split()


def cpu_seconds() -> float:
    """What the processes started and ended so far have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of the CPU."""
    before, start = cpu_seconds(), time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, cpu_seconds() - before


def main() -> None:
    """Prints a row for each command."""
    parser = argparse.ArgumentParser("python -m bench.startup", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    add_record(parser)
    args = parser.parse_args()
    record = Record(args.record, parser.prog)
    with tempfile.TemporaryDirectory() as out:
        commands = {
            "import torch, torchvision": ["-c", "import torch, torchvision"],
            "train.py --help": ["train.py", "--help"],
            "train.py, before data": ["-c", BEFORE_DATA, *RUN, out],
        }
        turns = []
        for _ in range(args.runs + 1):
            turns.append({name: measure(words) for name, words in commands.items()})
    rows = []
    for name in commands:
        # The first turn brings the files into memory.
        clock, cpu = zip(*(turn[name] for turn in turns[1:]), strict=True)
        if not rows:
            imports = median(clock), median(cpu)
        rows.append({
            "": name,
            "median s": f"{median(clock):.2f}",
            "min to max": f"{min(clock):.2f} to {max(clock):.2f}",
            "beyond the imports": f"{median(clock) - imports[0]:.2f}",
            "CPU s": f"{median(cpu):.2f}",
            "beyond": f"{median(cpu) - imports[1]:.2f}",
        })  # fmt: skip
    table = record.table("startup", rows)
    print(f"{machine()}; median of {args.runs}\n\n{table}")


if __name__ == "__main__":
    main()
