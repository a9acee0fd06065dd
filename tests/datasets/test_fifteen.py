"""The fifteen benchmarks in their real layout: names and counts, torchvision's view, errors."""

import json
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torchvision.datasets as tv
from PIL import Image
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.utils import Failure
from datasets import readers

from . import trees

REPO = Path(__file__).resolve().parents[2]


@dataclass
class Known:
    """What is known of a tree that `trees` makes."""

    folder: str
    classnames: list[str]
    counts: tuple[int, int, int]  # train, val, test
    images: str = ""  # what a split file's paths start from


WNID_NAMES = list(trees.WNIDS.values())
EUROSAT = [
    "Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road",
    "Industrial Buildings", "Pasture Land", "Permanent Crop Land", "Residential Buildings",
    "River", "Sea or Lake",
]  # fmt: skip
CARS = ["2000 AM General Hummer SUV", "2012 Acura TL Sedan", "2012 Ram C/V Cargo Van Minivan"]
FLOWERS = ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]
SCENES = ["abbey", "airplane_cabin", "indoor church", "outdoor church"]
SPLIT = {
    "caltech101": Known(
        "caltech-101",
        ["face", "leopard", "motorbike", "accordion", "airplane", "yin_yang"],
        (30, 12, 18),
        "101_ObjectCategories",
    ),
    "oxford_pets": Known(
        "oxford_pets",
        ["abyssinian", "american_bulldog", "british_shorthair"],
        (12, 3, 12),
        "images",
    ),
    "stanford_cars": Known("stanford_cars", CARS, (12, 3, 4)),
    "oxford_flowers": Known("oxford_flowers", FLOWERS, (15, 6, 9), "jpg"),
    "food101": Known("food-101", ["apple_pie", "baby_back_ribs", "waffles"], (15, 6, 9), "images"),
    "sun397": Known("sun397", SCENES, (16, 4, 8), "SUN397"),
    "dtd": Known("dtd", ["banded", "polka-dotted", "zigzagged"], (15, 6, 9), "images"),
    "eurosat": Known("eurosat", EUROSAT, (50, 20, 30), "2750"),
    "ucf101": Known(
        "ucf101",
        ["Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo"],
        (12, 3, 9),
        "UCF-101-midframes",
    ),
}
OTHERS = {
    "fgvc_aircraft": Known("fgvc_aircraft", ["707-320", "Boeing 717", "F/A-18"], (6, 3, 5)),
    "imagenet": Known("imagenet", WNID_NAMES, (66, 22, 22)),
}
TEST_ONLY = {
    "imagenetv2": Known("imagenetv2", WNID_NAMES, (11, 0, 11)),
    "imagenet_sketch": Known("imagenet-sketch", WNID_NAMES, (22, 0, 22)),
    "imagenet_a": Known("imagenet-adversarial", ["goldfish", "stingray", "brambling"], (9, 0, 9)),
    "imagenet_r": Known("imagenet-rendition", ["goldfish", "stingray", "brambling"], (9, 0, 9)),
}
ALL = SPLIT | OTHERS | TEST_ONLY


def make_tree(config: str, root: Path) -> Path:
    """The benchmark's own folder."""
    getattr(trees, config)(root)
    return root / ALL[config].folder


def load(config: str, root: Path, **changes) -> DatasetBase:
    """The benchmark of configs/datasets/<config>.yaml."""
    cfg = get_cfg_default()
    cfg.merge_from_file(str(REPO / "configs" / "datasets" / f"{config}.yaml"))
    cfg.DATASET.ROOT, cfg.SEED = str(root), 1
    cfg.DATASET.merge_from_other_cfg(CfgNode(changes))
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)


def rows(*splits: list[Datum]) -> list[tuple]:
    return [(d.impath, d.label, d.classname) for split in splits for d in split]


def everything(data: DatasetBase) -> list[tuple]:
    return rows(data.train_x, data.val or [], data.test)


@pytest.mark.parametrize("config", ALL)
def test_class_names_and_counts(config, tmp_path):
    folder = make_tree(config, tmp_path)
    data, known = load(config, tmp_path), ALL[config]
    assert data.classnames == known.classnames
    assert tuple(map(len, (data.train_x, data.val, data.test))) == known.counts
    assert all(os.path.isfile(path) for path, *_ in everything(data))
    if config in SPLIT:  # no image is in two splits
        assert len({path for path, *_ in everything(data)}) == sum(known.counts)
        assert (folder / f"split_zhou_{type(data).__name__}.json").exists()
    else:
        assert not list(folder.glob("split_zhou*"))
    assert everything(load(config, tmp_path)) == everything(data)


@pytest.mark.parametrize("config", SPLIT)
def test_a_split_file_is_read_as_it_is(config, tmp_path):
    folder = make_tree(config, tmp_path)
    made = load(config, tmp_path)
    file = folder / f"split_zhou_{type(made).__name__}.json"
    start = folder / SPLIT[config].images
    splits = {"train": made.train_x, "val": made.val, "test": made.test}
    ours = {
        name: [[str(Path(p).relative_to(start)), n, c] for p, n, c in rows(split)]
        for name, split in splits.items()
    }
    assert json.loads(file.read_text()) == ours
    # Upstream's, with another order and other names, written on Windows.
    theirs = {
        name: [[p.replace("/", "\\"), n, f"a {c}"] for p, n, c in reversed(split)]
        for name, split in ours.items()
    }
    file.write_text(json.dumps(theirs))
    read = load(config, tmp_path)
    for before, after in (
        (made.train_x, read.train_x),
        (made.val, read.val),
        (made.test, read.test),
    ):
        assert rows(after) == [(p, n, f"a {c}") for p, n, c in reversed(rows(before))]


def test_splits_are_per_class(tmp_path):
    for config in ("eurosat", "oxford_pets"):
        make_tree(config, tmp_path)
    data = load("eurosat", tmp_path)
    labels = [[d.label for d in split] for split in (data.train_x, data.val, data.test)]
    assert [[split.count(n) for split in labels] for n in range(10)] == [[5, 2, 3]] * 10
    pets = load("oxford_pets", tmp_path)
    assert [[d.label for d in pets.val].count(n) for n in range(3)] == [1] * 3
    assert not {d.impath for d in pets.test} & {str(p) for p in tmp_path.rglob("*_[0-4].jpg")}


def test_the_test_only_sets_take_no_notice_of_shots_and_classes(tmp_path):
    for config in TEST_ONLY:
        make_tree(config, tmp_path)
        data = load(config, tmp_path, NUM_SHOTS=1, SUBSAMPLE_CLASSES="new")
        assert everything(data) == everything(load(config, tmp_path)) and rows(
            data.train_x
        ) == rows(data.test)
    v2 = load("imagenetv2", tmp_path)
    assert [(Path(d.impath).parent.name, d.label) for d in v2.test] == [
        (str(i), i) for i in range(11)
    ]


def test_imagenet_picks_from_training_images_only(tmp_path):
    folder = make_tree("imagenet", tmp_path)
    data = load("imagenet", tmp_path, NUM_SHOTS=2)
    assert [len(s) for s in (data.train_x, data.val, data.test)] == [22, 22, 22]
    assert list(json.loads((folder / "split_fewshot" / "shot_2-seed_1.json").read_text())) == [
        "train"
    ]
    base = load("imagenet", tmp_path, NUM_SHOTS=2, SUBSAMPLE_CLASSES="base")
    assert (
        rows(base.train_x) == rows(data.train_x)[:12]
        and rows(base.val) == rows(base.test) == rows(data.test)[:12]
    )


def test_class_names_of_imagenet_serve_its_variants(tmp_path):
    for config in ("imagenet", "imagenet_a"):
        folder = make_tree(config, tmp_path)
    (folder / "classnames.txt").unlink()
    assert load("imagenet_a", tmp_path).classnames == TEST_ONLY["imagenet_a"].classnames


# -- what else may lie in a folder


def test_what_is_no_image_is_passed_over(tmp_path):
    folder = make_tree("eurosat", tmp_path)
    expected = everything(load("eurosat", tmp_path))
    (folder / "split_zhou_EuroSAT.json").unlink()
    forest = folder / "2750" / "Forest"
    for name in (
        "README.txt",
        ".DS_Store",
        "Thumbs.db",
        "._Forest_1.jpg",
        "Forest_1.jpg:Zone.Identifier",
    ):
        (forest / name).touch()
        (folder / "2750" / name).touch()
    (folder / "2750" / ".ipynb_checkpoints").mkdir()
    (folder / "2750" / "__MACOSX").mkdir()
    assert everything(load("eurosat", tmp_path)) == expected


def test_upper_case_and_links(tmp_path):
    elsewhere = make_tree("eurosat", tmp_path / "disk")
    forest = elsewhere / "2750" / "Forest"
    (forest / "Forest_1.jpg").rename(forest / "Forest_1.JPG")
    (forest / "Forest_2.jpg").rename(tmp_path / "x.PNG")
    (forest / "Forest_2.PNG").symlink_to(tmp_path / "x.PNG")
    shutil.move(elsewhere / "2750" / "River", tmp_path / "River")
    (elsewhere / "2750" / "River").symlink_to(tmp_path / "River")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "eurosat").symlink_to(elsewhere)
    data = load("eurosat", tmp_path / "data")
    assert (len(everything(data)), data.classnames) == (100, EUROSAT)
    assert {Path(p).suffix for p, *_ in everything(data)} == {".jpg", ".JPG", ".PNG"}


def test_a_folder_that_cannot_be_written_to_will_do(tmp_path, monkeypatch, capsys):
    make_tree("eurosat", tmp_path)

    def refuse(target):
        raise Failure(f"Cannot write to {target.parent}")

    monkeypatch.setattr("datasets.readers.locked", refuse)
    data = load("eurosat", tmp_path, NUM_SHOTS=1)
    assert len(data.train_x) == 10 and not list(tmp_path.rglob("*.json"))
    assert capsys.readouterr().out.count("Not saved for later runs: Cannot write to") == 2
    assert rows(load("eurosat", tmp_path).test) == rows(data.test)


def _read(root: str) -> list[tuple]:
    random.seed(1)
    return everything(load("caltech101", Path(root), NUM_SHOTS=2)) + everything(
        load("imagenet", Path(root))
    )


def test_runs_that_start_at_once(tmp_path):
    for config in ("caltech101", "imagenet"):
        make_tree(config, tmp_path)
    age(tmp_path)
    with ProcessPoolExecutor(2) as pool:
        a, b = pool.map(_read, [str(tmp_path)] * 2)
    assert a == b
    assert not list(tmp_path.rglob("*.tmp"))


# -- ImageNet's listing


def age(root: Path) -> None:
    """As if the folders had been made long ago: what has just changed is not relied on."""
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        os.utime(folder, (1e9, 1e9))


def test_imagenet_is_listed_once_and_again_where_it_changes(tmp_path, monkeypatch):
    folder = make_tree("imagenet", tmp_path)
    first = everything(load("imagenet", tmp_path))
    assert not (folder / "listing.json").exists()  # the images may still be arriving
    age(tmp_path)
    assert everything(load("imagenet", tmp_path)) == first
    listed, list_images = [], readers.list_images
    monkeypatch.setattr(
        readers, "list_images", lambda f, others: listed.append(f.name) or list_images(f, others)
    )
    assert everything(load("imagenet", tmp_path)) == first and listed == []
    trees.image(folder / "images" / "train" / "n01440764" / "n01440764_99999.JPEG")
    assert len(load("imagenet", tmp_path).train_x) == 67 and listed == ["n01440764"]
    shutil.rmtree(folder / "images" / "train" / "n01530575")
    shutil.rmtree(folder / "images" / "val" / "n01530575")
    assert load("imagenet", tmp_path).num_classes == 10
    for damaged in ("{", "[1]", "null", '{"images/train/n01440764": 5}', '{"a": [1, 2, 3]}'):
        (folder / "listing.json").write_text(damaged)
        assert load("imagenet", tmp_path).num_classes == 10


# -- torchvision reads the same trees


def content(path: str) -> bytes:
    with Image.open(path) as file:
        return file.convert("RGB").tobytes()


def ours(*splits: list[Datum]) -> dict[bytes, int]:
    return {content(d.impath): d.label for split in splits for d in split}


def theirs(*parts) -> dict[bytes, int]:
    return {img.convert("RGB").tobytes(): int(label) for part in parts for img, label in part}


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def by_split(kind: type, *names: str) -> Callable[[Path], list]:
    return lambda root: [kind(str(root), split=name) for name in names]


TORCHVISION = {
    # the folder's name there, and the parts that torchvision has it in
    "dtd": ("tv/dtd/dtd", by_split(tv.DTD, "train", "val", "test")),
    "eurosat": ("tv/eurosat", lambda root: [tv.EuroSAT(str(root))]),
    "fgvc_aircraft": (
        "tv/fgvc-aircraft-2013b/data",
        by_split(tv.FGVCAircraft, "train", "val", "test"),
    ),
    "oxford_flowers": ("tv/flowers-102", by_split(tv.Flowers102, "train", "val", "test")),
    "food101": ("tv/food-101", by_split(tv.Food101, "train", "test")),
    "oxford_pets": ("tv/oxford-iiit-pet", by_split(tv.OxfordIIITPet, "trainval", "test")),
    "stanford_cars": ("tv/stanford_cars", by_split(tv.StanfordCars, "train", "test")),
    "sun397": ("tv", lambda root: [tv.SUN397(str(root))]),
}


@pytest.mark.parametrize("config", TORCHVISION)
def test_torchvision_reads_the_same(config, tmp_path, monkeypatch):
    place, read = TORCHVISION[config]
    link(tmp_path / place, make_tree(config, tmp_path))
    md5s = {name: (file, None) for name, (file, _) in tv.Flowers102._file_dict.items()}
    monkeypatch.setattr(tv.Flowers102, "_file_dict", md5s)
    parts, data = read(tmp_path / "tv"), load(config, tmp_path)
    all_of_ours = ours(data.train_x, data.val, data.test)
    assert all_of_ours == theirs(*parts) and len(all_of_ours) == sum(ALL[config].counts)
    if config in (
        "fgvc_aircraft",
        "oxford_pets",
        "stanford_cars",
    ):  # these keep the authors' test set
        assert ours(data.test) == theirs(parts[-1])
    if config == "fgvc_aircraft":
        assert data.classnames == parts[0].classes
        assert [ours(s) for s in (data.train_x, data.val)] == [theirs(p) for p in parts[:2]]
    if config == "stanford_cars":
        assert [f"{c[5:]} {c[:4]}" for c in data.classnames] == parts[0].classes


def test_torchvision_reads_the_same_caltech(tmp_path):
    """It keeps the easy faces, so its labels are others: by name."""
    link(tmp_path / "tv" / "caltech101", make_tree("caltech101", tmp_path))
    parts, data = tv.Caltech101(str(tmp_path / "tv")), load("caltech101", tmp_path)
    renamed = {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    }
    named = {
        img.tobytes(): renamed.get(c := parts.categories[y], c)
        for img, y in parts
        if parts.categories[y] != "Faces_easy"
    }
    assert {
        k: data.classnames[v] for k, v in ours(data.train_x, data.val, data.test).items()
    } == named


# -- what can be wrong


def change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def first_file(folder: Path) -> Path:
    return next(p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg"))


def remove_images(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            path.unlink()


@pytest.mark.parametrize("config", ALL)
def test_a_missing_folder(config, tmp_path):
    with pytest.raises(
        Failure, match=rf"no folder {tmp_path}/{ALL[config].folder}\S*\. .*DATA.*`shapes`"
    ) as caught:
        load(config, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ALL)
def test_half_extracted(config, tmp_path):
    """Nothing is saved that a later, whole extraction would have to live with."""
    folder = make_tree(config, tmp_path)
    remove_images(folder)
    with pytest.raises(
        Failure, match=r"(holds no images|which is not there): extract the (archive|images) again"
    ):
        load(config, tmp_path)
    assert not list(folder.glob("split_zhou*")) and not (folder / "listing.json").exists()
    if "images" in os.listdir(folder) and config not in (
        "oxford_pets",
        "fgvc_aircraft",
        "imagenet",
    ):
        shutil.rmtree(folder / "images")
        (folder / "images").mkdir()
        with pytest.raises(Failure, match="holds no class folders: extract the archive again"):
            load(config, tmp_path)


@pytest.mark.parametrize("config", ["imagenet", *TEST_ONLY])
def test_missing_class_names(config, tmp_path):
    folder = make_tree(config, tmp_path)
    (folder / "classnames.txt").unlink()
    with pytest.raises(
        Failure, match=rf"{folder}/classnames.txt is missing: docs/DATASETS.md says where to get it"
    ):
        load(config, tmp_path)
    trees.text(folder / "classnames.txt", "n01440764 tench", "n01443537")
    with pytest.raises(
        Failure,
        match="classnames.txt, line 2 is not \"folder name\": 'n01443537'. Get the file again",
    ):
        load(config, tmp_path)
    trees.text(folder / "classnames.txt", "n99999999 no such animal")
    if config != "imagenetv2":
        with pytest.raises(
            Failure, match=r"classnames.txt has no name for the folder .*/n01\d{6}: add a line, or"
        ):
            load(config, tmp_path)


@pytest.mark.parametrize("config", SPLIT)
def test_a_split_that_names_an_absent_image(config, tmp_path):
    folder = make_tree(config, tmp_path)
    data = load(config, tmp_path)
    Path(data.test[1].impath).unlink()
    with pytest.raises(
        Failure,
        match=rf"split_zhou_{type(data).__name__}.json names {data.test[1].impath}, which is",
    ):
        load(config, tmp_path)
    next(folder.glob("split_zhou*")).write_text('{"train": [')
    with pytest.raises(Failure, match="is not valid JSON"):
        load(config, tmp_path)


MALFORMED = {
    (
        "oxford_pets",
        "annotations/test.txt",
        "Abyssinian_6 1",
        "Abyssinian_6 one",
    ): 'line 2 is not "name label species',
    ("fgvc_aircraft", "images_variant_val.txt", "0020001 ", "0020001"): 'line 2 is not "id class"',
    ("fgvc_aircraft", "variants.txt", "F/A-18", "F-18"): (
        r"images_variant_train.txt, line 2: 'F/A-18' is not in \S+/fgvc_aircraft/variants.txt. "
        "Get both files again"
    ),
    (
        "sun397",
        "ClassName.txt",
        "/a/abbey",
        "/a/abey",
    ): "Training_01.txt, line 1: '/a/abbey' is not in .*/ClassName.txt",
    (
        "sun397",
        "Training_01.txt",
        "/a/abbey/sun_v",
        "a/abbey/sun_v",
    ): "line 1: 'a/abbey' is not in .*/ClassName.txt. Get",
    (
        "ucf101",
        "ucfTrainTestlist/classInd.txt",
        "YoYo",
        "Yo",
    ): "trainlist01.txt, line 11: 'YoYo' is not in .*classInd.txt",
    (
        "ucf101",
        "ucfTrainTestlist/testlist01.txt",
        "YoYo/v_YoYo_g02",
        "YoYoYo/v_YoYo_g02",
    ): "line 8: 'YoYoYo' is not in",
    (
        "ucf101",
        "ucfTrainTestlist/testlist01.txt",
        "YoYo/v_YoYo_g02",
        "v_YoYo_g02",
    ): 'line 8 is not "Class/video',
    (
        "ucf101",
        "ucfTrainTestlist/classInd.txt",
        "2 ",
        "two ",
    ): 'line 2 is not "label Class": \'two Handstand',
    (
        "oxford_flowers",
        "cat_to_name.json",
        '"3":',
        '"4":',
    ): "annotation files in .* do not fit together .*get them again",
}


@pytest.mark.parametrize(("config", "file", "old", "new"), MALFORMED)
def test_a_malformed_annotation_line(config, file, old, new, tmp_path):
    folder = make_tree(config, tmp_path)
    change(folder / file, old, new)
    with pytest.raises(Failure, match=MALFORMED[config, file, old, new]) as caught:
        load(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_annotation_file(tmp_path):
    for config, file in (
        ("oxford_pets", "annotations/trainval.txt"),
        ("stanford_cars", "devkit/cars_meta.mat"),
        ("stanford_cars", "cars_test_annos_withlabels.mat"),
        ("oxford_flowers", "imagelabels.mat"),
    ):
        folder = make_tree(config, tmp_path / file.replace("/", "_"))
        if file.endswith(".mat"):
            whole = (folder / file).read_bytes()
            (folder / file).write_bytes(whole[: len(whole) // 2])
            with pytest.raises(
                Failure, match=rf"{file} is not the dataset's annotation file \(.*\): get it again"
            ):
                load(config, folder.parent)
        (folder / file).unlink()
        with pytest.raises(
            Failure, match=rf"{file} is missing: docs/DATASETS.md says where to get it"
        ):
            load(config, folder.parent)
    # the devkit's test annotations without labels, under the name of those with labels
    folder = make_tree("stanford_cars", tmp_path)
    shutil.copy(
        folder / "devkit" / "cars_test_annos.mat", folder / "cars_test_annos_withlabels.mat"
    )
    with pytest.raises(
        Failure, match="is not the dataset's annotation file .*class.*: get it again"
    ):
        load("stanford_cars", tmp_path)


def test_validation_images_of_imagenet_that_were_never_sorted(tmp_path):
    """The commonest mistake with it: the archive has them all in one folder."""
    folder = make_tree("imagenet", tmp_path) / "images" / "val"
    for path in list(folder.rglob("*.JPEG")):
        path.rename(folder / path.name)
    command = f"python -m datasets.prepare imagenet --root {tmp_path}"
    told = f"images/val holds 22 images .*: {command} sorts them, .*DATASETS"
    with pytest.raises(Failure, match=told):
        load("imagenet", tmp_path)


def test_a_class_folder_that_is_not_there(tmp_path):
    shutil.rmtree(make_tree("imagenet", tmp_path) / "images" / "val" / "n01443537")
    with pytest.raises(
        Failure, match="^There is no folder .*/images/val/n01443537: extract the archive again$"
    ):
        load("imagenet", tmp_path)
    shutil.rmtree(
        make_tree("imagenetv2", tmp_path) / "imagenetv2-matched-frequency-format-val" / "3"
    )
    with pytest.raises(Failure, match="^There is no folder .*-val/3: extract"):
        load("imagenetv2", tmp_path)


def test_two_classes_of_imagenet_may_have_one_name(tmp_path):
    folder = make_tree("imagenet", tmp_path)
    change(folder / "classnames.txt", "goldfish", "tench")
    assert load("imagenet", tmp_path).classnames[:2] == ["tench", "tench"]
