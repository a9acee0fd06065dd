"""P2C trains on eleven of the fifteen benchmarks and tests on all, in their real layout."""

from pathlib import Path

import pytest

import train
from dassl.utils import UsageError
from results.logs import read_log
from trainers.prompt_text import zero_shot_template

from ..runs import REPO, arguments, run
from . import trees
from .test_fifteen import ALL, TEST_ONLY, make_tree

CHECKPOINT = "MultiModalPromptLearner/model.pth.tar-2"
ALL_CLASSES = (
    "DATASET.SUBSAMPLE_CLASSES",
    "all",
    "OPTIM.MAX_EPOCH",
    "2",
)  # the first epoch is the warm-up


def run_on(config: str, root: Path, out: Path, *flags: str) -> str:
    """A run at 2 shots with the small CLIP; returns its log."""
    file = f"{REPO}/configs/datasets/{config}.yaml"
    assert run("P2C", root, out, *ALL_CLASSES, flags=("--dataset-config-file", file, *flags)) == 0
    result = read_log(out / "log.txt")
    assert 0 <= result.metrics["accuracy"] <= 100
    return (out / "log.txt").read_text()


@pytest.mark.parametrize("config", [config for config in ALL if config not in TEST_ONLY])
def test_p2c_trains_and_tests(config, tmp_path):
    make_tree(config, tmp_path)
    log = run_on(config, tmp_path, tmp_path / "out")
    assert "epoch [2/2]" in log and "Finish training" in log
    assert f"* total: {ALL[config].counts[2]}\n" in log
    assert (tmp_path / "out" / CHECKPOINT).is_file()


def test_a_model_of_imagenet_is_tested_on_the_variants(tmp_path):
    for config in ("imagenet", *TEST_ONLY):
        make_tree(config, tmp_path)
    model = tmp_path / "imagenet_model"
    run_on("imagenet", tmp_path, model)
    for config in TEST_ONLY:
        log = run_on(config, tmp_path, tmp_path / config, "--eval-only", "--model-dir", str(model))
        assert f"* total: {ALL[config].counts[2]}\n" in log and f"Load {model / CHECKPOINT}" in log
        assert "epoch [" not in log


def test_a_variant_of_imagenet_is_not_trained_on(tmp_path, capsys):
    make_tree("imagenet_a", tmp_path)
    flags = ("--dataset-config-file", f"{REPO}/configs/datasets/imagenet_a.yaml")
    assert run("P2C", tmp_path, tmp_path / "out", *ALL_CLASSES, flags=flags) == 2
    assert "error: ImageNetA is for testing only: train on another" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("model*"))
    assert run("ZeroshotCLIP", tmp_path, tmp_path / "zs", *ALL_CLASSES, flags=flags) == 0


def test_p2c_on_ones_own_images_without_a_setting(tmp_path):
    for name in ("snow owl", "barn_owl", "eagle owl"):
        for i in range(10):
            trees.image(tmp_path / "own" / name / f"{i}.jpg")
    log = run_on("image_folder", tmp_path / "own", tmp_path / "out")
    assert "epoch [2/2]" in log and "* total: 9\n" in log
    # with attributes and shots of one's own, base classes alone
    words = (
        "TRAINER.ATPROMPT.ATT_NUM",
        "1",
        "TRAINER.ATPROMPT.ATT1_TEXT",
        "plumage",
        "DATASET.FOLDER",
        "own",
    )
    file = f"{REPO}/configs/datasets/image_folder.yaml"
    assert run("P2C", tmp_path, tmp_path / "b", *words, flags=("--dataset-config-file", file)) == 0
    log = (tmp_path / "b" / "log.txt").read_text()
    assert "* total: 6\n" in log and "\nAttributes: plumage\n" in log


def template(config: str, *opts: str) -> str:
    flags = ("--dataset-config-file", f"{REPO}/configs/datasets/{config}.yaml")
    words = arguments("ZeroshotCLIP", Path("data"), Path("out"), *opts, flags=flags)
    return zero_shot_template(train.setup_cfg(train.parse_args(words)))


def test_the_zero_shot_template():
    assert template("image_folder") == template("imagenet") == "a photo of a {}."
    assert template("eurosat") == "a centered satellite photo of {}."
    assert template("eurosat", "DATASET.TEMPLATE", "{} from above.") == "{} from above."
    for wrong in ("an owl.", "{} or {}.", "a {0} or {}.", "a {owl}.", "}{}"):
        with pytest.raises(
            UsageError, match="DATASET.TEMPLATE .* must have one {} for the class, as in"
        ):
            template("image_folder", "DATASET.TEMPLATE", wrong)
