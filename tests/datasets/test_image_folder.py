"""A folder of one's own."""

import json
from pathlib import Path

import pytest

import datasets
from dassl.config import get_cfg_default
from dassl.utils import Failure
from datasets.image_folder import ImageFolder

from .test_fifteen import rows


def touch(folder: Path, classes: dict[str, int]) -> None:
    for name, n in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            (folder / name / f"{i}.{'jpg' if i else 'PNG'}").touch()


def load(root: Path, folder: str | None = None, **changes) -> ImageFolder:
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.SEED = str(root), "ImageFolder", 1
    if folder is not None:
        datasets.add_config(cfg)
        cfg.DATASET.FOLDER = folder
    for key, value in changes.items():
        cfg.DATASET[key] = value
    return ImageFolder(cfg)


def sizes(data: ImageFolder) -> list[int]:
    return [len(split) for split in (data.train_x, data.val, data.test)]


def test_class_folders_are_split_once(tmp_path, capsys):
    touch(tmp_path, {"snow owl": 10, "barn_owl": 20})
    (tmp_path / "notes.txt").touch()
    data = load(tmp_path)
    assert data.classnames == ["barn_owl", "snow owl"] and sizes(data) == [15, 6, 9]
    assert rows(load(tmp_path).test) == rows(data.test) and "holds" not in capsys.readouterr().out
    assert set(json.loads((tmp_path / "split_zhou_ImageFolder.json").read_text())) == {"train", "val", "test"}
    few = load(tmp_path, NUM_SHOTS=3, SUBSAMPLE_CLASSES="new")
    assert sizes(few) == [3, 2, 3] and few.classnames == ["snow owl"]
    # More images change nothing, but that is said.
    touch(tmp_path, {"eagle_owl": 4})
    assert rows(load(tmp_path).test) == rows(data.test)
    told = "holds 34 images, split_zhou_ImageFolder.json 30: remove it for a new split"
    assert told in capsys.readouterr().out


def test_folders_for_train_val_and_test(tmp_path):
    touch(tmp_path / "train", {"b": 4, "a": 3})
    touch(tmp_path / "test", {"b": 2})  # a set without all classes
    data = load(tmp_path)
    assert data.classnames == ["a", "b"] and sizes(data) == [7, 2, 2]
    assert {d.label for d in data.test} == {1} and rows(data.val) == rows(data.test)
    touch(tmp_path / "val", {"a": 1, "b": 1})
    assert sizes(load(tmp_path)) == [7, 2, 2] and {d.label for d in load(tmp_path).val} == {0, 1}
    assert not list(tmp_path.glob("split_zhou*"))
    assert sizes(load(tmp_path, NUM_SHOTS=1)) == [2, 2, 2]
    touch(tmp_path / "test", {"c": 1})
    with pytest.raises(Failure, match=f"{tmp_path}/test/c has no counterpart in train: add images to learn from, or"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, {"train": 10, "plane": 10})
    assert load(tmp_path).classnames == ["plane", "train"]


def test_a_file_with_class_names(tmp_path):
    touch(tmp_path / "birds" / "train", {"002": 2, "001": 2})
    touch(tmp_path / "birds" / "val", {"001": 1, "002": 1})
    (tmp_path / "birds" / "classnames.txt").write_text(
        "\ufeff002 Laysan albatross\r\n\r\n001 auk\r\n", encoding="utf-8"
    )
    data = load(tmp_path, "birds")
    assert data.classnames == ["auk", "Laysan albatross"] and sizes(data) == [4, 2, 2]
    assert rows(load(tmp_path / "nowhere", str(tmp_path / "birds")).test) == rows(data.test)
    (tmp_path / "birds" / "classnames.txt").write_text("001 auk\n")
    with pytest.raises(Failure, match="classnames.txt has no name for the folder .*/train/002: add a line, or"):
        load(tmp_path, "birds")


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        ({}, "holds no class folders: .*make one folder for each class"),
        ({"owl": 0, "auk": 3}, "owl holds no images: "),
        ({"owl": 1, "auk": 3}, r'The class "owl" has only the image \S+/owl/0.PNG, a split needs 2: add some'),
        ({"train": 0}, "holds train, but neither val nor test. To have .*/own/train split, set it as root"),
    ],
)
def test_what_is_wrong_is_one_line(classes, line, tmp_path):
    with pytest.raises(Failure, match=r"ImageFolder: no folder \S+/own. DATASET.ROOT \(--root\), or DATASET.FOLDER"):
        load(tmp_path / "own")
    (tmp_path / "own").mkdir()
    touch(tmp_path / "own", classes)
    with pytest.raises(Failure, match=line) as caught:
        load(tmp_path / "own")
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("split_zhou*"))
