"""What is shown of a sweep under way."""

import shutil
import sys
import time
from datetime import timedelta

from tabulate import tabulate

from dassl.commands import say

from .plan import Run
from .pool import Pool, View


class Progress(View):
    """A line for each run that has ended, and on a terminal a table of those under way."""

    def __init__(self):
        self.live = sys.stderr.isatty()
        self.height, self.drawn = 0, 0.0  # of the table on the screen, and when

    def ended(self, pool: Pool, run: Run, seconds: float | None) -> None:
        if seconds is None:
            what = "done by another process"
        elif run in pool.failed:
            what = f"failed after {in_words(seconds)}: {pool.failed[run][-1]}"
        else:
            what = f"{run.accuracy():.1f}% in {in_words(seconds)}"
        self.close()
        say(f"[{count_done(pool)}/{len(pool.runs)}] {run}: {what}{pool.left()}")

    def tick(self, pool: Pool) -> None:
        if self.live and (not self.height or time.monotonic() - self.drawn > 1):
            self.draw(pool)

    def draw(self, pool: Pool) -> None:
        """Show a row for each run under way, in the place of what was shown before."""
        rows = []
        for job in pool.jobs:
            gpu = job.slot.get("CUDA_VISIBLE_DEVICES")
            where = f"GPU {gpu}" if gpu else "CPU"
            rows.append([where, job.run, job.run.epoch(), in_words(job.seconds)])
        done, failed = count_done(pool), len(pool.failed)
        head = f"{done} of {len(pool.runs)} done, {failed} failed{pool.left()}"
        lines = [head, *tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines()]
        width, height = shutil.get_terminal_size()
        lines = [line[: width - 1] for line in lines[: height - 1]]
        self.close()
        sys.stderr.write("\n".join([*lines, ""]))
        sys.stderr.flush()
        self.height, self.drawn = len(lines), time.monotonic()

    def close(self) -> None:
        """Take the table off the screen."""
        if self.height:
            sys.stderr.write(f"\x1b[{self.height}F\x1b[J")
            self.height = 0


def count_done(pool: Pool) -> int:
    """How many runs are finished or have failed."""
    return len(pool.runs) - len(pool.todo) - len(pool.jobs)


def in_words(seconds: float) -> str:
    """As 1:23:45."""
    return str(timedelta(seconds=round(seconds)))
