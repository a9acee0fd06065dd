"""A folder of one's own."""

import json
import os
import shutil
from pathlib import Path

import PIL
import pytest
from PIL import Image

import datasets
from dassl.config import get_cfg_default
from dassl.utils import Failure, UsageError, read_image
from datasets.image_folder import ImageFolder
from datasets.own_images import look

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
    assert set(json.loads((tmp_path / "split_zhou_ImageFolder.json").read_text())) == {
        "train",
        "val",
        "test",
    }
    few = load(tmp_path, NUM_SHOTS=3, SUBSAMPLE_CLASSES="new")
    assert sizes(few) == [3, 2, 3] and few.classnames == ["snow owl"]
    # More images change nothing, but that is said.
    touch(tmp_path, {"eagle_owl": 4})
    assert rows(load(tmp_path).test) == rows(data.test)
    assert capsys.readouterr().out.endswith(
        f"{tmp_path}/split_zhou_ImageFolder.json does not know 1 class folder: eagle_owl (4 "
        "images). Runs go by the file; for a new split remove the file, and split_fewshot beside it"
        "\n"
    )
    (tmp_path / "barn_owl" / "new.jpg").touch()
    load(tmp_path)
    told = f"does not know 1 image: {tmp_path}/barn_owl/new.jpg. Runs go by the file; for a new"
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
    with pytest.raises(
        Failure,
        match=f"{tmp_path}/test/c has no counterpart in train: add images to learn from, or",
    ):
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
    with pytest.raises(
        Failure, match="classnames.txt has no name for the folder .*/train/002: add a line, or"
    ):
        load(tmp_path, "birds")


def test_what_has_changed_since_the_split_is_said(tmp_path, capsys):
    touch(tmp_path, {"auk": 4, "owl": 4})
    (tmp_path / "classnames.txt").write_text("auk great auk\nowl barn owl\n")
    assert load(tmp_path).classnames == ["great auk", "barn owl"] and capsys.readouterr().out == ""
    # As many images, but others.
    (tmp_path / "auk" / "1.jpg").rename(tmp_path / "auk" / "7.jpg")
    with pytest.raises(
        Failure,
        match=r"auk/1.jpg, which is not there: put it back, or remove the file, and split_few",
    ):
        load(tmp_path)
    (tmp_path / "auk" / "7.jpg").rename(tmp_path / "auk" / "1.jpg")
    (tmp_path / "classnames.txt").write_text("auk great auk\nowl snowy owl\n")
    assert load(tmp_path).classnames == ["great auk", "barn owl"]
    told = f'{tmp_path}/split_zhou_ImageFolder.json has other class names: "barn owl" (now "snowy'
    assert f'{told} owl"). Runs go by the file; for a new split' in capsys.readouterr().out


def test_a_class_folder_that_is_gone_since_the_split(tmp_path):
    for name in ("auk", "owl"):
        for i in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{name}{i}.jpg").touch()
    load(tmp_path)
    touch(tmp_path, {"another": 9})
    shutil.move(tmp_path / "owl", tmp_path / "barn owl")
    told = f"split_zhou_ImageFolder.json names 4 images in the class folder {tmp_path}/owl, which "
    rest = "call it so again, or for a new split remove the file, and split_fewshot beside it"
    with pytest.raises(Failure) as caught:
        load(tmp_path)
    assert str(caught.value).endswith(f"{told}is not there (perhaps it is barn owl now): {rest}")
    shutil.rmtree(tmp_path / "barn owl")
    with pytest.raises(Failure) as caught:
        load(tmp_path)
    assert str(caught.value).endswith(f"{told}is not there: {rest}")


def test_what_the_split_does_not_need_does_not_end_a_run(tmp_path, capsys):
    touch(tmp_path, {"auk": 4, "owl": 4})
    before = rows(load(tmp_path).test)
    (tmp_path / "results").mkdir()
    assert rows(load(tmp_path).test) == before
    assert f"{tmp_path}/results is empty: put images there, or remove" in capsys.readouterr().out


def test_a_folder_with_a_space_can_be_named(tmp_path):
    touch(tmp_path, {"snow": 3, "snow owl": 3, "snow owl egg": 3})
    file = tmp_path / "classnames.txt"
    file.write_text(
        "snow owl  egg\nsnow owl egg clutch\nsnow owl\tNyctea scandiaca\nsnow white stuff\n"
    )
    with pytest.raises(Failure, match=f"{file} names the folder snow owl in two lines: remove one"):
        load(tmp_path)
    file.write_text("snow owl egg clutch\nsnow owl\tNyctea scandiaca\nsnow white stuff\n")
    assert load(tmp_path).classnames == ["white stuff", "Nyctea scandiaca", "clutch"]


def test_two_folders_of_one_name_are_refused(tmp_path):
    touch(tmp_path, {"Snow_owl": 3, "snow owl": 3})
    with pytest.raises(Failure, match='are both called "snow owl": rename one, or make') as caught:
        load(tmp_path)
    assert '("Snow_owl" is no other name, upper case and _ are not told apart)' in str(caught.value)


def test_small_classes(tmp_path, capsys):
    touch(tmp_path, {"auk": 10, "emu": 3, "owl": 2})
    data = load(tmp_path)
    assert [[d.label for d in split].count(1) for split in (data.train_x, data.val, data.test)] == [
        1,
        1,
        1,
    ]
    assert {d.label for d in data.test} == {0, 1, 2}
    assert (
        capsys.readouterr().out
        == "1 of 3 classes have no validation images and do not count there: owl\n"
    )


FORMATS = {
    "a.jfif": "JPEG",
    "b.avif": "AVIF",
    "c": "PNG",
    "d.jp2": "JPEG2000",
    "e.tga": "TGA",
    "f.JPG": "JPEG",
}


def test_what_pillow_can_open_is_an_image(tmp_path, capsys):
    for name in ("auk", "owl"):
        (tmp_path / name / "folder.jpg").mkdir(parents=True)
        for file, kind in FORMATS.items():
            Image.new("RGB", (8, 8)).save(tmp_path / name / file, kind)
    os.mkfifo(tmp_path / "owl" / "pipe.jpg")
    os.mkfifo(tmp_path / "owl" / "pipe")
    (tmp_path / "owl" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "owl" / "notes.txt").write_text("seen at dusk")
    (tmp_path / "owl" / ".hidden").write_text("")
    (tmp_path / "overview.png").write_text("")
    data = load(tmp_path)
    files = {
        Path(d.impath).relative_to(tmp_path)
        for split in (data.train_x, data.val, data.test)
        for d in split
    }
    assert files == {Path(name) / file for name in ("auk", "owl") for file in FORMATS}
    assert all(read_image(str(tmp_path / file)).size == (8, 8) for file in files)
    said = capsys.readouterr().out
    version = PIL.__version__
    assert said.splitlines() == [
        f"{tmp_path}: left out 1 image beside the class folders (overview.png): move each to the "
        "folder of its class",
        f"{tmp_path}: left out 2 folders inside class folders (auk/folder.jpg, owl/folder.jpg): "
        "move their images up into the class folder",
        f"{tmp_path}: left out 3 files that Pillow {version} cannot open (owl/notes.txt, owl/pipe, "
        "owl/pipe.jpg): no images, or damaged",
        f"{tmp_path}: left out 1 file that Pillow {version} cannot open (owl/x.heic): convert them "
        "to JPEG: on a Mac `sips -s format jpeg FILE --out NEW.jpg`, elsewhere `heif-convert FILE "
        "NEW.jpg`",
    ]
    load(tmp_path)
    assert capsys.readouterr().out == said


def test_a_broken_link_is_an_image_that_is_missing(tmp_path):
    """Left out, it would change the test set; so whoever reads it says what is wrong."""
    touch(tmp_path, {"auk": 2, "owl": 2})
    (tmp_path / "owl" / "2.jpg").symlink_to(tmp_path / "an unmounted disk")
    data = load(tmp_path)
    paths = [d.impath for split in (data.train_x, data.val, data.test) for d in split]
    assert f"{tmp_path}/owl/2.jpg" in paths
    with pytest.raises(Failure, match="owl/2.jpg does not exist"):
        read_image(f"{tmp_path}/owl/2.jpg")


def test_a_folder_of_what_pillow_cannot_open(tmp_path):
    touch(tmp_path, {"auk": 3})
    (tmp_path / "owl").mkdir()
    (tmp_path / "owl" / "x.heic").write_text("x")
    with pytest.raises(
        Failure, match=r"owl holds no images that Pillow can open, only x.heic: convert them to JPE"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        ({}, "holds no class folders: make one folder of images for each class"),
        ({"owl": 0, "auk": 3}, "owl is empty: put images there, or remove the folder"),
        (
            {"owl": 1, "auk": 3},
            r'The class "owl" has only the image \S+/owl/0.PNG, a split needs 2: add some',
        ),
        (
            {"train": 0},
            "holds train, but neither val nor test. To have .*/own/train split, set it as root",
        ),
    ],
)
def test_what_is_wrong_is_one_line(classes, line, tmp_path):
    with pytest.raises(
        Failure, match=r"ImageFolder: no folder \S+/own. DATASET.ROOT \(--root\), or DATASET.FOLDER"
    ):
        load(tmp_path / "own")
    (tmp_path / "own").mkdir()
    touch(tmp_path / "own", classes)
    with pytest.raises(Failure, match=line) as caught:
        load(tmp_path / "own")
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("split_zhou*"))


def test_a_link_in_a_circle_is_no_folder(tmp_path):
    touch(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "loop").symlink_to("loop")
    found = look(tmp_path)
    assert found.folders == ["cat", "dog"] and found.others + found.images == ["loop"]


@pytest.mark.parametrize("key", ["FEATURES", "TEST_CACHE"])
@pytest.mark.parametrize("name", ["kept", ".kept", "{elsewhere}", ""])
def test_what_is_kept_is_no_class(key, name, tmp_path):
    """It lies below the images, where a second run would take it for one."""
    touch(tmp_path / "images", {"cat": 4, "dog": 4})
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME = str(tmp_path / "images"), "ImageFolder"
    cfg.DATALOADER[key] = name.format(elsewhere=tmp_path / "kept")
    if name == "kept":
        with pytest.raises(UsageError, match=f"{key} kept: would be a folder .* call it .kept"):
            ImageFolder(cfg)
    else:
        assert ImageFolder(cfg).num_classes == 2
