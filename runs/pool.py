"""Doing the runs that are not finished, several at once.

runs/starter.py starts them. While a run is under way its process holds a lock in its folder, so
whoever else wants the same run waits, also if the one who started it was killed.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean

from dassl.commands import leave, say
from dassl.files import FAILURE, LOCK

from .plan import Run, refuse_another, unfinished
from .starter import Starter

try:
    import fcntl
    import pty
    import termios
except ImportError:
    raise SystemExit("error: this runs on Linux and macOS; on Windows use WSL") from None

GO_ON = "run the same command again to go on"
LAST_LINES = 5  # of a failed run's output are repeated at the end
PAUSE = 0.05  # seconds between looks at what is under way
LOOK_AGAIN = 1.0  # seconds between looks at what waits for a training, or for another process
DISK_FULL = 2**24  # with fewer bytes free, no run can end well
STOP_SECONDS = 10  # for a run to end before it is killed


def try_lock(folder: Path) -> int | None:
    """A file that holds the lock of a run's folder, made if need be; None if another has it.

    The text of the file is the command that was last run there. Leaves if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        leave(f"cannot write to {folder}: {error.strerror}", 1)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:
        pass  # a file system without locks
    return lock


class Job:
    """A run under way. Its stdout is in its log.txt, its stderr is read here."""

    def __init__(
        self, starter: Starter, run: Run, slot: Mapping[str, str], lock: int, terminal: bool
    ):
        """Starts the run, which takes over `lock`.

        `terminal`: for its bars it is to see a terminal as wide as ours. Else its stderr is a file,
        which no death of ours can close.
        """
        self.run, self.slot, self.start, self.last = run, slot, time.monotonic(), b""
        (run.folder / FAILURE).unlink(missing_ok=True)
        os.truncate(lock, 0)
        os.write(lock, shlex.join(run.command).encode())
        if terminal:
            self.ours, its = pty.openpty()
            termios.tcsetwinsize(its, termios.tcgetwinsize(sys.stderr.fileno()))
            os.set_blocking(self.ours, False)
        else:
            its, name = tempfile.mkstemp()
            self.ours = os.open(name, os.O_RDONLY)
            os.unlink(name)
        self.process = starter.start(run.command, os.environ | run.env | slot, its, lock)
        os.close(its)
        os.close(lock)

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.start

    def read(self) -> bytes:
        """What it has written to stderr since the last time."""
        pieces = []
        try:
            while piece := os.read(self.ours, 65536):
                pieces.append(piece)
        except OSError:  # nothing there yet, or a terminal's end
            pass
        new = b"".join(pieces)
        self.last = (self.last + new)[-20_000:]
        return new

    def failure(self) -> list[str]:
        """Why it has no result: the last lines of its stderr, else of its log, and how it ended."""
        code = self.process.returncode
        lines = text_lines(self.last)
        logs = self.run.logs()
        if not lines and code and logs:
            lines = text_lines(logs[-1].read_bytes())
        if code < 0:
            lines.append(f"ended by {signal.Signals(-code).name}")
        return lines[-LAST_LINES:] or [f"exit code {code} and no result in {self.run.folder}"]


def text_lines(raw: bytes) -> list[str]:
    """The lines that are not empty; each state of a progress bar is one."""
    lines = raw.decode(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()]


class View:
    """What is shown of a Pool: nothing here."""

    terminal = False  # whether runs are to draw their bars

    def starts(self, pool: "Pool", run: Run) -> None:
        """A run is started."""

    def wrote(self, piece: bytes) -> None:
        """A run has written this to stderr."""

    def ended(self, pool: "Pool", run: Run, seconds: float | None) -> None:
        """`seconds` is None for a run that another process did."""

    def tick(self, pool: "Pool") -> None:
        """Every PAUSE seconds."""

    def close(self) -> None:
        """Something else is going to be printed, or it is the end."""


class Pool:
    """Does runs, as many at once as there are slots, each with its slot's environment."""

    def __init__(self, runs: Sequence[Run], slots: Sequence[Mapping[str, str]], view: View):
        self.runs, self.slots, self.free, self.view = runs, slots, list(slots), view
        self.todo = unfinished(runs)
        self.jobs: list[Job] = []
        self.starter = Starter()
        # With a run's last lines; none for a test whose model's training failed.
        self.failed: dict[Run, list[str]] = {}
        self.code = 0  # to exit with: 1 if a run failed, 128 + N if signal N ended one
        self.took: dict[tuple[str, str], list[float]] = defaultdict(list)  # (method, part): seconds
        self.waiting = False  # for runs that other processes are doing, and nothing else
        self.look_at = 0.0  # when to look again for a run that can be started
        if done := len(runs) - len(self.todo):
            say(f"{done} of {len(runs)} runs are finished")

    def run(self) -> dict[Run, list[str]]:
        """Do what is not finished. A run that fails stops only its model's tests.

        Returns: what failed, with the last lines of its output.
        """
        try:
            while self.todo or self.jobs:
                self.start()
                for job in list(self.jobs):
                    self.reap(job)
                if self.todo or self.jobs:
                    self.view.tick(self)
                    time.sleep(PAUSE)
        finally:
            self.view.close()
            self.stop()
        return self.failed

    def start(self) -> None:
        """Fill the free slots."""
        while self.free and time.monotonic() >= self.look_at:
            found = self.next()
            idle = bool(self.todo) and not found and not self.jobs
            if idle and not self.waiting:
                self.view.close()
                say("another process is at what is left: waiting for it")
            self.waiting = idle
            if not found:  # all that is left waits for a training, or is another process's
                self.look_at = time.monotonic() + LOOK_AGAIN
                break
            run, lock = found
            self.view.starts(self, run)
            del self.todo[run]
            try:
                self.jobs.append(Job(self.starter, run, self.free.pop(0), lock, self.view.terminal))
            except OSError as error:
                leave(f"cannot start a run: {error.strerror}; {GO_ON}", 1)

    def next(self) -> tuple[Run, int] | None:
        """The first run that can be started now, and its lock."""
        under_way = {job.run for job in self.jobs}
        for run, before in list(self.todo.items()):
            if run.trained in self.failed:
                del self.todo[run]
                self.failed[run] = []
                continue
            if run.trained in self.todo or run.trained in under_way:
                continue
            if (lock := try_lock(run.folder)) is None:
                continue
            if run.result() in (None, before):
                return run, lock
            os.close(lock)
            refuse_another(run)
            del self.todo[run]
            self.view.ended(self, run, None)
        return None

    def reap(self, job: Job) -> None:
        """Take note of what a job wrote, and of its end."""
        ended = job.process.poll() is not None
        self.view.wrote(job.read())
        if not ended:
            return
        os.close(job.ours)
        self.jobs.remove(job)
        self.free.append(job.slot)
        self.look_at = 0.0
        run = job.run
        if job.process.returncode or run.accuracy() is None:
            self.failed[run] = job.failure()
            code = job.process.returncode
            self.code = max(self.code, 128 - code if code < 0 else 1)
            if shutil.disk_usage(run.folder).free < DISK_FULL:
                leave(f"no space left for {run.folder}: free some, and {GO_ON}", 1)
            (run.folder / FAILURE).write_text("\n".join(self.failed[run]))
        else:
            self.took[run.method, run.part].append(job.seconds)
        self.view.ended(self, run, job.seconds)

    def stop(self) -> None:
        """End what is under way: what it saved is whole, and it goes on from there next time."""
        self.starter.close()
        for job in self.jobs:
            job.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for job in self.jobs:
            try:
                job.process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()
        # What a run had started itself, a worker say, may live on for a moment and hold its lock.
        deadline = time.monotonic() + STOP_SECONDS
        for job in self.jobs:
            while (lock := try_lock(job.run.folder)) is None and time.monotonic() < deadline:
                time.sleep(PAUSE)
            if lock is not None:
                os.close(lock)

    def left(self) -> str:
        """The time that is left, in words; nothing before the first run has ended.

        From what runs of the same method and part took, else from all.
        """
        everything = [seconds for times in self.took.values() for seconds in times]
        if not everything:
            return ""

        def usual(run: Run) -> float:
            return fmean(self.took.get((run.method, run.part), everything))

        seconds = sum(map(usual, self.todo))
        seconds += sum(max(0.0, usual(job.run) - job.seconds) for job in self.jobs)
        return f" (about {timedelta(seconds=round(seconds / len(self.slots)))} left)"


def report(failed: Mapping[Run, list[str]], total: int) -> None:
    """Say what failed, with the command to try alone and the last lines of its output."""
    say(f"\n{len(failed)} of {total} runs failed:")
    for run, last in failed.items():
        if last:
            say("\n  ".join([f"{run}: {run.shell()}", *last]))
    if not_run := sum(not last for last in failed.values()):
        say(f"{not_run} of them were not run, as their training failed")
