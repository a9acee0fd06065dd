"""What scripts/protocol.sh and scripts/sweep.sh share: the runs of a protocol, and doing those that
are not finished.

A run is a plain command, `bash scripts/<method>/<script>.sh …`, which runs/starter.py starts and
whose folder holds its log. It is finished when that log has a result. While it is under way its
process holds a lock in the folder, so whoever else wants the same run waits, also if the one who
started it was killed.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np

from dassl.commands import leave, say
from dassl.files import regular
from dassl.results_json import RESULTS
from results.logs import LogResult, newest_result
from results.protocols import TARGETS

from .starter import Starter

try:
    import fcntl
    import pty
    import termios
except ImportError:
    raise SystemExit("error: this runs on Linux and macOS; on Windows use WSL") from None

SCRIPTS = Path("scripts")  # the working directory is the repository's
PROTOCOLS = ("base2new", "xd", "dg", "few_shot")
SHOTS = (1, 2, 4, 8, 16)
# What runs take from the environment.
ENVIRONMENT = (
    "DATA",
    "OUTPUT",
    "CFG",
    "SHOTS",
    "SOURCE",
    "LOADEP",
    "VENV",
    "CLIP_WEIGHTS",
    "CLIP_MIRROR",
)
# What the scripts give to each run; their own words and the environment say what.
GIVEN = (
    "SEED", "OUTPUT_DIR", "TRAINER.NAME", "DATASET.NAME", "DATASET.ROOT", "DATASET.NUM_SHOTS",
    "DATASET.SUBSAMPLE_CLASSES",
)  # fmt: skip
LOCK = ".lock"  # in a run's folder; its text is the command that was last run there
LAST_LINES = 5  # of a failed run's output are repeated at the end
PAUSE = 0.05  # seconds between looks at what is under way
DISK_FULL = 2**24  # with fewer bytes free, no run can end well
STOP_SECONDS = 10  # for a run to end before it is killed


def methods() -> list[str]:
    """The methods there are: folders of scripts whose trainer has settings."""
    found = []
    for path in sorted(SCRIPTS.glob("*/base2new_train.sh")):
        trainer = re.search(r"run\.sh\W+\w+ (\w+)", path.read_text())
        if not trainer or Path("configs/trainers", trainer[1]).is_dir():
            found.append(path.parent.name)
    return found


def datasets() -> list[str]:
    return sorted(path.stem for path in Path("configs/datasets").glob("*.yaml"))


# -- runs


@dataclass(eq=False)
class Run:
    """One run: what to start, where its log will be, and its place in a table."""

    method: str
    dataset: str  # that it is, or its model was, trained on
    seed: int
    part: str  # what it does, in words
    column: str
    command: list[str]
    env: dict[str, str]
    folder: Path
    trained: "Run | None" = None  # the run whose model this one tests
    setting: str = ""

    def __str__(self) -> str:
        return f"{' '.join(filter(None, (self.method, self.setting)))}, {self.dataset}, seed {self.seed}: {self.part}"

    def shell(self) -> str:
        """The command as one would type it in a new terminal."""
        env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | self.env
        return " ".join(
            [*(f"{k}={shlex.quote(v)}" for k, v in env.items()), shlex.join(self.command)]
        )

    def result(self) -> LogResult | None:
        """The newest finished log's; None if there is none."""
        return (
            newest_result(self.folder, "accuracy", eval_only=True)
            if self.folder.is_dir()
            else None
        )

    def accuracy(self) -> float | None:
        result = self.result()
        return result and result.metrics["accuracy"]

    @property
    def trainer(self) -> str:
        """All training folders end in <Trainer>/<config>/seed<N>."""
        return (self.trained or self).folder.parts[-3]


@dataclass
class Plan:
    """A protocol with one method, dataset and seed for each of its `runs`; the rest is common to
    them."""

    protocol: str
    targets: Sequence[str] = ()  # xd, dg: none for the source's usual ones
    shots: Sequence[int] = SHOTS  # few_shot
    opts: Sequence[str] = ()  # for train.py
    env: Mapping[str, str] = field(default_factory=dict)
    setting: str = ""

    def targets_of(self, source: str) -> Sequence[str]:
        return self.targets or TARGETS.get((self.protocol, source), ())

    def runs(self, method: str, dataset: str, seed: int) -> list[Run]:
        """Each model's training before its tests; leaves with a script's own line if that finds
        something wrong."""

        def run(
            script: str,
            *words: object,
            part: str,
            column: str,
            trained: Run | None = None,
            **env: str,
        ) -> Run:
            env = {**self.env, **env}
            command = ["bash", f"{SCRIPTS}/{method}/{script}.sh", *map(str, words), str(seed)]
            folder = folder_of(command, env)
            return Run(
                method,
                dataset,
                seed,
                part,
                column,
                [*command, *self.opts],
                env,
                folder,
                trained,
                self.setting,
            )

        if self.protocol == "few_shot":
            return [
                run("few_shot", dataset, n, part=f"{n}-shot training", column=str(n))
                for n in self.shots
            ]
        if self.protocol == "base2new":
            train = run("base2new_train", dataset, part="train", column="base")
            return [train, run("base2new_test", dataset, part="test", column="new", trained=train)]
        train = run("xd_train", dataset, part="train", column=dataset)
        return [
            train,
            *(
                run(
                    "xd_test",
                    target,
                    part=f"test on {target}",
                    column=target,
                    trained=train,
                    SOURCE=dataset,
                )
                for target in self.targets_of(dataset)
            ),
        ]


def folder_of(command: Sequence[str], env: Mapping[str, str]) -> Path:
    """The folder of a run; `command` ends in the seed."""
    env = os.environ | env
    settings = tuple((name, env[name]) for name in ("CFG", "SHOTS", "SOURCE") if name in env)
    below = ask(tuple(command[:-1]), settings)
    return Path(
        os.path.expanduser(env.get("OUTPUT") or "output"), below.parent, f"seed{command[-1]}"
    )


@cache  # one question for all seeds and settings
def ask(command: tuple[str, ...], settings: tuple[tuple[str, str], ...]) -> Path:
    """A run's folder below OUTPUT, as its script says; leaves with the script's line if that finds
    something wrong."""
    env = os.environ | dict(settings) | {"SHOW_DIR": "1", "OUTPUT": "."}
    asked = subprocess.run([*command, "0"], env=env, capture_output=True, text=True)
    if asked.returncode:
        sys.stderr.write(asked.stderr)
        raise SystemExit(asked.returncode)
    return Path(asked.stdout.rstrip("\n"))


def last_model(folder: Path) -> Path | None:
    """The file of a model's folder that a test loads: the best one, else the one that `checkpoint`
    names."""
    pointer = folder / "checkpoint"
    names = ["model-best.pth.tar", pointer.read_text().strip() if pointer.is_file() else ""]
    return next((folder / name for name in names if name and (folder / name).is_file()), None)


def is_stale(folder: Path) -> bool:
    """Whether the model that a run tested, as its record says, has been trained further, or anew,
    since."""
    try:
        tested = json.loads(regular(folder / RESULTS).read_text(encoding="utf-8"))["model"]
        if tested["epoch"] is not None:  # it was asked for
            return False
        for name, (file, sha256) in tested["files"].items():
            now = last_model(folder / tested["folder"] / name)
            if now and (now.name != file or hashlib.sha256(now.read_bytes()).hexdigest() != sha256):
                return True
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return False  # there is no record that says it
    return False


def unfinished(runs: Iterable[Run]) -> dict[Run, LogResult | None]:
    """What has no result, and the tests of what has been or has to be trained anew, with the
    results these have.

    Leaves with code 2 if a folder holds the result of another command.
    """
    todo: dict[Run, LogResult | None] = {}
    for run in runs:
        result = run.result()
        if result is None or run.trained in todo or is_stale(run.folder):
            todo[run] = result
        else:
            refuse_another(run)
    return todo


def refuse_another(run: Run) -> None:
    """Leaves with code 2 if the folder of a finished run holds the result of another command."""
    lock, now = run.folder / LOCK, shlex.join(run.command)
    if lock.is_file() and (was := lock.read_text(errors="replace")) not in ("", now):
        line = f"{run.folder} holds another run ({was}; now {now}): choose another OUTPUT or name for these settings"
        leave(f"{line}, or remove that folder", 2)


# -- doing them


def try_lock(folder: Path) -> int | None:
    """A file descriptor that holds the lock of a run's folder, made if need be; None if another
    process holds it."""
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
        """`terminal`: the run is to see a terminal as wide as ours, for its bars; else it writes to
        a file, which no death of ours can close. `lock` is handed over to the run."""
        self.run, self.slot, self.start, self.last = run, slot, time.monotonic(), b""
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
        return time.monotonic() - self.start

    def read(self) -> bytes:
        """What it has written to stderr since the last time."""
        pieces = []
        try:
            while piece := os.read(self.ours, 65536):
                pieces.append(piece)
        except OSError:  # nothing there yet, or a terminal's end
            pass
        self.last = (self.last + b"".join(pieces))[-20_000:]
        return b"".join(pieces)

    def failure(self) -> list[str]:
        """Why it has no result: the last lines of its stderr, else of its log, and how it ended."""
        code = self.process.returncode
        lines = text_lines(self.last)
        logs = sorted(self.run.folder.glob("log.txt*"))
        if not lines and code and logs:
            lines = text_lines(logs[-1].read_bytes())
        if code < 0:
            lines.append(f"ended by {signal.Signals(-code).name}")
        return lines[-LAST_LINES:] or [f"exit code {code} and no result in {self.run.folder}"]


def text_lines(raw: bytes) -> list[str]:
    lines = raw.decode(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()]


class View:
    """What is shown of a Pool: nothing here."""

    terminal = False  # whether runs are to draw their bars

    def starts(self, pool: "Pool", run: Run) -> None: ...
    def wrote(self, piece: bytes) -> None: ...
    def ended(self, pool: "Pool", run: Run, seconds: float | None) -> None:
        """`seconds` is None for a run that another process did."""

    def tick(self, pool: "Pool") -> None: ...
    def close(self) -> None: ...


class Pool:
    """Does runs, as many at once as there are slots, each with its slot's environment."""

    def __init__(self, runs: Sequence[Run], slots: Sequence[Mapping[str, str]], view: View):
        self.runs, self.slots, self.free, self.view = runs, slots, list(slots), view
        self.todo = unfinished(runs)
        self.jobs: list[Job] = []
        self.starter = Starter()
        self.failed: dict[
            Run, list[str]
        ] = {}  # with its last lines; none for a test whose model's training failed
        self.took: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.waiting = False  # for runs that other processes are doing, and nothing else
        self.look_at = 0.0  # when to look again for a run that can be started
        if done := len(runs) - len(self.todo):
            say(f"{done} of {len(runs)} runs are finished")

    def run(self) -> dict[Run, list[str]]:
        """Do what is not finished; returns what failed. A run that fails stops only its model's
        tests."""
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
                self.look_at = time.monotonic() + 1
                break
            run, lock = found
            self.view.starts(self, run)
            del self.todo[run]
            try:
                self.jobs.append(Job(self.starter, run, self.free.pop(0), lock, self.view.terminal))
            except OSError as error:
                leave(
                    f"cannot start a run: {error.strerror}; run the same command again to go on", 1
                )

    def next(self) -> tuple[Run, int] | None:
        """The first run that can be started now, and its lock."""
        under_way = {job.run for job in self.jobs}
        for run, before in list(self.todo.items()):
            if run.trained in self.failed:
                del self.todo[run]
                self.failed[run] = []
            elif (
                run.trained not in self.todo
                and run.trained not in under_way
                and (lock := try_lock(run.folder))
            ):
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
            if shutil.disk_usage(run.folder).free < DISK_FULL:
                leave(
                    f"no space left for {run.folder}: free some, and run the same command again to go on",
                    1,
                )
        else:
            self.took[run.method, run.part].append(job.seconds)
        self.view.ended(self, run, job.seconds)

    def stop(self) -> None:
        """End what is under way; what it saved is whole, and the next time it goes on from
        there."""
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
        # What a run had started itself, a worker say, can outlive it for a moment, and holds its
        # lock.
        deadline = time.monotonic() + STOP_SECONDS
        for job in self.jobs:
            while (lock := try_lock(job.run.folder)) is None and time.monotonic() < deadline:
                time.sleep(PAUSE)
            if lock is not None:
                os.close(lock)

    def left(self) -> str:
        """The time that is left, in words, from what runs of the same method and part took; nothing
        before the first has ended."""
        everything = [t for times in self.took.values() for t in times]
        if not everything:
            return ""

        def usual(run: Run) -> float:
            return float(np.mean(self.took.get((run.method, run.part), everything)))

        seconds = sum(map(usual, self.todo)) + sum(
            max(0.0, usual(job.run) - job.seconds) for job in self.jobs
        )
        return f" (about {timedelta(seconds=round(seconds / len(self.slots)))} left)"


def report(failed: Mapping[Run, list[str]], total: int) -> None:
    """Say what failed, with the command to try alone and the last lines of its output."""
    say(f"\n{len(failed)} of {total} runs failed:")
    for run, last in failed.items():
        if last:
            say("\n  ".join([f"{run}: {run.shell()}", *last]))
    if not_run := sum(not last for last in failed.values()):
        say(f"{not_run} of them were not run, as their training failed")
