"""train.py in several processes of this machine, by torchrun: `GPUS=N bash scripts/…` comes here.

The processes say themselves what is wrong, so torchrun says nothing more, and ends as they do.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from dassl.commands import say
from dassl.utils import cpu_cores


def main(argv: Sequence[str]) -> int:
    """Number of processes, then train.py and its arguments; the exit code of who failed first."""
    processes, *words = argv
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_cores() // int(processes))))
    logging.disable()
    try:
        torchrun(["--standalone", "--nproc-per-node", processes, *words])
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as error:
        rank, failed = error.get_first_failure()
        if failed.exitcode >= 0:
            return failed.exitcode
        how = signal.Signals(-failed.exitcode).name
        say(f"error: process {rank} of {processes} was ended by {how}; run the same command again")
        return 128 - failed.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
