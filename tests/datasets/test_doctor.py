"""The doctor's findings on trees in the real layouts, whose counts stand for the published."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Failure
from datasets import doctor, prepare
from datasets.shapes import Shapes

from ..runs import REPO
from . import trees
from .test_fifteen import ALL, load, make_tree

NAMES = {doctor.module_name(name): name for name in doctor.PUBLISHED}


@pytest.fixture(autouse=True)
def counts(monkeypatch) -> None:
    monkeypatch.delenv("DATA", raising=False)
    for config, known in ALL.items():
        train, val, test = known.counts
        if config.startswith("imagenet"):  # one list serves as two splits
            train, val = (train if config == "imagenet" else 0), 0
        monkeypatch.setitem(
            doctor.PUBLISHED, NAMES[config], (len(known.classnames), train, val, test)
        )


def listing(root: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*")}


@pytest.fixture
def diagnose(tmp_path, capsys):
    """Runs the doctor on `tmp_path`, where it writes nothing; returns exit code and output."""

    def run(*args: str) -> tuple[int, str]:
        before = listing(tmp_path)
        code = doctor.main([*args, "--root", str(tmp_path)])
        assert listing(tmp_path) == before
        return code, capsys.readouterr().out

    return run


def mend(out: str) -> str:
    """The command, the last line."""
    return out.splitlines()[-1].strip()


def shell(line: str) -> None:
    assert os.system(line) == 0


def test_the_counts_are_those_of_the_fifteen():
    assert set(NAMES) == set(ALL)
    assert all(
        issubclass(DATASET_REGISTRY.get(name), doctor.Benchmark) for name in doctor.PUBLISHED
    )


@pytest.mark.parametrize("config", ALL)
def test_whole(config, tmp_path, diagnose):
    make_tree(config, tmp_path)
    code, out = diagnose(config)
    classes, *splits = doctor.PUBLISHED[NAMES[config]]
    n = str(sum(splits))
    assert code == 0
    assert out.splitlines()[-1].split() == [
        NAMES[config],
        "found",
        n,
        n,
        str(classes),
        str(classes),
    ]


def test_all_fifteen_unless_named(tmp_path, diagnose):
    make_tree("eurosat", tmp_path)
    code, out = diagnose()
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:17]] == list(doctor.PUBLISHED)
    assert out.count(" missing ") == 14 and out.count(" found ") == 1
    told = f"Food101: There is no folder {tmp_path}/food-101\n  python -m datasets.prepare Food101 "
    assert f"{told}--root" in out
    assert diagnose("EUROSAT", "oxford_flowers")[0] == 1
    assert diagnose("EUROSAT")[0] == 0


def test_as_a_command(tmp_path):
    line = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-m",
        "datasets.doctor",
        "--root",
        str(tmp_path),
    ]
    done = subprocess.run(line, cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count(" missing ") == 15
    assert "datasets.prepare" in done.stdout


def test_an_unknown_name(capsys):
    assert doctor.main(["eurosta"]) == 2
    assert 'error: Unknown dataset "eurosta": did you mean EuroSAT?' in capsys.readouterr().err


def test_the_names_of_the_drawn_and_of_ones_own():
    """As configs/datasets calls them, in any case."""
    for file in (REPO / "configs" / "datasets").glob("*.yaml"):
        name = yaml.safe_load(file.read_text())["DATASET"]["NAME"]
        assert {doctor.dataset_name(word) for word in (file.stem, name, name.upper())} == {name}


def test_a_drawn_dataset(tmp_path, diagnose, monkeypatch):
    monkeypatch.setattr(Shapes, "parts", {"train": 2, "val": 1, "test": 1})
    code, out = diagnose("shapes")
    assert code == 0
    assert out.splitlines()[2].split() == ["Shapes", *"not drawn yet 0 128 – 32".split()]
    assert "Shapes: a run draws it, or at once\n" in out
    line = f"python -m datasets.prepare Shapes --root {tmp_path}"
    assert mend(out) == line
    assert prepare.main(shlex.split(line)[3:]) == 0
    code, out = diagnose("shapes", "--deep")
    assert code == 0
    assert out.splitlines()[-1].split() == ["Shapes", "found", "128", "128", "32", "32"]
    image = next((tmp_path / "shapes" / "images").rglob("*.png"))
    content = image.read_bytes()
    image.write_bytes(content[:100])
    assert diagnose("shapes")[0] == 0
    code, out = diagnose("shapes", "--deep")
    assert code == 1 and f"Shapes: 1 images cannot be opened: {image}\n" in out
    assert mend(out) == f"{line} --again"
    image.unlink()
    code, out = diagnose("shapes")
    assert code == 1 and f"json names 1 images that are not there, the first is {image}\n" in out
    assert mend(out) == line
    with pytest.raises(Failure, match="remove the folder of the dataset, and the next run draws"):
        load("shapes", tmp_path)
    for flags in ((), ("--again",)):
        assert prepare.main([*shlex.split(line)[3:], *flags]) == 0
        assert image.read_bytes() == content and diagnose("shapes", "--deep")[0] == 0
        image.write_bytes(content[:100])


def test_half_extracted(tmp_path, diagnose):
    images = make_tree("eurosat", tmp_path) / "2750"
    shutil.rmtree(images / "SeaLake")
    for i in range(3, 11):
        (images / "River" / f"River_{i}.jpg").unlink()
    code, out = diagnose("eurosat")
    assert code == 1 and " incomplete " in out
    assert (
        "EuroSAT: 18 images and 1 whole classes are missing: an archive was extracted only in part"
        in out
    )
    assert mend(out) == f"python -m datasets.prepare EuroSAT --root {tmp_path}"
    for file in (images / "River").iterdir():
        file.unlink()
    code, out = diagnose("eurosat")
    assert (
        code == 1 and f"EuroSAT: {images}/River holds no images: extract the archive again" in out
    )


def test_a_split_made_of_half_a_folder(tmp_path, diagnose):
    """The images have been mended since, but a run has kept its split."""
    folder = make_tree("dtd", tmp_path)
    (folder / "images" / "banded" / "banded_0000.jpg").rename(tmp_path / "aside.jpg")
    load("dtd", tmp_path)
    (tmp_path / "aside.jpg").rename(folder / "images" / "banded" / "banded_0000.jpg")
    code, out = diagnose("dtd")
    assert code == 1
    line = "lacks 1 images: it was made of a folder that was not whole"
    assert f"{folder}/split_zhou_DescribableTextures.json {line}" in out


def test_a_split_file_that_names_absent_images(tmp_path, diagnose):
    folder = make_tree("food101", tmp_path)
    load("food101", tmp_path)
    gone = json.loads((folder / "split_zhou_Food101.json").read_text())["val"][:2]
    for path, *_ in gone:
        (folder / "images" / path).unlink()
    code, out = diagnose("food101")
    line = "split_zhou_Food101.json names 2 images that are not there, the first is "
    line += f"{folder}/images/{gone[0][0]}"
    assert code == 1 and " incomplete " in out and line in out


def test_a_folder_of_images_is_missing(tmp_path, diagnose):
    shutil.rmtree(make_tree("imagenet", tmp_path) / "images" / "val")
    code, out = diagnose("imagenet")
    assert code == 1 and f"ImageNet: There is no folder {tmp_path}/imagenet/images/val" in out


def test_imagenets_validation_images_were_never_sorted(tmp_path, diagnose):
    val = make_tree("imagenet", tmp_path) / "images" / "val"
    for path in list(val.rglob("*.JPEG")):
        path.rename(val / path.name)
    code, out = diagnose("imagenet")
    assert (
        code == 1
        and f"ImageNet: {val} holds 22 images that are not in folders of their classes: python"
        in out
    )
    assert mend(out) == f"python -m datasets.prepare ImageNet --root {tmp_path}"


@pytest.mark.parametrize("config", ["imagenet", "imagenetv2", "imagenet_a"])
def test_no_classnames(config, tmp_path, diagnose):
    (make_tree(config, tmp_path) / "classnames.txt").unlink()
    code, out = diagnose(config)
    assert code == 1 and " incomplete " in out
    assert "classnames.txt is missing" in out
    assert mend(out) == f"python -m datasets.prepare {NAMES[config]} --root {tmp_path}"


def test_the_annotation_is_missing(tmp_path, diagnose):
    (make_tree("oxford_flowers", tmp_path) / "imagelabels.mat").unlink()
    code, out = diagnose("oxford_flowers")
    assert code == 1 and f"{tmp_path}/oxford_flowers/imagelabels.mat is missing" in out


def nest_below(folder: Path, below: str) -> None:
    aside = folder.with_name("aside")
    folder.rename(aside)
    (folder / below).parent.mkdir(parents=True)
    aside.rename(folder / below)


def nest_images(folder: Path, below: str) -> None:
    nest_below(folder / below, Path(below).name)


def rename_images(folder: Path, below: str) -> None:
    (folder / below).parent.mkdir(parents=True, exist_ok=True)
    (folder / "2750").rename(folder / below)


@pytest.mark.parametrize(
    ("config", "nest", "below"),
    [
        ("eurosat", nest_below, "eurosat"),
        ("eurosat", nest_below, "Euro SAT"),
        ("eurosat", nest_images, "2750"),
        ("eurosat", rename_images, "EuroSAT_RGB"),
        ("eurosat", rename_images, "EuroSAT_RGB/EuroSAT_RGB"),
        ("eurosat", rename_images, "Eurosat data/EuroSAT_RGB"),
        ("oxford_pets", nest_below, "oxford-iiit-pet"),
        ("fgvc_aircraft", nest_below, "fgvc-aircraft-2013b/data"),
        ("imagenet_a", nest_images, "imagenet-a"),
    ],
)
def test_wrong_nesting(config, nest, below, tmp_path, diagnose):
    nest(make_tree(config, tmp_path), below)
    code, out = diagnose(config)
    assert code == 1 and "has to hold the images, but they lie in" in out
    shell(mend(out))
    if diagnose(config)[0]:  # two things were wrong
        shell(mend(diagnose(config)[1]))
    assert diagnose(config)[0] == 0


def test_imagenet_without_its_images_folder(tmp_path, diagnose):
    folder = make_tree("imagenet", tmp_path)
    for part in ("train", "val"):
        (folder / "images" / part).rename(folder / part)
    (folder / "images").rmdir()
    for _ in range(2):
        shell(mend(diagnose("imagenet")[1]))
    assert diagnose("imagenet")[0] == 0


def test_a_folder_with_another_name(tmp_path, diagnose):
    make_tree("eurosat", tmp_path).rename(tmp_path / "EuroSAT")
    code, out = diagnose("eurosat")
    assert code == 1 and " missing " in out
    shell(mend(out))
    assert diagnose("eurosat")[0] == 0


def test_the_datasets_folder_is_called_like_that_of_its_images(tmp_path, diagnose):
    make_tree("sun397", tmp_path).rename(tmp_path / "SUN397")
    out = diagnose("sun397")[1]
    assert mend(out) == f"mv {tmp_path}/SUN397 {tmp_path}/sun397"
    shell(mend(out))
    assert diagnose("sun397")[0] == 0


@pytest.mark.parametrize(("config", "images"), [("eurosat", "EuroSAT_RGB"), ("sun397", "SUN397")])
def test_the_folder_of_images_is_taken_for_the_datasets_or_for_the_data_folder(
    config, images, tmp_path, capsys
):
    folder = make_tree(config, tmp_path)
    load(config, tmp_path)  # with its split file no annotation is needed
    split = next(folder.glob("split_zhou*"))
    held = next(path for path in folder.iterdir() if path.is_dir())
    (tmp_path / "data").mkdir()
    for root in (tmp_path / "data", tmp_path / "data" / images):
        shutil.rmtree(tmp_path / "data")
        shutil.copytree(held, tmp_path / "data" / images)
        assert doctor.main([config, "--root", str(root)]) == 1
        out = capsys.readouterr().out
        assert (
            f"There is no folder {root}/{folder.name}, but {tmp_path}/data/{images} has the images"
            in out
        )
        assert ("and the data folder is above it" in out) == (root.name == images)
        shell(mend(out))
        shutil.copy(split, tmp_path / "data" / folder.name)
        assert doctor.main([config, "--root", str(tmp_path / "data")]) == 0


def test_root_is_the_datasets_own_folder(tmp_path, capsys):
    folder = make_tree("dtd", tmp_path)
    assert doctor.main(["dtd", "--root", str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"{folder} is the dataset's own folder, the data folder is above it" in out
    assert mend(out) == f"python -m datasets.doctor DescribableTextures --root {tmp_path}"


def test_more_than_published(tmp_path, diagnose):
    trees.image(make_tree("eurosat", tmp_path) / "2750" / "River" / "mine.jpg")
    code, out = diagnose("eurosat")
    assert code == 0 and "1 images more than published" in out


def test_deep(tmp_path, diagnose, monkeypatch):
    monkeypatch.setattr(doctor, "NAMED", 1)
    images = make_tree("ucf101", tmp_path) / "UCF-101-midframes"
    assert diagnose("ucf101", "--deep")[0] == 0
    for i in (1, 5):
        cut = images / "Yo_Yo" / f"v_YoYo_g0{i}_c01.jpg"
        cut.write_bytes(cut.read_bytes()[:-200])
    assert diagnose("ucf101")[0] == 0
    code, out = diagnose("ucf101", "--deep")
    assert code == 1 and " incomplete " in out
    assert f"UCF101: 2 images cannot be opened: {images}/Yo_Yo/v_YoYo_g0" in out
    assert ".jpg, …\n" in out
    assert mend(out) == f"python -m datasets.prepare UCF101 --root {tmp_path} --again"


def test_the_data_folder_is_that_of_the_scripts(tmp_path, monkeypatch, capsys):
    make_tree("eurosat", tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path))
    assert doctor.main(["eurosat"]) == 0
    shutil.rmtree(tmp_path / "eurosat" / "2750" / "River")
    assert doctor.main(["eurosat"]) == 1
    assert mend(capsys.readouterr().out) == "python -m datasets.prepare EuroSAT"
