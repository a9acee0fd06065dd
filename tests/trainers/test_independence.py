"""A method is its file and its yaml: without them, all the others are what they were."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import CONFIGS, REPO, arguments

FILES = {
    path.name: re.findall(
        r"^@TRAINER_REGISTRY.register\(\)\nclass (\w+)", path.read_text(), re.MULTILINE
    )
    for path in (REPO / "trainers").glob("*.py")
}
METHODS = {name: classes for name, classes in FILES.items() if classes}

# For each line, a folder and command lines, with what is the same for all imported once: builds the
# trainers of the commands with the methods that the folder has, and says in its file `said` which
# there are.
BUILD_ALL = """
import json, os, sys
import clip, dassl.config, dassl.engine, datasets, parse_test_res, torchvision.transforms.v2
for line in sys.stdin:
    if not os.fork():
        break
    os.wait()
else:
    sys.exit()
folder, commands = json.loads(line)
said = os.open(f"{folder}/said", os.O_WRONLY | os.O_CREAT)
os.dup2(said, 1)
os.dup2(said, 2)
sys.path.insert(0, folder)
import train, trainers
from dassl.engine import TRAINER_REGISTRY, build_trainer
assert trainers.__path__[0].startswith(folder)
for command in commands:
    trainer = build_trainer(train.setup_cfg(train.parse_args(command)))
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


def without(file: str) -> list[str]:
    """The methods that are left."""
    return sorted(set(CONFIGS) - set(METHODS[file]))


@pytest.fixture(scope="module")
def said(data, tmp_path_factory) -> dict[str, str]:
    """What BUILD_ALL says without each file."""
    root, lines = tmp_path_factory.mktemp("without"), []
    for file in METHODS:
        shutil.copytree(
            REPO / "trainers",
            root / file / "trainers",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (root / file / "trainers" / file).unlink()
        commands = [arguments(name, data, root / file / "out" / name) for name in without(file)]
        lines.append(json.dumps([str(root / file), commands]))
    subprocess.run(
        [sys.executable, "-c", BUILD_ALL], input="\n".join(lines), text=True, cwd=REPO, check=True,
        env={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return {file: (root / file / "said").read_text() for file in METHODS}


@pytest.mark.parametrize("file", METHODS)
def test_the_others_work_without_it(file, said):
    assert said[file].splitlines()[-1].split() == without(file), said[file][-2000:]


def test_its_yaml_goes_with_it(tmp_path):
    """The command that compares all methods goes on with the others."""
    for name in ("scripts", "results", "runs", "configs", "dassl"):
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
