"""Two processes on one GPU, which NCCL refuses: gloo adds up in its place."""

import subprocess
import sys
from pathlib import Path

import pytest

from dassl.utils import read_json
from tests.runs import REPO, arguments, python_path, run

PROGRAM = """
import sys
from dassl.utils import ranks
ranks.ON_GPUS, ranks.choose_gpu = "gloo", lambda device: None
import train
sys.exit(train.main(sys.argv[1:]))
"""
FP32 = ("TRAINER.P2C.PREC", "fp32")


def by_two(folder: Path, words: list[str]) -> str:
    """train.py's stdout, in two processes."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        ["env", f"PYTHONPATH={python_path(REPO)}", *torchrun, str(program), *words],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("share_classes", ["1000", "2"])
def test_a_training_and_its_test(share_classes, data, tmp_path):
    opts = (*FP32, "TRAIN.SHARE_CLASSES", share_classes)
    assert run("P2C", data, tmp_path / "one", *opts) == 0
    log = by_two(tmp_path, arguments("P2C", data, tmp_path / "two", *opts))
    assert "Processes: 2" in log and "Steps are" not in log  # of one that failed
    one, two = (read_json(str(tmp_path / out / "results.json")) for out in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=0.02)
    flags = ("--eval-only", "--model-dir", str(tmp_path / "one"))
    assert run("P2C", data, tmp_path / "test-one", *opts, flags=flags) == 0
    by_two(tmp_path, arguments("P2C", data, tmp_path / "test-two", *opts, flags=flags))
    tests = [read_json(str(tmp_path / f"test-{n}" / "results.json")) for n in ("one", "two")]
    assert tests[0]["metrics"] == tests[1]["metrics"]
