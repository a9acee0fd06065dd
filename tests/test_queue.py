"""A sweep handed to a queue: commands of models, batch scripts, and what --status finds; without
any Slurm, which is in test_slurm.py."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from runs import plan, pool, protocol, slurm, status, sweep

from .runs import HANG, REPO, wait_for

KEYS = {
    "base2new": {"settings": {"a": ["OPTIM.MAX_EPOCH", 2], "b": "vit_tiny_ep5_batch4"}},
    "xd": {"targets": ["shapes_background", "shapes", "shapes_count"]},
    "dg": {},
    "few_shot": {"shots": [4, 1], "settings": {"a": []}},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(REPO)
    for name in (*plan.ENVIRONMENT, "SHOW_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sweep, "check_config_keys", lambda *_: None)  # loads torch


def write(folder: Path, **keys) -> str:
    """A sweep's file, of one P2C unless it is said, whose output is the folder `my`."""
    usual = {"protocol": "base2new", "methods": ["p2c"], "datasets": ["shapes"], "seeds": [1]}
    usual["output"] = str(folder / "my")
    (folder / "my.yaml").write_text(yaml.safe_dump(usual | keys))
    return str(folder / "my.yaml")


def printed(words: list[str], capsys, main=sweep.main) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def the_line(words: list[str], code: int, capsys) -> str:
    with pytest.raises(SystemExit) as caught:
        sweep.main(words)
    err = capsys.readouterr().err
    assert caught.value.code == code and err.startswith("error: ") and err.count("\n") == 1, err
    return err


# -- one command for each model


@pytest.mark.parametrize("kind", KEYS)
def test_the_commands_of_models_have_the_sweeps_runs(kind, tmp_path, capsys, monkeypatch):
    """As scripts/protocol.sh --dry-run prints them of each."""
    name = write(tmp_path, protocol=kind, methods=["p2c", "coop"], seeds=[2, 1], **KEYS[kind])
    if kind == "base2new":  # the config's name is P2C's
        name = write(tmp_path, protocol=kind, seeds=[2, 1], **KEYS[kind])
    wanted = [run.shell() for run in sweep.read_sweep(Path(name)).runs()]
    lines = printed([name, "--dry-run"], capsys).splitlines()
    found = []
    for line in lines:
        words = shlex.split(line)
        at = words.index("bash")
        assert words[at + 1] == "scripts/protocol.sh"
        with monkeypatch.context() as patch:
            for variable in words[:at]:
                patch.setenv(*variable.split("=", 1))
            found += printed(["--dry-run", *words[at + 2 :]], capsys, protocol.main).splitlines()
    assert sorted(found) == sorted(wanted) and len(lines) == (8 if kind == "few_shot" else 4)


def test_what_is_finished_is_left_out(tmp_path, capsys):
    name = write(tmp_path, seeds=[1, 2])
    [one, two] = sweep.read_sweep(Path(name)).models()
    end(one.runs[0])
    assert printed([name, "--dry-run"], capsys).splitlines() == [one.command, two.command]
    end(one.runs[1])
    assert printed([name, "--dry-run"], capsys).splitlines() == [two.command]
    for run in two.runs:
        end(run)
    assert sweep.main([name, "--slurm", "", "--dry-run"]) == 0
    assert capsys.readouterr() == ("", "all models are finished\n")


# -- the batch script


def test_the_batch_script(tmp_path, capsys):
    name, options = write(tmp_path, seeds=[1, 2, 3]), "--partition=gpu --gpus=1 -t 2:00:00"
    words = [name, "--slurm", options, "--dry-run", "--max-parallel", "2", "--attempts", "7"]
    text = printed(words, capsys)
    lines = text.splitlines()
    models = sweep.read_sweep(Path(name)).models()
    digest = slurm.job_name(str(tmp_path / "my"))[-6:]
    assert lines[:6] == [
        "#!/usr/bin/env bash",
        "#SBATCH --requeue --open-mode=append --signal=B:TERM@60",
        f"#SBATCH {options}",
        f"#SBATCH --job-name=my-{digest} --array=1-3%2 --output={tmp_path}/my/slurm/%A_%a.log",
        f"cd {REPO}" + " || exit",
        f"logs={tmp_path}/my/slurm attempts=7",
    ]
    assert lines[-3:] == [
        f"#{n} {model.command}  # {model.runs[0].folder.relative_to(tmp_path / 'my')}"
        for n, model in enumerate(models, 1)
    ]
    assert (tmp_path / "my" / "slurm").is_dir()  # sbatch of a kept script does not make it
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_each_output_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [slurm.job_name(output) for output in ("a/my", str(tmp_path / "a/my"), "b/my", "ü ,x")]
    assert names[0] == names[1] != names[2] and names[0][:-6] == names[2][:-6] == "my-"
    assert names[3].startswith("ü__x-")


FAKES = {  # of Slurm's programs; what they are asked goes to the file `asked`
    "squeue": 'echo "squeue $*" >> asked; [ -e away ] && rm away && exit 1; cat state',
    "scontrol": 'echo "scontrol $*" >> asked',
    "sleep": 'echo "sleep $*" >> asked',
}


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Starts a task that is a command, on a node where its state is RUNNING or another."""
    monkeypatch.chdir(tmp_path)
    for name, text in FAKES.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def start(command: str, state: str = "RUNNING") -> subprocess.Popen:
        (tmp_path / "state").write_text(state)
        (tmp_path / "asked").write_text("")
        text = f"logs={tmp_path} attempts=3\n{(REPO / slurm.TASK).read_text()}\n#1 false\n"
        (tmp_path / "script").write_text(f"{text}#12 {command}  # there\n")
        env = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "12", "SLURM_JOB_ID": "7"}
        env = os.environ | env | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        with open("7_12.log", "a") as log:
            return subprocess.Popen(["bash", "script"], env=env, stdout=log, stderr=log)

    return start


def marks() -> list[str]:
    return [line.split(" on ")[0] for line in Path("7_12.log").read_text().splitlines()
            if line.startswith("== ")]  # fmt: skip


def asked() -> list[str]:
    return Path("asked").read_text().splitlines()


ASKS = ["sleep 0", "squeue --noheader --jobs=7_12 --format=%T", "scontrol requeue 7_12"]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_task_that_ends_by_itself_is_not_requeued(task, code):
    assert task(f"exit {code}").wait(HANG) == code and asked() == []
    assert marks() == ["== attempt 1 of 3", f"== exit code {code}"]


def test_a_task_that_is_killed_asks_for_its_requeue_until_it_gives_up(task):
    for attempt in (1, 2, 3):
        assert task("kill -9 $$").wait(HANG) == 137 and asked() == ASKS
        assert marks()[-2:] == [f"== attempt {attempt} of 3", "== stopped (exit code 137)"]
    assert task("touch ran; kill -9 $$").wait(HANG) == 1 and asked() == []
    assert marks()[-1] == "== given up after 3 attempts" and not Path("ran").exists()


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_a_task_that_slurm_ends_itself_is_not_requeued(task, state):
    assert task("kill -9 $$", state).wait(HANG) == 137 and asked() == ASKS[:2]


def test_a_controller_that_is_away_is_asked_again(task):
    Path("away").touch()
    assert task("kill -9 $$").wait(HANG) == 137
    assert asked() == [*ASKS[:2], "sleep 5", *ASKS[1:]]


def test_a_signal_is_for_the_runner(task):
    """Which ends its runs before the task ends; what it forgets is killed."""
    runner = "trap 'touch told; /bin/sleep 0.2; touch ended; exit 130' TERM; /bin/sleep 1000 & "
    process = task(f"{runner} echo $! > child; wait")
    wait_for(lambda: Path("child").exists() and Path("child").read_text())
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 130 and Path("ended").exists() and asked() == ASKS
    child = int(Path("child").read_text())
    for _ in range(200):
        if not (alive := is_alive(child)):
            break
        time.sleep(0.02)
    else:
        os.kill(child, signal.SIGKILL)
    assert not alive


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


# -- what goes wrong


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--slurm partition=gpu", "--slurm: partition=gpu: options of sbatch are wanted"),
        ("--slurm --array=1-3", "--slurm: --array=1-3 is the sweep's own"),
        ("--slurm '-p gpu -J name'", "--slurm: -J is the sweep's own"),
        ("""--slurm '--comment="a'""", "--slurm: --comment=\"a: No closing quotation"),
        ("--slurm '' --max-parallel 0", "--max-parallel must be 1 or more"),
        ("--max-parallel 2", "--max-parallel and --attempts go with --slurm"),
        ("--attempts 2", "--max-parallel and --attempts go with --slurm"),
        ("--slurm '' --slots 2", "--slots goes with none of --slurm, --status and --dry-run"),
        ("--slurm '' --status", "--status goes with neither --slurm nor --dry-run"),
        ("--slurm", "argument --slurm: expected one argument"),
    ],
)  # fmt: skip
def test_words_that_make_no_sense(words, line, tmp_path, capsys):
    assert the_line([write(tmp_path), *shlex.split(words)], 2, capsys).startswith(f"error: {line}")


def test_no_slurm_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    line = the_line([write(tmp_path), "--slurm", ""], 2, capsys)
    assert line.startswith("error: no squeue on the PATH: --slurm is for a login node of a Slurm")


class FakeSlurm:
    """In place of slurm.ask: a controller that has jobs of that name, and takes more."""

    def __init__(self, *jobs: int, limit: int = 1001):
        self.jobs, self.limit, self.asked, self.scripts = list(jobs), limit, [], []

    def __call__(self, program: str, *words: str, stdin: str = "") -> str:
        self.asked.append((program, *words))
        if program == "sbatch":
            self.scripts.append(stdin)
            self.jobs.append(20 + len(self.scripts))
            return f"{self.jobs[-1]};cluster\n"
        queue = "".join(f"{job}\n{job}\n" for job in self.jobs)
        return {"squeue": queue, "scontrol": f"MaxArraySize            = {self.limit}\n"}[program]


def test_what_is_submitted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(slurm, "ask", fake := FakeSlurm(limit=3))
    monkeypatch.setenv("DATA", "/my data")
    name = write(tmp_path, seeds=[1, 2, 3])
    assert sweep.main([name, "--slurm", "--partition=gpu"]) == 0
    out, err = capsys.readouterr()
    logs = tmp_path / "my" / "slurm"
    assert out.splitlines()[0] == f"job 21: 2 models, a log for each: {logs}/21_N.log"
    assert out.splitlines()[2] == f"job 22: at their end the table, in {logs}/21_table.log"
    assert err == "Slurm takes 2 of 3 models: later, submit the others\n"
    array, table = fake.scripts
    assert (logs / "21.sbatch").read_text() == array and " --array=1-2 " in array
    command = f"DATA='/my data' bash scripts/sweep.sh {name} --status"
    assert "#SBATCH --partition=gpu\n" in table and table.splitlines()[-1] == command
    assert f"-table --dependency=afterany:21 --output={logs}/21_table.log\n" in table


def test_what_sbatch_only_tests_is_one_line(tmp_path, capsys, monkeypatch):
    """It succeeds, and prints no job."""
    fake = FakeSlurm()
    nothing = lambda *words, **of: "" if words[0] == "sbatch" else fake(*words, **of)  # noqa: E731
    monkeypatch.setattr(slurm, "ask", nothing)
    line = the_line([write(tmp_path), "--slurm", "--test-only"], 1, capsys)
    assert line.startswith("error: sbatch has submitted nothing (--test-only?)")


def test_the_command_for_the_status_can_be_pasted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(slurm, "ask", FakeSlurm())
    (folder := tmp_path / "my sweeps").mkdir()
    name = write(folder)
    assert f" bash scripts/sweep.sh '{name}' --status;" in printed([name, "--slurm", ""], capsys)


def test_a_second_submission_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(slurm, "ask", fake := FakeSlurm(12, 9))
    line = the_line([write(tmp_path), "--slurm", ""], 1, capsys)
    assert line.startswith(
        "error: job 9 is at this sweep: wait for its end, or end it with scancel"
    )
    name = slurm.job_name(str(tmp_path / "my"))
    assert fake.asked == [("squeue", "--noheader", f"--name={name}", "--format=%F")]


def test_of_two_submissions_at_once_the_first_stays(monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(slurm, "ask", lambda *words: ended.append(words) or "7\n5\n")
    slurm.refuse_second("name", 5)
    assert [words[0] for words in ended] == ["squeue"]
    with pytest.raises(SystemExit):
        slurm.refuse_second("name", 7)
    assert ended[-1] == ("scancel", "7") and "job 5 is at this sweep" in capsys.readouterr().err


# -- how far it is


def put(file: Path, text: str, ago: float) -> None:
    """A file that was written so many seconds ago."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    os.utime(file, (time.time() - ago,) * 2)


def end(run: plan.Run, ago: float = 100) -> None:
    """As if it had ended well."""
    ending = "" if run.trained else "epoch [2/2] batch [1/1]\nFinish training\n"
    put(run.folder / "log.txt", f"{ending}=> result\n* accuracy: 50.0%\n", ago)


EPOCH = "epoch [2/5] batch [1/2] loss 1.0\n"


@pytest.fixture
def four(tmp_path) -> tuple[str, list[plan.Model]]:
    """A sweep's file and its models, of which the first is finished."""
    name = write(tmp_path, seeds=[1, 2, 3, 4])
    models = sweep.read_sweep(Path(name)).models()
    for run in models[0].runs:
        end(run)
    return name, models


def task_log(tmp_path: Path, model: plan.Model, job: int, text: str, ago: float) -> str:
    log = tmp_path / "my" / "slurm" / f"{job}_1.log"
    name = model.runs[0].folder.relative_to(tmp_path / "my")
    head = f"== attempt 1 of 10 on n0, 2026-01-01 10:00:00: a command  # {name}\n"
    put(log, head + text, ago)
    return str(log)


def test_a_sweep_on_this_machine(four, tmp_path, capsys):
    name, (_, two, three, _) = four
    put(two.runs[0].folder / "log.txt", EPOCH, 65)
    put(three.runs[0].folder / "log.txt", EPOCH, 65)
    put(three.runs[0].folder / "failure.txt", "some\nerror: \x1b[31mno luck", 60)
    lines = printed([name, "--status"], capsys).splitlines()
    assert lines[:5] == [
        "under way  p2c, shapes, seed 2: train epoch [2/5], last written 0:01:05 ago",
        "failed     p2c, shapes, seed 3: train",
        "    some",
        "    error: \\x1b[31mno luck",
        f"    see {three.runs[0].folder}/log.txt",
    ]
    assert lines[5] == "4 models: 1 finished, 1 waiting, 1 under way, 1 failed"
    assert lines[7] == f"python -m results.tables base2new {tmp_path}/my --cost"
    assert lines[11].split()[:5] == ["Shapes", "P2C", "50.0", "50.0", "50.0"]

    put(three.runs[0].folder / "log.txt-2026-01-01-10-00-00", EPOCH, 5)  # it is tried again
    assert " 1 finished, 1 waiting, 2 under way\n" in printed([name, "--status"], capsys)


def test_a_test_that_has_not_begun_is_waiting(four, capsys):
    name, (_, two, *_) = four
    end(two.runs[0], ago=9)  # by another sweep or protocol, for all that is known
    assert printed([name, "--status"], capsys).startswith("4 models: 1 finished, 3 waiting\n")


def test_the_test_of_an_older_model_is_waiting(four, tmp_path, capsys):
    name, (_, two, *_) = four
    for run in two.runs:
        end(run)
    model = two.runs[0].folder / "MultiModalPromptLearner"
    put(model / "model.pth.tar-5", "trained anew", 5)
    put(model / "checkpoint", "model.pth.tar-5\n", 5)
    about = {"epoch": None, "files": {model.name: ["model.pth.tar-5", "0" * 64]}}
    about["folder"] = os.path.relpath(two.runs[0].folder, two.runs[1].folder)
    put(two.runs[1].folder / "results.json", json.dumps({"model": about}), 50)
    assert printed([name, "--status"], capsys).startswith("4 models: 1 finished, 3 waiting\n")
    put(two.runs[1].folder / "failure.txt", "error: long ago", 200)
    assert printed([name, "--status"], capsys).startswith("4 models: 1 finished, 3 waiting\n")
    put(two.runs[1].folder / "log.txt-2026-01-01-10-00-00", "", 5)  # it is tested again
    assert " 1 finished, 2 waiting, 1 under way\n" in printed([name, "--status"], capsys)
    put(two.runs[1].folder / "failure.txt", "error: no luck", 2)
    lines = printed([name, "--status"], capsys).splitlines()
    assert lines[:2] == ["failed     p2c, shapes, seed 2: test", "    error: no luck"]


def test_a_script_that_sets_the_epoch_to_test(four, tmp_path, monkeypatch):
    """A user's own may, which is then asked for it."""
    name, _ = four
    monkeypatch.setattr(plan, "ask", lambda *of, ask=plan.ask: (ask(*of)[0], "05"))
    models = sweep.read_sweep(Path(name)).models()
    test = models[0].runs[1]
    put(test.folder / "results.json", json.dumps({"model": {"epoch": 5}}), 50)
    assert test not in plan.unfinished(models[0].runs)
    put(test.folder / "results.json", json.dumps({"model": {"epoch": None}}), 50)
    assert test in plan.unfinished(models[0].runs)
    put(test.folder / "results.json", json.dumps({"model": None}), 50)  # zero-shot CLIP's
    assert test not in plan.unfinished(models[0].runs)


def test_a_home_is_no_folder_called_tilde(four, tmp_path, monkeypatch):
    name, _ = four
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OUTPUT", "~/there")
    assert sweep.read_sweep(Path(name)).folder == f"{tmp_path}/there"


def test_a_line_break_is_for_no_queue(tmp_path, capsys):
    settings = {"a": ["TRAINER.P2C.CTX_INIT", "a\nb"]}
    line = the_line([write(tmp_path, settings=settings), "--dry-run"], 2, capsys)
    assert "no queue takes a line break" in line


def test_a_sweep_on_slurm(four, tmp_path, capsys):
    name, (_, two, three, four) = four
    put(two.runs[0].folder / "log.txt", EPOCH, 65)
    task_log(tmp_path, two, 5, "== stopped (exit code 137)\n", 70)  # it has begun again since
    put(three.runs[0].folder / "failure.txt", "error: ended by SIGKILL", 40)
    stopped = task_log(tmp_path, three, 6, "== stopped (exit code 130)\n", 30)
    end(four.runs[0])
    put(four.runs[1].folder / "failure.txt", "error: no luck", 40)
    failed = task_log(tmp_path, four, 7, "error: no luck\n== exit code 1\n", 30)
    lines = printed([name, "--status"], capsys).splitlines()
    assert lines[:7] == [
        "stopped    p2c, shapes, seed 3: train",
        f"    see {stopped}",
        "under way  p2c, shapes, seed 2: train epoch [2/5], last written 0:01:05 ago",
        "failed     p2c, shapes, seed 4: test",
        "    error: no luck",
        f"    see {failed} (exit code 1)",
        "4 models: 1 finished, 1 stopped, 1 under way, 1 failed",
    ]


def test_a_task_that_has_not_come_to_its_run(four, tmp_path, capsys):
    name, (_, two, three, four) = four
    task_log(tmp_path, two, 5, "", 2)
    log = task_log(tmp_path, three, 6, "error: python lacks the packages\n== exit code 1\n", 2)
    end(four.runs[0], ago=9)
    task_log(tmp_path, four, 7, "", 50)  # its training has ended, its test not begun
    lines = printed([name, "--status"], capsys).splitlines()
    assert lines[0] == "under way  p2c, shapes, seed 2: train, last written 0:00:02 ago"
    assert lines[1] == "under way  p2c, shapes, seed 4: test, last written 0:00:09 ago"
    folder = three.runs[0].folder.relative_to(tmp_path / "my")
    assert lines[2:5] == [
        "failed     p2c, shapes, seed 3: train",
        f"    == attempt 1 of 10 on n0, 2026-01-01 10:00:00: a command  # {folder}",
        "    error: python lacks the packages",
    ]
    assert lines[6] == f"    see {log} (exit code 1)"


def test_a_copied_folder_has_its_tasks(four, tmp_path, capsys, monkeypatch):
    name, (_, two, *_) = four
    put(two.runs[0].folder / "log.txt", EPOCH, 65)
    task_log(tmp_path, two, 5, "== stopped (exit code 137)\n", 2)
    shutil.copytree(tmp_path / "my", tmp_path / "copy")
    for output in (tmp_path / "copy", os.path.relpath(tmp_path / "copy")):
        monkeypatch.setenv("OUTPUT", str(output))
        assert printed([name, "--status"], capsys).startswith("stopped    p2c, shapes, seed 2")


def test_a_task_that_gave_up(four, tmp_path, capsys):
    name, (_, two, *_) = four
    put(two.runs[0].folder / "failure.txt", "ended by SIGKILL", 40)
    log = task_log(tmp_path, two, 5, "== stopped (exit code 137)\n== given up after 10\n", 2)
    lines = printed([name, "--status"], capsys).splitlines()
    assert lines[:3] == [
        "failed     p2c, shapes, seed 2: train",
        "    ended by SIGKILL",
        f"    see {log} (given up after 10)",
    ]


def test_the_newest_job_tells(four, tmp_path, capsys):
    name, (_, two, *_) = four
    task_log(tmp_path, two, 9, "== exit code 1\n", 50)
    task_log(tmp_path, two, 10, "== stopped (exit code 130)\n", 20)
    assert printed([name, "--status"], capsys).startswith("stopped    p2c, shapes, seed 2: train\n")
    assert status.task_logs(str(tmp_path / "my")) == {
        slurm.task_name(two, str(tmp_path / "my")): tmp_path / "my" / "slurm" / "10_1.log"
    }


# -- of the runner


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [
        ("echo error: no luck >&2; exit 3", 1, "error: no luck"),
        ("kill -9 $$", 137, "ended by SIGKILL"),
    ],
)
def test_a_run_that_fails_leaves_why(command, code, why, tmp_path, monkeypatch):
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    monkeypatch.setattr(pool.Starter, "fork", lambda *_: None)
    popen = subprocess.Popen
    instead = lambda words, **rest: popen(["bash", "-c", command], **rest)  # noqa: E731
    monkeypatch.setattr("runs.starter.Popen", instead)
    assert protocol.main(shlex.split("base2new --methods p2c --datasets shapes --seeds 1")) == code
    [file] = tmp_path.rglob("failure.txt")
    assert file.read_text() == why and "train_base" in str(file)
    now = f"[ ! -e {shlex.quote(str(file))} ] && echo error: another >&2; exit 4"
    monkeypatch.setenv("GPUS", "2")  # which the plain command would read, and a slot is to be one
    given = []

    def once_more(words, env, **rest):
        given.append(env["GPUS"])
        return popen(["bash", "-c", now], env=env, **rest)

    monkeypatch.setattr("runs.starter.Popen", once_more)
    protocol.main(shlex.split("base2new --methods p2c --datasets shapes --seeds 1"))
    assert (
        given == ["1"] and file.read_text() == "error: another"
    )  # the old reason was not there while it ran
