"""What a training step takes beyond the model; as a program, of one side of one case."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, replace

import torch
from torch import Tensor

from dassl.utils import Failure
from reference.weights import openai_state_dict

from .cases import Case
from .plain import pair

SIDES = ("plain", "ours")


def memory_in_a_process(case: Case, side: str) -> float:
    """MB of a case's first step on that side, in a fresh process.

    Raises: Failure if it does not live to say so.
    """
    command = [sys.executable, "-m", "bench.memory", side, json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["killed, as happens when memory is short"]
        what = f"{case}: measuring the {side} path's memory ended with {done.returncode}"
        raise Failure(f"{what}: {said[-1]}")
    return float(done.stdout.split()[-1])


def memory_of(case: Case, side: str, weights: Mapping[str, Tensor]) -> float:
    """MB that the peak of a step is above what was in use before it.

    On a CPU that is resident memory, as Linux counts it.
    """
    for step in pair(replace(case, arch="tiny", classes=2), openai_state_dict("tiny"))[2]:
        step()  # what torch loads and takes for its first step of any size
    kept = pair(case, weights)
    step = kept[2][SIDES.index(side)]
    gc.collect()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with suppress(OSError, AttributeError):
        # What has been freed goes back to the system, else the step would have it for nothing.
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak so far is forgotten
    with open("/proc/self/statm") as f:
        before = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    step()
    with open("/proc/self/status") as f:  # getrusage's peak is the parent's, if that had more
        [peak] = [int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:")]
    return (peak - before) / 2**20


def main(argv: Sequence[str]) -> None:
    """Prints the MB of `memory_in_a_process`, in that process."""
    side, case = argv[0], Case(**json.loads(argv[1]))
    with redirect_stdout(sys.stderr):
        taken = memory_of(case, side, openai_state_dict(case.arch))
    print(taken)


if __name__ == "__main__":
    main(sys.argv[1:])
