"""How far a sweep is, from its files alone: whoever does it, here or anywhere.

Of the files of a model's unfinished runs, and its task's log, the newest tells.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dassl.commands import plain
from dassl.files import FAILURE
from results.logs import LogResult

from .plan import Model, Run, counted, unfinished
from .pool import LAST_LINES, text_lines
from .progress import in_words
from .slurm import logs_of, task_name

STATES = FINISHED, WAITING, STOPPED, UNDER_WAY, FAILED = (
    "finished", "waiting", "stopped", "under way", "failed",
)  # fmt: skip


class Status(NamedTuple):
    """Of a model: one of STATES, and what there is to say of it, in lines."""

    state: str
    lines: list[str]


def report(models: Sequence[Model], output: str) -> str:
    """A paragraph for each model that is stopped, under way or has failed, and a line of counts."""
    todo = unfinished(run for model in models for run in model.runs)
    logs = task_logs(output)
    of_each = [{run: todo[run] for run in model.runs if run in todo} for model in models]
    # older arrays have named a task by the whole path
    names = [(task_name(model, output), str(model.runs[0].folder)) for model in models]
    tasks = [logs.get(name) or logs.get(path) for name, path in names]
    found = list(map(status, models, of_each, tasks))
    told = [of for of in found if of.state in (STOPPED, UNDER_WAY, FAILED)]
    told.sort(key=lambda of: STATES.index(of.state))
    lines = ["\n    ".join([f"{of.state:9}  {of.lines[0]}", *of.lines[1:]]) for of in told]
    count = Counter(of.state for of in found)
    counts = ", ".join(f"{count[state]} {state}" for state in STATES if count[state])
    return plain("\n".join([*lines, f"{counted(models)}: {counts}"]), keep="\n")


def task_logs(output: str) -> dict[str, Path]:
    """The newest log of each model that was a task of a job array; by its `task_name`."""
    found = {}
    for log in sorted(logs_of(output).glob("*_[0-9]*.log"), key=modified_at):
        for mark in marks(log)[:1]:
            found[mark.rpartition("  # ")[2]] = log
    return found


def marks(log: Path) -> list[str]:
    """What scripts/slurm_task.sh has said in a task's log, an attempt first of all."""
    return re.findall("^== (.+)", log.read_text(errors="replace"), re.M)


def status(model: Model, todo: Mapping[Run, LogResult | None], task: Path | None) -> Status:
    """Of a model with these runs to do, and their results of before. `task` is its task's log."""
    if not todo:
        return Status(FINISHED, [])
    first = next(iter(todo))
    signs = [(task, first)] if task else []
    # a finished training is no sign of its test, unless the same task comes to it
    for run in model.runs if task else todo:
        signs += [(file, run if run in todo else first) for file in files_of(run, todo)]
    if not signs:
        return Status(WAITING, [])
    newest, run = max(signs, key=lambda sign: modified_at(sign[0]))
    mark = marks(task)[-1] if task else "attempt"
    if newest == task and mark.startswith("stopped"):
        return Status(STOPPED, [f"{run} {run.epoch()}".rstrip(), f"see {task}"])
    if newest.name == FAILURE or newest == task and not mark.startswith("attempt"):
        return failed(todo, task)
    age = in_words(max(0.0, time.time() - modified_at(newest)))
    return Status(UNDER_WAY, [f"{run} {run.epoch()}".rstrip() + f", last written {age} ago"])


def files_of(run: Run, todo: Mapping[Run, LogResult | None]) -> list[Path]:
    """What a run has written, of one that is to be done again since its last result."""
    was, failure = todo.get(run), run.folder / FAILURE
    files = [log for log in run.logs() if not was or log.name > was.path.name]
    since = modified_at(was.path) if was else 0.0
    if run in todo and failure.exists() and modified_at(failure) > since:
        files.append(failure)
    return files


def failed(todo: Iterable[Run], task: Path | None) -> Status:
    """Why, by the run that failed or else by its task's log, and where there is more."""
    where = f"see {task} ({marks(task)[-1]})" if task else ""
    for run in todo:
        if (file := run.folder / FAILURE).exists():
            lines = file.read_text(errors="replace").splitlines()
            where = where or "".join(f"see {log}" for log in run.logs()[-1:])
            return Status(FAILED, [str(run), *lines, *filter(None, [where])])
    last = text_lines(task.read_bytes())[-LAST_LINES:]
    return Status(FAILED, [str(next(iter(todo))), *last, where])


def modified_at(file: Path) -> float:
    """In seconds since 1970."""
    return file.stat().st_mtime
