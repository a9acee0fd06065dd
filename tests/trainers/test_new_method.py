"""A new method is new files: what scripts/new_method.sh makes, and what a class says of itself."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from yacs.config import CfgNode

from dassl.utils.errors import UsageError
from tests.runs import CONFIGS, REPO
from tests.trainers.methods import build
from trainers import coop, kgcoop
from trainers.coop import CoOp

ROOMS = "bench clip configs dassl datasets reference results runs scripts tests trainers".split()
FILES = "parse_test_res.py pyproject.toml train.py".split()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, so that this one gets no new method."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ROOMS:
        shutil.copytree(REPO / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(REPO / file, folder)
    return folder


def files(folder: Path) -> set[str]:
    """All but what Python and pytest leave behind."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {path for path in paths if "cache" not in path}


def call(folder: Path, *command: str) -> subprocess.CompletedProcess:
    env = os.environ | {"VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_what_it_makes_passes_its_own_test(checkout):
    before = files(checkout)
    done = call(checkout, "bash", "scripts/new_method.sh", "mine", "MyMethod")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    made = {"trainers/mine.py", "tests/trainers/test_mine.py"}
    made |= {f"configs/trainers/MyMethod/{size}.yaml" for size in ("vit_b16", "vit_tiny")}
    runs = "base2new_test", "base2new_train", "few_shot", "xd_test", "xd_train"
    made |= {f"scripts/mine/{run}.sh" for run in runs}
    assert files(checkout) - before == made
    done = call(checkout, sys.executable, "-m", "pytest", "-q", "tests/trainers/test_mine.py")
    assert done.returncode == 0, done.stdout[-2000:]
    again = call(checkout, "bash", "scripts/new_method.sh", "mine", "MyMethod")
    assert again.returncode == 2 and "there is a trainers/mine.py already" in again.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("mine", "usage: bash scripts/new_method.sh NAME Trainer"),
        ("coop Mine", "there is a trainers/coop.py already"),
        ("sweep CoOp", "there is a configs/trainers/CoOp already"),
        ("2x Mine", "lower-case letters, digits and _, not 2x"),
        ("my-method Mine", "not my-method"),
        ("other my-method", "a class's name, as MyMethod, not my-method"),
        ("class Mine", "class is a word of Python's own"),
        ("coop2 Coop", "there is a method Coop already"),
        ("other Name", "there is a config node TRAINER.NAME already"),
        ("other VisualPrompts", "another VisualPrompts"),
    ],
)
def test_a_name_that_cannot_be(checkout, words, line):
    before = files(checkout)
    done = call(checkout, "bash", "scripts/new_method.sh", *words.split())
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1
    assert files(checkout) == before


@pytest.mark.parametrize(
    "lacking", ["scripts/new_method/test_method.py", "configs/trainers/MaPLe", "mv"]
)
def test_one_that_fails_leaves_nothing(checkout, tmp_path, monkeypatch, lacking):
    """Also where the first of the files are in their places already."""
    shutil.copytree(checkout, tmp_path / "copy")
    if lacking == "mv":
        (tmp_path / "mv").write_text(
            '#!/bin/sh\ncase $2 in scripts/*) exit 1; esac\nexec /bin/mv "$@"\n'
        )
        (tmp_path / "mv").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    else:
        (tmp_path / "copy" / lacking).rename(tmp_path / "away")
    before = files(tmp_path / "copy")
    done = call(tmp_path / "copy", "bash", "scripts/new_method.sh", "late", "Late")
    assert done.returncode != 0 and files(tmp_path / "copy") == before
    assert not list((tmp_path / "copy").glob(".new_method*"))


def test_configs_and_scripts_are_a_method_each():
    folders = {path.name for path in (REPO / "configs" / "trainers").iterdir()}
    assert folders == set(CONFIGS)
    scripts = [path.read_text() for path in (REPO / "scripts").glob("*/base2new_train.sh")]
    assert {re.search(r"run\.sh\" \w+ (\w+)", text)[1] for text in scripts} == folders


def test_a_shared_node_has_all_keys_whichever_file_comes_first():
    nodes = []
    for files in (coop, kgcoop), (kgcoop, coop):
        cfg = CfgNode({"TRAINER": CfgNode()})
        for file in files:
            file.add_config(cfg)
        nodes.append(cfg.TRAINER.COOP)
    assert nodes[0] == nodes[1] and {"N_CTX", "W"} <= nodes[0].keys()


def test_a_subclass_inherits_nothing_that_a_method_says_of_itself(data, tmp_path, weights):
    """A CUDA graph of its steps, and attributes; kept features are in test_features.py."""
    trainer = build("CoOp", data, tmp_path, weights)
    assert not trainer.compute.refused
    trainer.__class__ = type("Subclass", (CoOp,), {})
    trainer.cfg.defrost()
    trainer.cfg.TRAINER.ATPROMPT.USE_ATPROMPT = True
    with pytest.raises(UsageError, match="Subclass has no place for attributes"):
        trainer.build_data_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(CoOp, "graphed")
        assert build("CoOp", data, tmp_path, weights).compute.refused
        assert not build("KgCoOp", data, tmp_path, weights).compute.refused
