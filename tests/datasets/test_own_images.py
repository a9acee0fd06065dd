"""Each usual mistake with a folder of one's own has its own sentence, in runs and the doctor."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image, features

from dassl.utils import Failure, read_image
from datasets import doctor

from .test_doctor import listing
from .test_image_folder import load, sizes, touch

CLASSES = {"auk": 4, "owl": 4}


def parts(root: Path, *names: str) -> None:
    for name in names:
        touch(root / name, CLASSES)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("train", "valid", "test"), "read valid as val"),
        (("Train", "Test"), "read Train as train, Test as test"),
        (("TRAIN", "VAL"), "read TRAIN as train, VAL as val"),
        (
            ("Training", "Validation", "Testing"),
            "read Training as train, Validation as val, Testing as test",
        ),
    ],
)
def test_the_usual_spellings_of_train_val_and_test(names, told, tmp_path, capsys):
    parts(tmp_path, *names)
    (tmp_path / "README.roboflow.txt").touch()
    (tmp_path / names[-1] / "owl" / "3.jpg").unlink()  # the last part has 7
    data = load(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path}: {told}\n"
    assert data.classnames == ["auk", "owl"]
    assert sizes(data) == ([8, 8, 7] if len(names) == 3 else [8, 7, 7])
    for split, name in zip((data.train_x, data.val, data.test), (*names, names[-1]), strict=False):
        assert {Path(item.impath).parts[-3] for item in split} == {name}
    assert not list(tmp_path.glob("split_zhou*"))


def test_classes_may_be_called_train_and_test(tmp_path, capsys):
    """They always could, and hold images; who meant parts is told what they have to hold."""
    touch(tmp_path, {"Train": 4, "Testing": 4})
    (tmp_path / "Train" / "old").mkdir()
    assert load(tmp_path).classnames == ["Testing", "Train"]
    told = f"{tmp_path}: Testing and Train are taken for classes, as they hold images themselves; "
    told += "to train and test by them, make class folders in each\n"
    assert capsys.readouterr().out.startswith(told)
    touch(tmp_path, {"plane": 4})
    (tmp_path / "split_zhou_ImageFolder.json").unlink()
    assert load(tmp_path).classnames == ["Testing", "Train", "plane"]


def yolo(root: Path) -> None:
    for part in ("train", "valid"):
        touch(root / part, {"images": 2, "labels": 0})
        (root / part / "labels" / "0.txt").touch()


def list_of_labels(root: Path) -> None:
    touch(root, {"train": 3, "test": 2})
    (root / "train" / "_classes.csv").touch()


def loose(root: Path) -> None:
    touch(root.parent, {root.name: 3})
    (root / "labels.csv").touch()


def only(*files: str):
    def make(root: Path) -> None:
        touch(root, {"auk": 3, "owl": 0})
        for file in files:
            (root / "owl" / file).write_text("<svg/>")

    return make


def case(root: Path) -> None:
    touch(root / "train", {"Owl": 2, "auk": 2})
    touch(root / "test", {"owl": 2})


HEIC = "convert them to JPEG: on a Mac `sips -s format jpeg FILE --out NEW.jpg`, elsewhere"
# What is made -> what is said of it; {} is the folder.
MISTAKES = {
    "two of a part": (
        lambda root: parts(root, "train", "val", "valid"),
        "{} holds val and valid, which are both read as val: make them one, or move one elsewhere",
    ),
    "a folder beside the parts": (
        lambda root: parts(root, "train", "Test", "archive"),
        "{}/train holds class folders, but {}/archive beside it is neither val nor test: move that",
    ),
    "training images alone": (
        lambda root: parts(root, "Training"),
        "{} holds Training, but neither val nor test. To have {}/Training split, set it as root",
    ),
    "a class in another case": (case, "{}/test/owl has no counterpart in train: call it Owl"),
    "detection": (
        yolo,
        "{}/train holds images and labels, as for object detection (YOLO): export the dataset for "
        "classification, with a folder for each class",
    ),
    "a list of labels": (
        list_of_labels,
        "{}/train holds 3 images and no class folders (a list like _classes.csv is not read): make "
        "one folder for each class and move them there",
    ),
    "loose images": (
        loose,
        "{} holds 3 images and no class folders (a list like labels.csv is not read): make one "
        "folder for each class and move them there; if all are of one class, the root is {}/..",
    ),
    "one folder too high": (
        lambda root: touch(root / "photos", CLASSES),
        "{}/photos holds folders (auk, owl) and no images: if those are your classes, the root is "
        "{}/photos",
    ),
    "one folder too high, with a split": (
        lambda root: [touch(root / "images" / part, CLASSES) for part in ("train", "test")],
        "{}/images holds folders (test, train) and no images: the root is {}/images",
    ),
    "a split in each class": (
        lambda root: [touch(root / c, {"train": 3, "test": 3}) for c in ("auk", "owl")],
        "{}/auk holds folders (test, train) and no images: those go above the classes, as in "
        "{}/test/auk",
    ),
    "groups of classes": (
        lambda root: (touch(root / "birds", CLASSES), touch(root, {"cars": 3})),
        "{}/birds holds folders (auk, owl) and no images: if those are your classes, move them up "
        "into {}, else set another root",
    ),
    "iPhone photos": (
        only("a.HEIC", "b.heic"),
        f"{{}}/owl holds no images that Pillow can open, only a.HEIC, b.heic: {HEIC} `heif-convert",
    ),
    "drawings": (only("a.svg"), "only a.svg: draw them as PNG, as rsvg-convert and pdftoppm do"),
    "pages": (only("a.pdf"), "only a.pdf: draw them as PNG, as rsvg-convert and pdftoppm do"),
    "videos": (only("a.MOV"), "only a.MOV: take single frames: `ffmpeg -i FILE -vf fps=1 %04d.jpg"),
    "raw photos": (
        only("a.nef"),
        "only a.nef: save them as JPEG in the program that made or shows",
    ),
    "text": (only("a.txt"), "only a.txt: put images there, or remove the folder"),
    "an empty class": (only(), "{}/owl is empty: put images there, or remove the folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_has_its_own_sentence(mistake, tmp_path, capsys):
    make, told = MISTAKES[mistake]
    root = tmp_path / "own"
    root.mkdir()
    shutil.rmtree(root) if make is loose else None
    make(root)
    told = told.replace("{}/..", str(tmp_path)).replace("{}", str(root))
    with pytest.raises(Failure) as caught:
        load(root)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert "archive again" not in str(caught.value)
    assert ("the root is" in str(caught.value)) == ("the root is" in told)
    before = listing(root)
    assert doctor.main(["image_folder", "--root", str(root)]) == 1
    assert told in capsys.readouterr().out and listing(root) == before


def test_all_mistakes_are_named_by_the_doctor(tmp_path, capsys):
    touch(tmp_path, {"auk": 0, "owl": 0, "tern": 3})
    more = f". 1 more like this, which python -m datasets.doctor image_folder --root {tmp_path} na"
    with pytest.raises(Failure, match=re.escape(more)):
        load(tmp_path)
    assert doctor.main(["image_folder", "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"ImageFolder: {tmp_path}/auk is empty: put" in out and f"\n  {tmp_path}/owl is" in out


def test_folders_that_are_nobodys_classes(tmp_path, capsys):
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found"):
        touch(tmp_path, {name: 2})
        touch(tmp_path / "auk", {name: 2})
    touch(tmp_path, {"owl": 4})
    for i in range(4):
        (tmp_path / "auk" / f"{i}.jpg").touch()
    for name in ("._1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "auk" / name).write_text("")
    data = load(tmp_path)
    assert data.classnames == ["auk", "owl"] and sum(sizes(data)) == 8
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("suffix", "kind"), [("jfif", "JPEG"), ("webp", "WEBP"), ("gif", "GIF"), ("avif", "AVIF")]
)
def test_a_class_of_one_format(suffix, kind, tmp_path, capsys):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    touch(tmp_path, {"auk": 4})
    (tmp_path / "owl").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), "teal").save(tmp_path / "owl" / f"{i}.{suffix}", kind)
    (tmp_path / "owl" / f"broken.{suffix}").write_bytes(b"")  # is not left out unseen
    data = load(tmp_path)
    assert sum(sizes(data)) == 9 and capsys.readouterr().out == ""
    red, green, blue = read_image(f"{tmp_path}/owl/1.{suffix}").getpixel((4, 4))
    assert red < 20 and abs(green - 128) < 20 and abs(blue - 128) < 20


def test_one_class(tmp_path, capsys):
    touch(tmp_path, {"auk": 4})
    assert load(tmp_path).classnames == ["auk"]
    told = f"{tmp_path} has one class, so every image is right: add a folder of images to tell it "
    assert told in capsys.readouterr().out


def test_fewer_images_than_shots(tmp_path, capsys):
    touch(tmp_path, {"auk": 4, "emu": 20, "owl": 8})
    assert sizes(load(tmp_path, NUM_SHOTS=4))[0] == 2 + 4 + 4
    assert capsys.readouterr().out == (
        "1 of 3 classes have fewer images to train on than 4 shots take: auk (2)\n"
        "Creating a 4-shot dataset\nCreating a 4-shot dataset\n"
    )
    load(tmp_path, NUM_SHOTS=2)
    assert "fewer" not in capsys.readouterr().out
    load(tmp_path, NUM_SHOTS=16)
    assert "3 of 3 classes have fewer" in capsys.readouterr().out


# -- what the doctor tells of a folder that can be read


def tell(root: Path, capsys, *flags: str) -> tuple[int, str]:
    before = listing(root)
    code = doctor.main(["image_folder", "--root", str(root), *flags])
    assert listing(root) == before
    return code, capsys.readouterr().out


def table(out: str) -> dict[str, list[str]]:
    """{folder: the other cells} of the table of classes."""
    lines = out.split("\n\n")[1].splitlines()[2:]
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line) for line in lines)}


def test_the_doctor_counts_what_the_first_run_then_takes(tmp_path, capsys):
    touch(tmp_path, {"snow_owl": 20, "auk": 10, "emu": 2})
    code, out = tell(tmp_path, capsys)
    assert code == 0
    assert out.splitlines()[2].split() == ["ImageFolder", "found", "32", "–", "3", "–"]
    assert table(out) == {
        "auk": ["auk", "10", "5", "2", "3"],
        "emu": ["emu", "2", "1", "0", "1"],
        "snow_owl": ["snow owl", "20", "10", "4", "6"],
        "all": ["32", "16", "6", "10"],
    }
    file = tmp_path / "split_zhou_ImageFolder.json"
    assert f"\nSplit 50/20/30; the first run keeps that in {file}.\n" in out
    assert (
        "ImageFolder: 1 of 3 classes have no validation images and do not count there: emu" in out
    )
    assert "3 of 3 classes have fewer images to train on than 16 shots take: auk (5), emu" in out
    told = (
        f'CLIP reads the folder snow_owl as "snow owl". If other names say more, write {tmp_path}'
    )
    assert f"{told}/classnames.txt in lines `folder name with spaces`" in out
    load(tmp_path)
    counts = {name: len(items) for name, items in json.loads(file.read_text()).items()}
    assert counts == {"train": 16, "val": 6, "test": 10}
    (tmp_path / "tern").mkdir()
    out = tell(tmp_path, capsys)[1]
    assert f"\nSplit as {file} says.\n" in out and f"{tmp_path}/tern is empty" in out


def test_the_doctor_on_parts(tmp_path, capsys):
    parts(tmp_path, "train", "valid")
    out = tell(tmp_path, capsys)[1]
    assert table(out) == {
        "auk": ["auk", "8", "4", "4", "4"],
        "owl": ["owl", "8", "4", "4", "4"],
        "all": ["16", "8", "8", "8"],
    }
    assert "\nSplit by its folders train, valid; val and test are the same images.\n" in out
    assert f"ImageFolder: {tmp_path}: read valid as val\n" in out


@pytest.mark.parametrize("name", ["n01440764", "002", "AnnualCrop", "snow_owl"])
def test_names_that_are_no_words(name, tmp_path, capsys):
    touch(tmp_path, {name: 40, "auk": 40})
    assert f"CLIP reads the folder {name} as " in tell(tmp_path, capsys)[1]
    (tmp_path / "classnames.txt").write_text(f"{name} a name\nauk great auk\nemu emu\n")
    out = tell(tmp_path, capsys)[1]
    assert table(out)[name][0] == "a name" and "CLIP reads" not in out
    assert f"{tmp_path}/classnames.txt names folders that are no classes: emu\n" in out


def test_a_long_table_is_cut(tmp_path, capsys):
    touch(tmp_path, {f"class {chr(97 + i // 26)}{chr(97 + i % 26)}": 4 for i in range(53)})
    out = tell(tmp_path, capsys)[1]
    rows = table(out)
    assert len(rows) == 52 and rows["all"] == ["212", "106", "53", "53"] and "… 3 more" in rows


def test_broken_images_are_found_before_training(tmp_path, capsys):
    for name in ("auk", "owl"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.effect_noise((32, 32), 50).save(tmp_path / name / f"{i}.jpg")
    (tmp_path / "owl" / "0.jpg").write_bytes(b"")
    (tmp_path / "owl" / "1.jpg").write_text("a web page")
    whole = (tmp_path / "owl" / "2.jpg").read_bytes()
    (tmp_path / "owl" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    assert tell(tmp_path, capsys)[0] == 0
    code, out = tell(tmp_path, capsys, "--deep")
    named = ", ".join(f"{tmp_path}/owl/{i}.jpg" for i in range(3))
    assert code == 1 and f"  3 images cannot be opened: {named}\n" in out
    last = out.splitlines()[-1]
    assert last == (
        "  Replace them; or remove them, and the split file and split_fewshot for a new split"
    )


def test_a_folder_in_a_names_place(tmp_path, capsys):
    assert doctor.main([str(tmp_path)]) == 2
    told = f"error: {tmp_path} is a folder and no dataset's name: for your own images give "
    assert capsys.readouterr().err == f"{told}image_folder --root {tmp_path}\n"
    assert doctor.main(["image_folder", "--root", f"{tmp_path}/none"]) == 1
    out = capsys.readouterr().out
    assert f"\nImageFolder: no folder {tmp_path}/none. DATASET.ROOT (--root), or" in out
