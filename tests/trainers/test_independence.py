"""A method is its file and its yaml: without them, all the others are what they were."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import CONFIGS, REPO, arguments

FILES = {
    path.name: re.findall(r"^@TRAINER_REGISTRY.register\(\)\nclass (\w+)", path.read_text(), re.MULTILINE)
    for path in (REPO / "trainers").glob("*.py")
}
METHODS = {name: classes for name, classes in FILES.items() if classes}

BUILD_ALL = """
import sys
sys.path.insert(0, sys.argv[1])
import train, trainers
from dassl.engine import TRAINER_REGISTRY, build_trainer
assert trainers.__path__[0].startswith(sys.argv[1])
for line in sys.stdin.read().splitlines():
    trainer = build_trainer(train.setup_cfg(train.parse_args(line.split("\\t"))))
    batch = next(iter(trainer.train_loader_x))
    if trainer.get_model_names():
        trainer.epoch = trainer.batch_idx = 0
        trainer.num_batches, trainer.max_epoch = 9, 2
        trainer.set_model_mode("train")
        assert all(value.isfinite() for value in trainer.forward_backward(batch).values())
    trainer.set_model_mode("eval")
    assert trainer.model_inference(batch["img"]).shape == (len(batch["img"]), 16)
print(*sorted(TRAINER_REGISTRY.registered_names()))
"""


def test_every_method_is_tried():
    assert sorted(sum(METHODS.values(), [])) == sorted(CONFIGS)


@pytest.mark.parametrize("file", METHODS)
def test_the_others_work_without_it(file, data, tmp_path):
    shutil.copytree(REPO / "trainers", tmp_path / "trainers", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "trainers" / file).unlink()
    others = sorted(set(CONFIGS) - set(METHODS[file]))
    lines = ["\t".join(arguments(name, data, tmp_path / "out" / name)) for name in others]
    script = tmp_path / "build_all.py"
    script.write_text(BUILD_ALL)
    done = subprocess.run(
        [sys.executable, script, tmp_path], input="\n".join(lines), capture_output=True, text=True, cwd=REPO,
        env={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].split() == others


def test_its_yaml_goes_with_it(tmp_path):
    """The command that compares all methods goes on with the others."""
    for name in ("scripts", "configs"):
        shutil.copytree(REPO / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "parse_test_res.py", tmp_path)
    shutil.rmtree(tmp_path / "configs" / "trainers" / "KgCoOp")
    env = {"VENV": sys.prefix, "PATH": "/usr/bin:/bin"}
    command = ["bash", "scripts/sweep.sh", "shapes_table1", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    commands = done.stdout.splitlines()
    assert done.returncode == 0 and "without kgcoop" in done.stderr, done.stderr
    assert len(commands) == 12 * 3 * 2 and not any("kgcoop" in command for command in commands)


def test_configs_and_scripts_are_a_method_each():
    """So that removing one is removing its folders."""
    folders = {path.name for path in Path(REPO / "configs" / "trainers").iterdir()}
    assert folders == set(CONFIGS)
    named = {
        re.search(r"run\.sh\" \w+ (\w+)", script.read_text())[1]
        for script in (REPO / "scripts").glob("*/base2new_train.sh")
    }
    assert named == set(CONFIGS)
