"""The README's example of a method, run as a reader would; one version everywhere."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from clip.weights import BUNDLED, read_state_dict
from dassl.data import DataManager
from reference.clip_plain import PlainCLIP
from results.logs import newest_result
from tests.runs import REPO, SMALL
from train import parse_args, setup_cfg

SECTION = (REPO / "README.md").read_text().split("## Adding a method")[1].split("\n## ")[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is needed to run, so that this checkout gets no new method."""
    for name in (
        "clip",
        "configs",
        "dassl",
        "datasets",
        "results",
        "runs",
        "scripts",
        "trainers",
        "train.py",
        "parse_test_res.py",
    ):
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def plain_accuracy(root: Path, ctx: torch.Tensor) -> float:
    """On the test images of the base classes, by the reference: visual prompts, "a photo of a
    …"."""
    from clip import tokenize

    flags = [
        "--root",
        str(root),
        "--dataset-config-file",
        f"{REPO}/configs/datasets/shapes.yaml",
        "--trainer",
        "MaPLe",
    ]
    flags += ["--config-file", f"{REPO}/configs/trainers/MaPLe/vit_tiny_c2_ep5_batch4_2ctx.yaml"]
    dm = DataManager(
        setup_cfg(parse_args([*flags, *(word for pair in SMALL.items() for word in pair)]))
    )
    clip = PlainCLIP(read_state_dict(BUNDLED / "vit_tiny_8.safetensors"), torch.float32)
    names = [f"a photo of a {name.replace('_', ' ')}." for name in dm.dataset.classnames]
    text = clip.encode_text(tokenize(names))
    right = total = 0
    for batch in dm.test_loader:
        predicted = clip.logits(clip.vision_tower(batch["img"], ctx), text).argmax(-1)
        right, total = right + int((predicted == batch["label"]).sum()), total + len(predicted)
    return 100 * right / total


def test_the_example_method_runs_and_its_result_is_the_references(checkout, data):
    [code] = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    [commands] = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
    assert 35 <= len(code.splitlines()) <= 50
    # fewer epochs, and with SHOTS fewer images, than the reader's
    commands = commands.rstrip() + " OPTIM.MAX_EPOCH 3\n"
    env = os.environ | {"DATA": str(data), "SHOTS": "2", "OMP_NUM_THREADS": "1"}
    env["VENV"] = str(Path(sys.executable).parents[1])
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=checkout, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    first, _, made = code.partition("\n")
    assert (checkout / first.removeprefix("# ")).read_text() == made

    [folder] = (checkout / "output").glob("base2new/train_base/shapes/shots_2/Visual/*/seed1")
    result = newest_result(folder, "accuracy", eval_only=True)
    saved = torch.load(folder / "learner" / "model.pth.tar-3", weights_only=True)["state_dict"]
    assert saved["ctx"].shape == (4, 128)
    assert result.metrics["accuracy"] == pytest.approx(plain_accuracy(data, saved["ctx"]), abs=0.06)


def test_one_version():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    newest = re.search(r"^## \[(\S+)\] - (\S+)$", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.groups() == (project, str(citation["date-released"]))
    assert citation["version"] == project
