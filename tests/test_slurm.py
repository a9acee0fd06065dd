"""scripts/sweep.sh on a real Slurm of one node (tests/slurm_cluster.py); what needs none is in
test_queue.py.

What is killed is held by SIGSTOP before, so that it is in the middle for certain.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from runs import plan, slurm

from .runs import HANG, REPO, wait_for
from .slurm_cluster import JOBS, MISSING, Cluster, environment, holders
from .test_kill import state

PACKAGES = "slurmctld slurmd slurm-client munge"
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no Slurm (apt-get install {PACKAGES}): no {', '.join(MISSING)}"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
    assert not cluster.left()


@pytest.fixture
def sweep(cluster, data) -> Callable[..., subprocess.Popen]:
    """Starts scripts/sweep.sh with a file and words, as one who can reach the cluster."""

    def start(file: Path, *words: str, **env: str) -> subprocess.Popen:
        env = cluster.env | {"VENV": sys.prefix, "DATA": str(data), "SHOTS": "1"} | env
        return subprocess.Popen(
            ["bash", "scripts/sweep.sh", str(file), *words],
            cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def said(process: subprocess.Popen, code: int = 0) -> str:
    """What it has printed, to stdout or, if it is to fail, to stderr."""
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == code, err
    return err if code else out


def write(file: Path, **keys) -> Path:
    """A sweep's file of base-to-new runs on the bundled benchmark, with its output beside it."""
    usual = {"protocol": "base2new", "datasets": ["shapes"], "output": str(file.with_suffix(""))}
    file.write_text(yaml.safe_dump(usual | keys))
    return file


def submit(process: subprocess.Popen) -> int:
    """The number of the array that a sweep has become."""
    return int(said(process).split()[1].strip(":"))


def tasks_of(cluster: Cluster, job: int) -> list[str]:
    """Those of an array that have not ended."""
    return [name for name in cluster.queue() if name == "?" or name.startswith(f"{job}_")]


def pids_of(cluster: Cluster, task: int) -> list[int]:
    """The processes of a task: its batch script and all that it has started."""
    mark = f"SLURM_ARRAY_TASK_ID={task}\0"
    return [pid for pid in cluster.left() if mark in environment(pid)]


def send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


# -- a task


@pytest.fixture
def submit_commands(cluster, tmp_path, monkeypatch) -> Callable[..., int]:
    """Submits an array whose tasks are commands; the job's number."""
    monkeypatch.chdir(REPO)
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.env[name])

    def submit(*commands: str) -> int:
        run = plan.Plan("few_shot", shots=[1]).runs("coop", "shapes", 1)
        models = [plan.Model(command, run) for command in commands]
        return slurm.sbatch(slurm.Array(models, str(tmp_path), "", attempts=2).script())

    return submit


def test_a_cancelled_task_does_not_come_back(cluster, tmp_path, submit_commands):
    job = submit_commands("sleep 1000")
    log = tmp_path / "slurm" / f"{job}_1.log"
    wait_for(lambda: log.exists() and "== attempt" in log.read_text() and pids_of(cluster, 1))
    assert cluster.ask("scancel", f"{job}") == ""
    wait_for(lambda: not tasks_of(cluster, job))
    wait_for(lambda: not pids_of(cluster, 1))
    assert not tasks_of(cluster, job)
    last = log.read_text()
    assert last.count("== attempt") == 1 and "CANCELLED" in last


# -- the whole cycle


METHODS, TRAINERS, SEEDS = ["coop", "kgcoop"], ["CoOp", "KgCoOp"], [1, 2]
KILLED, CUT, LOST, QUIET = 1, 2, 3, 4  # the tasks: first seed's first


def trained_in(out: Path, task: int) -> Path:
    """The folder of a task's training."""
    seed, method = divmod(task - 1, 2)
    found = out.glob(f"base2new/train_base/shapes/shots_1/{TRAINERS[method]}/*/seed{seed + 1}")
    return next(found, Path("/nowhere"))


def hold(out: Path, tasks: Sequence[int]) -> dict[int, list[int]]:
    """Stops the processes that train when each has saved an epoch."""
    held = {}

    def look() -> bool:
        for task in set(tasks) - set(held):
            folder = trained_in(out, task)
            if list(folder.rglob("model.pth.tar-*")):
                held[task] = holders(folder / "log.txt")
                send(held[task], signal.SIGSTOP)
                assert "Finish training" not in (folder / "log.txt").read_text()
        return len(held) == len(tasks)

    wait_for(look, 0.005)
    return held


def has_sigterm(pid: int) -> bool:
    """Whether it waits for a process that is held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if "Pnd:" in line]
    return any(mask >> signal.SIGTERM - 1 & 1 for mask in masks)


def limit(cluster: Cluster, task: str, minutes: int) -> None:
    assert cluster.ask("scontrol", "update", f"JobId={task}", f"TimeLimit={minutes}") is not None


def rows(table: str) -> list[list[str]]:
    """A table's rows without their last column, the seconds."""
    return [line.split()[:-1] for line in table.splitlines() if line.startswith("Shapes ")]


def test_killed_cut_lost_and_submitted_again(cluster, sweep, tmp_path):
    """All runs end bitwise as those of a sweep on this machine that nobody disturbed."""
    file, out = write(tmp_path / "my.yaml", methods=METHODS, seeds=SEEDS), tmp_path / "my"
    job = submit(sweep(file, "--slurm", "--partition=main --time=10"))
    held = hold(out, [KILLED, CUT, LOST])
    alone = sweep(file, "--slots", "1", OUTPUT=str(tmp_path / "alone"))
    send(held[KILLED], signal.SIGKILL)  # the run alone
    send(pids_of(cluster, LOST), signal.SIGKILL)  # the batch script too, so nobody asks for it
    limit(cluster, f"{job}_{CUT}", minutes=1)
    assert f"error: job {job} is at this sweep" in said(sweep(file, "--slurm", ""), 1)
    wait_for(lambda: any(has_sigterm(pid) for pid in held[CUT]))
    send(held[CUT], signal.SIGCONT)
    cluster.restart_controller()  # while the task asks it for its requeue
    limit(cluster, f"{job}_{CUT}", minutes=10)  # however slow this machine is
    table = said(alone)

    wait_for(lambda: not tasks_of(cluster, job), 0.1)
    logs = [(out / "slurm" / f"{job}_{task}.log").read_text() for task in (1, 2, 3, 4)]
    assert [log.count("== attempt") for log in logs] == [2, 2, 1, 1]
    assert "== stopped (exit code 137)" in logs[KILLED - 1]
    assert "== stopped (exit code 130)" in logs[CUT - 1]
    assert "4 models: 3 finished, 1 under way\n" in said(sweep(file, "--status"))

    again = submit(sweep(file, "--slurm", "--partition=main"))
    assert (out / "slurm" / f"{again}.sbatch").read_text().count("--seeds") == 1
    wait_for(lambda: not cluster.queue(), 0.1)
    shown = (out / "slurm" / f"{again}_table.log").read_text()
    assert shown.startswith("4 models: 4 finished\n")
    assert rows(shown) == rows(table) and len(rows(table)) == 2
    folders = [path.parent for path in (tmp_path / "alone").rglob("results.json")]
    assert len(folders) == 8
    for folder in folders:
        assert state(folder) == state(out / folder.relative_to(tmp_path / "alone"))


# -- what goes wrong


def test_a_run_that_fails_by_itself(cluster, sweep, tmp_path):
    """It is not begun again, and --status has its line."""
    broken = {"broken": ["MODEL.INIT_WEIGHTS", "/no/such/file"]}
    file = write(tmp_path / "my.yaml", methods=["coop"], seeds=[1], settings=broken)
    job = submit(sweep(file, "--slurm", ""))
    wait_for(lambda: not tasks_of(cluster, job), 0.1)
    lines = said(sweep(file, "--status")).splitlines()
    assert lines[0] == "failed     coop broken, shapes, seed 1: train"
    assert lines[1].startswith("    error: ") and "/no/such/file" in lines[1]
    log = tmp_path / "my" / "slurm" / f"{job}_1.log"
    assert lines[2:] == [f"    see {log} (exit code 1)", "1 model: 1 failed"]
    assert log.read_text().count("== attempt") == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--partition=nope", "error: sbatch: invalid partition specified: nope; "),
        ("--no-such-option", "error: sbatch: unrecognized option '--no-such-option'; "),
        ("--time=soon", "error: sbatch: Invalid --time specification\n"),
    ],
)
def test_wrong_options_are_one_line(sweep, tmp_path, options, line):
    file = write(tmp_path / "my.yaml", methods=["coop"], seeds=[1])
    err = said(sweep(file, "--slurm", options), 1)
    assert err.startswith(line) and err.count("\n") == 1


def test_a_full_queue_is_one_line(sweep, tmp_path):
    file = write(tmp_path / "my.yaml", methods=["coop"], seeds=list(range(JOBS)))
    err = said(sweep(file, "--slurm", ""), 1)
    assert err.startswith("error: sbatch: the queue is full (Slurm temporarily unable to accept ")
    assert err.count("\n") == 1
