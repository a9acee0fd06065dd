"""How long train.py takes before it touches data, beside importing torch and torchvision alone.

    python bench/startup.py [--runs 5]

Each is a process of its own, in turns. CPU seconds say more where other programs run too.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from dassl.engine.record import device_name  # noqa: E402
from dassl.utils import cpu_cores  # noqa: E402

CONFIG = ["--config-file", "configs/trainers/P2C/vit_b16_ep5_batch4.yaml"]
# The run ends where it would read the dataset.
BEFORE_DATA = """
import sys, train
from dassl.engine import trainer
trainer.DataManager = lambda cfg: sys.exit()
train.main()
"""


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of the CPU."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=REPO, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as out:
        data = [
            "--trainer",
            "P2C",
            "--dataset-config-file",
            "configs/datasets/eurosat.yaml",
            "--output-dir",
            out,
        ]
        commands = {
            "import torch, torchvision": ["-c", "import torch, torchvision"],
            "train.py --help": ["train.py", "--help"],
            "train.py, before data": ["-c", BEFORE_DATA, *data, *CONFIG],
        }
        taken = {name: [] for name in commands}
        for turn in range(runs + 1):
            for name, command in commands.items():
                seconds = measure(command)
                if turn:  # the first brings the files into memory
                    taken[name].append(seconds)
    machine = (
        f"{device_name(torch.device('cpu'))}, {cpu_cores()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{machine}; Python {platform.python_version()}, torch {version('torch')}; median of {runs}\n"
    )
    print(
        "| | median s | min to max | beyond the imports | CPU s | beyond |\n|---|---|---|---|---|---|"
    )
    base = None
    for name, times in taken.items():
        clock, cpu = ([t[i] for t in times] for i in (0, 1))
        base = base or (median(clock), median(cpu))
        beyond = median(clock) - base[0], median(cpu) - base[1]
        spread = f"{min(clock):.2f} to {max(clock):.2f}"
        print(
            f"| {name} | {median(clock):.2f} | {spread} | {beyond[0]:.2f} | {median(cpu):.2f} | {beyond[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
