"""runs/starter.py: a forked run is what its plain command is. Most runs here are of a train.py
that tells all."""

import errno
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runs import plan, pool, protocol
from runs.starter import Forked, Starter

from .runs import REPO

PROBE = '''
"""In place of train.py: writes down what a run sees of itself, ends as its last argument says."""
import json, os, random, signal, sys, termios, time, numpy.random
import seen

if __name__ == "__main__":
    out = sys.argv[sys.argv.index("--output-dir") + 1]
    os.makedirs(out, exist_ok=True)
    how = sys.argv[-5] if len(sys.argv) > 5 else ""
    tell = {
        "argv": sys.argv, "environment": dict(os.environ), "cwd": os.getcwd(), "path": sys.path,
        "file": os.path.abspath(__file__),
        "flags": str(sys.flags), "hash": hash("a word"), "parent": os.getppid(),
        "ids": [os.getpgid(0), os.getsid(0)],
        "quiet": [os.fstat(fd).st_rdev for fd in (0, 1)],
        "streams": [sys.stdout.write_through, sys.stderr.encoding],
        "terminal": os.isatty(2) and termios.tcgetwinsize(2),
        "at import": [seen.threads, seen.text],
        "signals": {str(n): str(signal.getsignal(n)) for n in sorted(signal.valid_signals())},
        "blocked": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "files": sorted(
            os.readlink(fd) for n in range(99) if os.path.lexists(fd := f"/proc/self/fd/{n}")
        ),
    }
    more = {"pid": os.getpid(), "random": random.random(), "numpy": numpy.random.rand()}
    more["torch"] = "torch" in sys.modules
    with open(f"{out}/tell.json", "w") as file:
        json.dump([tell, more], file)
    print("to stderr", file=sys.stderr)
    if how == "wait":
        while not os.path.exists("go"):
            time.sleep(0.05)
    if how == "line":
        sys.exit("a last line")
    if how == "three":
        sys.exit(3)
    if how == "trace":
        1 / 0
    if how == "stop":
        os.kill(os.getpid(), signal.SIGINT)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    with open(f"{out}/log.txt", "w") as file:
        file.write("=> result\\n* accuracy: 50.0%\\n")
'''
SEEN = 'import os\nthreads, text = os.environ.get("OMP_NUM_THREADS"), "first"\n'


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """A repository with our scripts, whose train.py is PROBE."""
    folder = tmp_path_factory.mktemp("repo")
    for name in ("scripts", "dassl", "results", "runs", "configs", "parse_test_res.py"):
        (folder / name).symlink_to(REPO / name)
    (folder / "train.py").write_text(PROBE)
    (folder / "seen.py").write_text(SEEN)
    return folder


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    starter.close()


@pytest.fixture
def quick(repo) -> Iterator[None]:
    """Templates made from here on find an empty torch: the real one takes seconds to import."""
    (repo / "torch" / "utils").mkdir(parents=True)
    (repo / "safetensors").mkdir()
    for module in ("torch/__init__", "torch/utils/__init__", "torch/utils/tensorboard",
                   "safetensors/__init__", "safetensors/torch"):  # fmt: skip
        (repo / f"{module}.py").touch()
    yield
    shutil.rmtree(repo / "torch")
    shutil.rmtree(repo / "safetensors")


@pytest.fixture(autouse=True)
def here(repo, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(repo)
    for name in (*plan.ENVIRONMENT, "SHOW_DIR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "VENV": sys.prefix,
        "OUTPUT": str(tmp_path),
        "PYTHONHASHSEED": "7",
        "ODD": "a=b\udcff\n",
    }.items():
        monkeypatch.setenv(name, value)


def plain(command: list[str], env: dict[str, str], stderr: int, lock: int) -> subprocess.Popen:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command, env=env, stdin=quiet, stdout=quiet, stderr=stderr, pass_fds=[lock]
    )


def command(how: str = "", method: str = "p2c") -> list[str]:
    return ["bash", f"scripts/{method}/xd_train.sh", "shapes", "1", *([how] if how else [])]


class Done:
    """A run that has ended: its process, its exit code, what it wrote to stderr and what it
    told."""

    def __init__(self, start: Callable, how: str, out: Path, **env: str):
        out.mkdir(exist_ok=True)
        lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT)
        with open(out / "stderr", "w+b") as stderr:
            self.process = start(
                command(how), os.environ | env | {"OUTPUT": "out"}, stderr.fileno(), lock
            )
            os.close(lock)
            self.code = self.process.wait(60)
            self.stderr = (out / "stderr").read_text()
        [file] = Path("out").rglob("tell.json")
        self.tell, self.more = json.loads(file.read_text())
        file.unlink()


@pytest.mark.parametrize("how", ["", "line", "three", "trace", "stop", "kill"])
def test_a_forked_run_sees_and_says_what_a_plain_one_does(how, starter, tmp_path):
    env = {"CUDA_VISIBLE_DEVICES": "3"}
    one, other = (Done(start, how, tmp_path, **env) for start in (starter.start, plain))
    assert isinstance(one.process, Forked) and one.more["torch"] and not other.more["torch"]
    assert one.tell == other.tell
    assert one.tell["parent"] == os.getpid() and one.tell["environment"]["ODD"] == "a=b\udcff\n"
    if how == "trace":  # with the frames of who calls train.py
        assert (
            one.stderr.splitlines()[-1]
            == other.stderr.splitlines()[-1]
            == "ZeroDivisionError: division by zero"
        )
    elif how == "stop":
        assert one.stderr.splitlines()[-1] == other.stderr.splitlines()[-1] == "KeyboardInterrupt"
    else:
        assert one.stderr == other.stderr
    assert (
        one.code
        == other.code
        == {"line": 1, "three": 3, "trace": 1, "stop": -2, "kill": -9}.get(how, 0)
    )


def test_no_two_runs_have_the_same_accidents(starter, tmp_path):
    one, other = (Done(starter.start, "", tmp_path) for _ in range(2))
    assert isinstance(other.process, Forked)
    assert all(one.more[key] != other.more[key] for key in ("pid", "random", "numpy"))


def test_what_imports_read_is_each_runs(starter, tmp_path, quick):
    """The small CLIP's runs have one thread, unless it is said how many."""
    found = [
        Done(starter.start, "", tmp_path, **env)
        for env in ({}, {"OMP_NUM_THREADS": "2"}, {"CUDA_VISIBLE_DEVICES": "5"})
    ]
    assert all(isinstance(done.process, Forked) for done in found)
    assert [done.tell["at import"][0] for done in found] == ["1", "2", "1"]
    assert found[2].tell["environment"]["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_terminal_is_seen(starter, tmp_path):
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (11, 77))
    process = starter.start(command(), dict(os.environ), its, its)
    assert process.wait(60) == 0 and os.read(ours, 100) == b"to stderr\r\n"
    [file] = tmp_path.rglob("tell.json")
    assert json.loads(file.read_text())[0]["terminal"] == [11, 77]
    os.close(ours)
    os.close(its)


def test_the_lock_is_the_runs_and_ends_with_it(starter, tmp_path):
    (tmp_path / "stderr").touch()
    lock = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(tmp_path / "stderr", "wb") as stderr:
        process = starter.start(command("wait"), dict(os.environ), stderr.fileno(), lock)
    os.close(lock)
    assert isinstance(process, Forked) and pool.try_lock(tmp_path) is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    again = pool.try_lock(tmp_path)
    assert again is not None  # the template does not hold it
    os.close(again)


def test_a_disk_without_locks_is_no_other_process(tmp_path, monkeypatch):
    """Some network file systems have none: train.py goes on there, and the runner does not wait for
    nobody."""

    def none(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    lock = pool.try_lock(tmp_path)
    assert lock is not None
    os.close(lock)


def test_a_template_that_dies_takes_nothing_with_it(tmp_path, quick):
    starter = Starter()
    running = starter.start(command("wait"), dict(os.environ), 2, 2)
    [(template, _)] = starter.templates.values()
    template.kill()
    template.wait()
    done = Done(starter.start, "three", tmp_path)
    assert isinstance(done.process, subprocess.Popen) and done.code == 3  # the plain command
    assert isinstance(Done(starter.start, "", tmp_path).process, Forked)  # of a new one
    assert isinstance(running, Forked) and running.poll() is None
    running.kill()
    assert running.wait(60) == -signal.SIGKILL
    starter.close()


def test_who_started_it_may_be_killed(tmp_path, quick):
    code = (
        "import os, time; from runs.starter import Starter; starter = Starter(); "
        f"lock = os.open('{tmp_path}/stderr', os.O_CREAT); "
        f"run = starter.start({command('wait')}, dict(os.environ), 2, lock); "
        "[(template, _)] = starter.templates.values(); "
        "print(type(run).__name__, run.pid, template.pid, flush=True); time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    kind, *pids = process.stdout.readline().split()
    run, template = (os.pidfd_open(int(pid)) for pid in pids)
    process.kill()
    process.communicate()
    wait_for(lambda: ended(template))
    assert kind == "Forked" and not ended(run)
    Path("go").touch()
    wait_for(lambda: ended(run))
    Path("go").unlink()
    assert list(tmp_path.rglob("log.txt"))
    os.close(run)
    os.close(template)


def ended(pidfd: int) -> bool:
    import select

    return bool(select.select([pidfd], [], [], 0)[0])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_changed_code_is_what_runs(repo, tmp_path, quick):
    starter = Starter()
    assert Done(starter.start, "", tmp_path).tell["at import"][1] == "first"
    try:
        (repo / "seen.py").write_text(SEEN.replace("first", "second"))
        found = [Done(starter.start, "", tmp_path) for _ in range(2)]
    finally:
        (repo / "seen.py").write_text(SEEN)
    assert [done.tell["at import"][1] for done in found] == ["second"] * 2
    assert isinstance(found[1].process, Forked)
    starter.close()


def test_code_changed_while_it_is_imported_is_not_forked(repo, tmp_path, quick):
    starter = Starter()
    second = SEEN.replace("first", "second")
    change = (
        f'import sys\nif sys.argv[0] != "train.py":\n    open(__file__, "w").write({second!r})\n'
    )
    (repo / "seen.py").write_text(SEEN + change)
    try:
        assert [Done(starter.start, "", tmp_path).tell["at import"][1] for _ in range(2)] == [
            "second"
        ] * 2
    finally:
        (repo / "seen.py").write_text(SEEN)
    starter.close()


def test_what_cannot_be_imported_is_run_plainly(repo, tmp_path, quick):
    starter = Starter()
    (repo / "seen.py").write_text(
        SEEN + 'if __import__("sys").argv[0] != "train.py": raise ValueError\n'
    )
    try:
        for _ in range(2):
            done = Done(starter.start, "three", tmp_path)
            assert isinstance(done.process, subprocess.Popen) and done.code == 3
    finally:
        (repo / "seen.py").write_text(SEEN)
    starter.close()


def test_a_script_that_finds_something_wrong_says_it_once(starter, tmp_path):
    with open(tmp_path / "stderr", "w+b") as stderr:
        process = starter.start(
            command(), os.environ | {"CFG": "none"}, stderr.fileno(), stderr.fileno()
        )
    error = (tmp_path / "stderr").read_text() if process.wait(60) == 2 else ""
    assert (
        error.startswith("error: no config configs/trainers/P2C/none.yaml")
        and error.count("\n") == 1
    )


def test_a_protocols_runs_are_forked(tmp_path, capsys, quick):
    assert (
        protocol.main(
            "few_shot --methods p2c zsclip --datasets shapes --seeds 1 --shots 1 2".split()
        )
        == 0
    )
    told = [json.loads(file.read_text()) for file in tmp_path.rglob("tell.json")]
    assert len(told) == 4 and all(
        more["torch"] and tell["parent"] == os.getpid() for tell, more in told
    )
    assert "P2C" in capsys.readouterr().out


# -- as typed


def record(out: Path) -> tuple[dict, dict[str, bytes]]:
    """A training's results.json without times and memory, and its checkpoints."""
    [file] = out.rglob("results.json")
    result = json.loads(file.read_text().replace(str(out), "out"))
    for name in (
        "peak_memory_mb",
        "finished",
        "epoch_seconds",
        "train_seconds",
        "test_seconds",
        "images_per_second",
    ):
        del result[name]
    return result, {path.name: path.read_bytes() for path in file.parent.rglob("*.pth.tar*")}


def test_a_training_is_the_plain_one_bit_for_bit(data, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    starter, words = (
        Starter(),
        ["bash", "scripts/p2c/base2new_train.sh", "shapes", "1", "OPTIM.MAX_EPOCH", "2"],
    )
    for start in (starter.start, plain):
        out = tmp_path / start.__name__
        out.mkdir()
        with open(out / "stderr", "wb") as stderr:
            env = os.environ | {"DATA": str(data), "SHOTS": "1", "OUTPUT": str(out)}
            assert start(words, env, stderr.fileno(), stderr.fileno()).wait(200) == 0
    starter.close()
    one, other = record(tmp_path / "start"), record(tmp_path / "plain")
    assert one == other and one[1]
