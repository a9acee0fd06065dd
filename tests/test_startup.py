"""What is slow to import is imported only by the runs that use it. Times: bench/startup.py."""

import subprocess
import sys

import pytest

from .runs import REPO

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
