"""What is slow to import is imported only by the runs that use it. Times: bench/startup.py."""

import os
import signal
import subprocess
import sys

import pytest

from .runs import REPO, python_path

SLOW = "gdown matplotlib open_clip pandas scipy sklearn tensorboard torch.utils.tensorboard".split()


def imported(code: str, *argv: str) -> set[str]:
    """The modules that a Python of its own has imported after running `code` in the repository."""
    listing = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-W", "ignore", "-c", listing, *argv]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    return set(result.stderr.split())


@pytest.fixture(scope="module")
def after_import() -> set[str]:
    return imported("import train")


@pytest.mark.parametrize("module", SLOW)
def test_not_imported_by_train(after_import, module):
    assert {"torch", "torchvision", "trainers.p2c", "datasets.eurosat"} <= after_import
    assert module not in after_import


def test_not_imported_by_an_evaluation(data, tmp_path):
    options = [
        "--root",
        str(data),
        "--output-dir",
        str(tmp_path / "out"),
        "--trainer",
        "ZeroshotCLIP",
        "--seed",
        "1",
    ]
    options += ["--dataset-config-file", "configs/datasets/shapes.yaml"]
    options += ["--config-file", "configs/trainers/ZeroshotCLIP/vit_tiny.yaml", "--eval-only"]
    modules = imported("import train\nassert train.main() == 0", *options)
    assert "dassl.evaluation.evaluator" in modules and not modules & set(SLOW)


INTERRUPT = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"


def with_ctrl_c(*words: str, **env: str) -> subprocess.CompletedProcess:
    """Of a Python that is told of it, whatever the tests were started by."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=REPO,
        env=os.environ | env,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("program", ["inference.words", "results.figures", "datasets.doctor"])
def test_a_ctrl_c_during_imports_ends_a_program_without_a_word(program, tmp_path):
    for package in ("torch", "numpy"):
        (tmp_path / f"{package}.py").write_text(INTERRUPT)
    done = with_ctrl_c("-m", program, "--help", PYTHONPATH=python_path(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_later_it_is_an_exception_again_and_for_others_always():
    raised = "signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    done = with_ctrl_c("-c", f"import signal, inference, results; assert {raised}")
    assert done.returncode == 0, done.stderr
    program = f"""
import signal, sys
sys.argv[0] = "-m"  # as it is while a package is imported
sys.orig_argv = ["python", "-m", sys.argv[1]]
import results
from dassl.commands import command_line
print({raised})
command_line(lambda: print({raised}))
"""
    for module, said in (("results.tables", "False\nTrue\n"), ("mine.results", "True\nTrue\n")):
        assert with_ctrl_c("-c", program, module).stdout == said
