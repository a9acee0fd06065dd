"""The shell scripts as a user types them."""

import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reference.weights import in_half
from results.layout import FOLDERS, Place, place_of
from results.logs import read_log
from runs.plan import find_place
from runs.run import command_of, read_words
from runs.starter import Starter

REPO = Path(__file__).resolve().parents[1]
FAST = ("OPTIM.MAX_EPOCH", "2")


def bash(script: str, *args: str, **env: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"VENV": sys.prefix, "OMP_NUM_THREADS": "1"} | env
    command = ["bash", f"scripts/{script}.sh", *args]
    return subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def forked() -> Iterator[Callable[..., str]]:
    """As `bash`, but forked, which test_starter.py shows to be the same; returns its stderr."""
    starter = Starter()

    def run(script: str, *args: str, code: int = 0, **env: str) -> str:
        environment = os.environ | {"VENV": sys.prefix, "OMP_NUM_THREADS": "1"} | env
        with contextlib.chdir(REPO), tempfile.TemporaryFile() as stderr:
            command = ["bash", f"scripts/{script}.sh", *args]
            process = starter.start(command, environment, stderr.fileno(), stderr.fileno())
            ended = process.wait(300)
            stderr.seek(0)
            text = stderr.read().decode()
        assert ended == code, text[-2000:]
        return text

    yield run
    starter.close()


def ok(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def test_base_to_new_ends_in_a_table(data, tmp_path, forked):
    env = {"DATA": str(data), "OUTPUT": str(tmp_path), "SHOTS": "2"}
    for method in ("p2c", "zsclip"):
        forked(f"{method}/base2new_train", "shapes", "1", *FAST, **env)
        forked(f"{method}/base2new_test", "shapes", "1", *FAST, **env)
    below = "shapes/shots_2/P2C/vit_tiny_ep5_batch4"
    base, new = (
        tmp_path / "base2new" / part / below / "seed1" / "log.txt"
        for part in ("train_base", "test_new")
    )
    assert "Finish training" in base.read_text() and "Finish training" not in new.read_text()
    assert (base.parent / "MultiModalPromptLearner" / "model.pth.tar-2").is_file()

    def parse(*args):
        command = [sys.executable, "parse_test_res.py", *map(str, args)]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout

    accuracy = json.loads((base.parent / "results.json").read_text())["metrics"]["accuracy"]
    assert abs(accuracy - read_log(base).metrics["accuracy"]) <= 0.051
    assert f"* accuracy: {accuracy:.2f}% +- 0.00%" in parse(base.parents[1])
    table = parse(tmp_path / "base2new", "--hm")
    assert (
        "P2C" in table
        and "ZeroshotCLIP" in table
        and f"{read_log(new).metrics['accuracy']:.1f}" in table
    )


def test_cross_dataset_and_few_shot(data, tmp_path, forked):
    env = {"DATA": str(data), "OUTPUT": str(tmp_path), "SHOTS": "1"}
    forked("maple/xd_train", "shapes", "1", *FAST, **env)
    # Another data folder entry with the same images stands for a target; its classes are all the
    # classes.
    forked("maple/xd_test", "shapes", "1", *FAST, **env)
    cfg = "vit_tiny_c2_ep5_batch4_2ctx_1shots"
    trained = read_log(tmp_path / "shapes" / "MaPLe" / cfg / "seed1" / "log.txt").metrics
    assert (
        read_log(tmp_path / "evaluation" / "MaPLe" / cfg / "shapes" / "seed1" / "log.txt").metrics
        == trained
    )
    forked("p2c/few_shot", "shapes", "1", "3", *FAST, **env)
    assert (
        tmp_path / "shapes" / "P2C" / "vit_tiny_ep5_batch4_1shots" / "seed3" / "log.txt"
    ).is_file()


WRONG = """
p2c/base2new_train | | usage: bash scripts/<method>/base2new_train.sh DATASET SEED
p2c/base2new_train eurosatt 1 | | error: no dataset eurosatt; there are: caltech101 dtd
p2c/base2new_train shapes one | | error: SEED is to be a whole number, not one
p2c/few_shot shapes 4 | | few_shot.sh DATASET SHOTS SEED
p2c/few_shot shapes some 1 | | error: SHOTS is to be a whole number, 1 or more, not some
p2c/base2new_train shapes 1 | SHOTS=0 | error: SHOTS is to be a whole number, 1 or more, not 0
p2c/base2new_test shapes 1 | LOADEP=x | error: LOADEP is to be a whole number, not x
p2c/base2new_train shapes 1 | CFG=vit | no config configs/trainers/P2C/vit.yaml; CFG names one
run base2new_train NoMethod dtd 1 | | error: no folder configs/trainers/NoMethod with settings
run base2knew P2C dtd 1 | | error: unknown script base2knew
"""


@pytest.mark.parametrize("case", WRONG.strip().splitlines())
def test_wrong_usage(case):
    words, env, line = map(str.strip, case.split(" |"))
    done = bash(*words.split(), **dict(pair.split("=") for pair in env.split()))
    assert done.returncode == 2 and line in done.stderr and done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("p2c/base2new_train", "Environment: DATA (folder of the datasets, default data), OUTPUT"),
        ("run", "One run: scripts/run.sh SCRIPT TRAINER DATASET [SHOTS] SEED"),
        ("quickstart", "P2C, MaPLe and zero-shot CLIP through the base-to-new protocol"),
        ("make_env", "Make the Python environment if need be: $VENV, else .venv"),
        ("new_method", "Begin a method: scripts/new_method.sh NAME Trainer"),
    ],
)
def test_help_is_the_head_of_a_script(script, said, tmp_path):
    done = bash(script, "--help", VENV=sys.prefix, OUTPUT=str(tmp_path))
    assert done.returncode == 0 and said in done.stdout and done.stderr == ""
    assert "set -e" not in done.stdout and "#" not in done.stdout.replace("#!", "")


def test_what_is_executed(monkeypatch):
    """By hand, of a cross-dataset test."""
    monkeypatch.chdir(REPO)
    env = {"DATA": "/d", "OUTPUT": "out", "SHOTS": "4", "SOURCE": "sun397", "LOADEP": "2"}
    words = ["xd_test", "MultiModalAdapter", "dtd", "3", "--no-train", "OPTIM.LR", "0.1"]
    argv, env_of = command_of(*read_words(words, env), env)
    below = "MultiModalAdapter/vit_b16_ep5_4shots"
    assert argv == [
        "train.py", "--root", "/d", "--seed", "3", "--trainer", "MultiModalAdapter",
        "--dataset-config-file", "configs/datasets/dtd.yaml",
        "--config-file", "configs/trainers/MultiModalAdapter/vit_b16_ep5.yaml",
        "--output-dir", f"out/evaluation/{below}/dtd/seed3",
        "--eval-only", "--model-dir", f"out/sun397/{below}/seed3", "--load-epoch", "2",
        "--no-train", "OPTIM.LR", "0.1", "DATASET.NUM_SHOTS", "4",
        "DATASET.SUBSAMPLE_CLASSES", "all",
    ]  # fmt: skip
    assert env_of == env | {"PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("script", FOLDERS)
def test_from_a_run_to_its_folder_and_back(script):
    run = Place("/out/evaluation", script, "P2C", "c_1shots", "dtd", "16", "3")
    back = run._replace(script="few_shot") if script == "xd_train" else run
    assert place_of(run.folder) == back
    assert place_of(f"{run.folder}_old") is None


@pytest.mark.parametrize("path", ["~nosuchuser/x", "é" * 128])
@pytest.mark.parametrize(
    "command",
    ["results.tables ablation", "results.figures all", "results.report", "inference.cloud",
     "inference.gap", "inference.words", "runs.sweep"],
)  # fmt: skip
def test_paths_that_cannot_be(command, path, monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    module, *words = command.split()
    try:
        code = importlib.import_module(module).main([*words, path])
    except SystemExit as left:
        code = left.code
    assert code == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_home_folder_by_the_environment(data, tmp_path):
    env = {"HOME": str(tmp_path), "OUTPUT": "~/out", "DATA": str(data)}
    ok(bash("zsclip/base2new_train", "shapes", "1", "--no-train", **env))
    assert (tmp_path / "out" / "base2new").is_dir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        patch.chdir(REPO)
        command = ["bash", "scripts/zsclip/base2new_train.sh", "shapes", "1"]
        folder = Path(find_place(command, {"OUTPUT": "~/out"}).folder)
    assert folder.is_dir() and folder.is_relative_to(tmp_path)


@pytest.mark.parametrize("name", ["base2new_train", "base2new_test", "xd_train", "xd_test"])
def test_maples_own_names(name):
    """They are the same scripts: SHOW_DIR prints the folder of a run and does nothing."""
    one, other = (
        ok(bash(f"maple/{script}", "shapes", "2", SHOW_DIR="1")).stdout
        for script in (name, f"{name}_maple")
    )
    assert one == other and one.endswith("seed2\n")
    assert "/MaPLe/vit_tiny_c2_ep5_batch4_2ctx" in one


def test_ones_own_epochs_go_before_coops_few_shot_ones(data, tmp_path, forked):
    """They get as far as the data, which is not there."""
    for own in ((), ("OPTIM.MAX_EPOCH", "20")):
        out = tmp_path / f"out{len(own)}"
        env = {"DATA": str(data), "OUTPUT": str(out)}
        stderr = forked("coop/few_shot", "dtd", "1", "1", *own, code=1, **env)
        assert "error: DescribableTextures: no folder" in stderr
        [log] = out.rglob("log.txt")
        assert f"MAX_EPOCH: {20 if own else 50}\n" in log.read_text()


def test_testing_what_was_not_trained(data, tmp_path, forked):
    env = {"DATA": str(data), "OUTPUT": str(tmp_path)}
    stderr = forked("p2c/base2new_test", "shapes", "7", code=1, **env)
    assert stderr.startswith("error: No model in") and stderr.count("\n") == 1


EUROSAT = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
           "PermanentCrop", "Residential", "River", "SeaLake")  # fmt: skip


def test_eurosat_with_vit_b16_as_a_coop_user_types_it(tmp_path, forked, vit_b16):
    """The real layout and class names, the real architecture and file form; images and weights are
    random."""
    rng = np.random.default_rng(0)
    for name in EUROSAT:
        folder = tmp_path / "data" / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for i in range(1, 7):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
                folder / f"{name}_{i}.jpg"
            )
    weights = tmp_path / "ViT-B-16.pt"
    torch.save(in_half(vit_b16), weights)
    env = {
        "DATA": str(tmp_path / "data"),
        "OUTPUT": str(tmp_path / "out"),
        "CLIP_WEIGHTS": str(weights),
        "SHOTS": "1",
    }
    try:
        forked("p2c/base2new_train", "eurosat", "1", *FAST, **env)
        forked("p2c/base2new_test", "eurosat", "1", *FAST, **env)
    finally:
        weights.unlink()  # pytest keeps the folders of its last runs
    below = "eurosat/shots_1/P2C/vit_b16_ep5_batch4/seed1"
    log = (tmp_path / "out" / "base2new" / "train_base" / below / "log.txt").read_text()
    assert "epoch [2/2] batch [1/1]" in log and "* total: 10\n" in log and "Precision: fp32" in log
    assert (
        "* total: 10\n"
        in (tmp_path / "out" / "base2new" / "test_new" / below / "log.txt").read_text()
    )
    assert (tmp_path / "data" / "eurosat" / "split_zhou_EuroSAT.json").is_file()


@pytest.mark.parametrize(
    ("script", "words", "config"),
    [
        ("tcp/base2new_train", "sun397 1", "vit_b16_ep100_ctxv1_sun397"),
        ("tcp/base2new_train", "dtd 1", "vit_b16_ep100_ctxv1"),
        ("mma/base2new_test", "imagenet 1", "vit_b16_ep5_imnet"),
        ("mma/xd_test", "dtd 1", "vit_b16_ep5_imnet"),  # of the model trained on ImageNet
        ("maple/xd_train", "imagenet 1", "vit_b16_c2_ep5_batch4_2ctx_cross_datasets"),
    ],
)
def test_published_settings_of_single_datasets_are_found(script, words, config):
    done = subprocess.run(
        ["bash", f"scripts/{script}.sh", *words.split()],
        cwd=REPO, env=os.environ | {"VENV": sys.prefix, "SHOW_DIR": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {config, f"{config}_16shots"} & set(Path(done.stdout.strip()).parts)


def test_the_quickstart_ends_with_commands_that_can_be_pasted(tmp_path):
    """Its runs stand in for themselves: their folder is the scripts' own."""
    repo, out = tmp_path / "a repo", "my runs"
    (repo / "scripts").mkdir(parents=True)
    for name in ("quickstart", "python"):
        shutil.copy(REPO / "scripts" / f"{name}.sh", repo / "scripts")
    for name in ("make_env", "protocol"):
        (repo / "scripts" / f"{name}.sh").touch()
    env = os.environ | {"VENV": "my env", "OUTPUT": out}
    env.pop("DATA", None)
    command = ["bash", str(repo / "scripts" / "quickstart.sh")]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert f", in {repo}. " in said and (REPO / said.split()[-1]).exists()
    predict, report, train = (shlex.split(line) for line in re.findall("^  (.*)", said, re.M))
    done = ok(bash("p2c/base2new_train", "shapes", "1", OUTPUT=out, SHOW_DIR="1"))
    assert predict[:4] == ["VENV=my env", "bash", "scripts/predict.sh", done.stdout.strip()]
    assert report == ["my env/bin/python", "-m", "results.report", out, "--out", "report.html"]
    assert train == ["VENV=my env", "bash", "scripts/p2c/few_shot.sh", "shapes", "4", "1"]
