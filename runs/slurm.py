"""A sweep as a job array of Slurm: one task is one model, its training and then its tests.

Slurm schedules, limits and requeues. No two submissions are at one output folder: the job's name,
which is the folder's, tells. scripts/slurm_task.sh is what a task does.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dassl.commands import leave, say

from .plan import SCRIPTS, Model, as_typed, counted

TASK = SCRIPTS / "slurm_task.sh"
ATTEMPTS = 10  # of a task, unless it is said
# Options that a user may not set, as they would miss each other.
OURS = ("-a", "--array", "-J", "--job-name", "-o", "--output")
BUSY = "retrying"  # sbatch says so where the queue is full, and then for two minutes nothing


def logs_of(output: str) -> Path:
    """The folder of the tasks' logs, JOB_TASK.log, and of the batch scripts that were submitted."""
    return Path(output, "slurm")


def make_logs(output: str) -> Path:
    """The same, absolute and made: Slurm does not make it. Leaves if it cannot be."""
    folder = logs_of(output).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        leave(f"cannot write to {folder}: {error.strerror}", 1)
    return folder


def task_name(model: Model, output: str) -> str:
    """What a task's log calls its model: the training's folder, as it is below the output."""
    return os.path.relpath(model.runs[0].folder, output)


def job_name(output: str) -> str:
    """The same for each sweep with this output folder, and for no other."""
    path = Path(output).resolve()
    digest = hashlib.sha256(bytes(path)).hexdigest()
    return re.sub(r"[^\w.-]", "_", path.name) + f"-{digest[:6]}"


def joined(words: Sequence[str]) -> list[str]:
    """A command line in which --slurm and its value, which begins with -, are one word."""
    words = list(words)
    if "--slurm" in words[:-1]:
        at = words.index("--slurm")
        words[at : at + 2] = [f"--slurm={words[at + 1]}"]
    return words


def problem(options: str) -> str:
    """Why the user's options for sbatch cannot be taken; "" if they can."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        return f"{options}: {error}"
    if words and (not words[0].startswith("-") or "\n" in options):
        return f"{options}: options of sbatch are wanted, as --partition=gpu --gpus=1"
    for word in words:
        if word.startswith("--") and word.partition("=")[0] in OURS or word[:2] in OURS:
            return f"{word} is the sweep's own"
    return ""


@dataclass
class Array:
    """A job array: a task for each of some models of one output folder."""

    models: Sequence[Model]
    output: str
    options: str  # the user's, for sbatch
    most: int | None = None  # tasks at once; None: as many as there is room for
    attempts: int | None = None  # starts of a task

    def script(self) -> str:
        """What sbatch is given; it needs no other file of the sweep."""
        logs = make_logs(self.output)
        array = f"1-{len(self.models)}" + (f"%{self.most}" if self.most else "")
        tasks = [f"{model.command}  # {task_name(model, self.output)}" for model in self.models]
        lines = [
            "#!/usr/bin/env bash",
            "#SBATCH --requeue --open-mode=append --signal=B:TERM@60",
            *self.usual_lines(f"--array={array}", log="%A_%a.log"),
            f"logs={shlex.quote(str(logs))} attempts={self.attempts or ATTEMPTS}",
            "",
            TASK.read_text(encoding="utf-8"),
            *(f"#{number} {task}" for number, task in enumerate(tasks, 1)),
        ]
        return "\n".join([*lines, ""])

    def table_script(self, job: int, file: Path) -> str:
        """A job for the time when all tasks of array `job`, of a sweep's file, have ended."""
        table = as_typed(["bash", f"{SCRIPTS}/sweep.sh", str(file), "--status"], {})
        after = f"--dependency=afterany:{job}"
        lines = self.usual_lines(after, log=f"{job}_table.log", name="-table")
        return "\n".join(["#!/usr/bin/env bash", *lines, table, ""])

    def usual_lines(self, *options: str, log: str, name: str = "") -> list[str]:
        """Of a batch script: options, the user's before ours, and the way to the repository."""
        log = str(make_logs(self.output)).replace("%", "%%") + f"/{log}"
        options = (f"--job-name={job_name(self.output)}{name}", *options, f"--output={log}")
        user = [f"#SBATCH {self.options}"] if self.options else []
        return [*user, f"#SBATCH {shlex.join(options)}", f"cd {shlex.quote(os.getcwd())} || exit"]

    def print(self) -> None:
        """The batch script, to be kept and edited."""
        print(self.script(), end="")

    def submit(self, file: Path) -> None:
        """Submits it, and a job for the table after it.

        Leaves with one line if Slurm, or another submission, does not let it.
        """
        refuse_second(name := job_name(self.output))
        if len(self.models) > (limit := array_limit()):
            say(f"Slurm takes {limit} of {counted(self.models)}: later, submit the others")
            self.models = self.models[:limit]
        script = self.script()
        job = sbatch(script)
        refuse_second(name, job)
        logs = logs_of(self.output)
        (logs / f"{job}.sbatch").write_text(script)
        print(f"job {job}: {counted(self.models)}, a log for each: {logs}/{job}_N.log")
        status = shlex.join(["bash", "scripts/sweep.sh", str(file), "--status"])
        print(f"how it goes: {status}; squeue --name={name}")
        table = sbatch(self.table_script(job, file))
        print(f"job {table}: at their end the table, in {logs}/{job}_table.log")


def refuse_second(name: str, ours: int | None = None) -> None:
    """Leaves if a job of that name has not ended, and is older than ours, which then ends."""
    jobs = ask("squeue", "--noheader", f"--name={name}", "--format=%F").split()
    older = [job for job in map(int, jobs) if ours is None or job < ours]
    if not older:
        return
    if ours is not None:
        ask("scancel", str(ours))
    job = min(older)
    leave(f"job {job} is at this sweep: wait for its end, or end it with scancel {job}", 1)


def array_limit() -> int:
    """How many tasks an array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.M)
    return int(found[1]) - 1  # it is of numbers from 0 on


def sbatch(script: str) -> int:
    """Submits a batch script; the job's number. Leaves if the options kept sbatch from it."""
    answer = ask("sbatch", "--parsable", stdin=script)
    if not (number := re.match(r"\d+", answer)):
        leave("sbatch has submitted nothing (--test-only?); --dry-run prints its script", 1)
    return int(number[0])


def ask(*command: str, stdin: str = "") -> str:
    """What a program of Slurm prints; leaves with what it says as one line if it fails."""
    if not shutil.which(command[0]):
        line = f"no {command[0]} on the PATH: --slurm is for a login node of a Slurm cluster"
        leave(f"{line}; --dry-run prints what it would submit", 2)
    said, file = [], tempfile.TemporaryFile
    with file("w+") as given, file("w+") as answer:
        given.write(stdin)
        given.seek(0)
        files = {"stdin": given, "stdout": answer, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **files) as process:
            for line in process.stderr:
                said.append(line.strip().removeprefix(f"{command[0]}: ").removeprefix("error: "))
                if BUSY in line:
                    process.kill()
                    leave(f"{command[0]}: the queue is full ({said[-1]}): submit again later", 1)
        if process.returncode:
            leave(f"{command[0]}: {'; '.join(said)}", 1)
        answer.seek(0)
        return answer.read()
