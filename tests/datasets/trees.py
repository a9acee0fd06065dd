"""The benchmarks' folders in their real layout, with few classes and images, made of what is known
of the originals.

Nothing here uses the readers that are tested with it.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

WNIDS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead shark",
    "n01496331": "electric ray",
    "n01498041": "stingray",
    "n01514668": "rooster",
    "n01514859": "hen",
    "n01518878": "ostrich",
    "n01530575": "brambling",
}


def image(path: Path) -> None:
    """A JPEG file of one colour, which tells it from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    color = zlib.crc32("/".join(path.parts[-3:]).encode()).to_bytes(4, "big")[:3]
    Image.new("RGB", (8, 8), tuple(color)).save(path, "JPEG", quality=95)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def caltech101(root: Path) -> None:
    folder = root / "caltech-101" / "101_ObjectCategories"
    for name in (
        "BACKGROUND_Google",
        "Faces",
        "Faces_easy",
        "Leopards",
        "Motorbikes",
        "accordion",
        "airplanes",
        "yin_yang",
    ):
        for i in range(1, 11):
            image(folder / name / f"image_{i:04d}.jpg")


def oxford_pets(root: Path) -> None:
    folder = root / "oxford_pets"
    lines = {"trainval": [], "test": []}
    for label, (name, species) in enumerate(
        (("Abyssinian", 1), ("american_bulldog", 2), ("British_Shorthair", 1)), 1
    ):
        for i in range(9):
            image(folder / "images" / f"{name}_{i}.jpg")
            lines["trainval" if i < 5 else "test"].append(f"{name}_{i} {label} {species} {label}")
    (folder / "images" / "Abyssinian_100.mat").touch()  # the archive has such files
    text(
        folder / "annotations" / "list.txt",
        "#Image CLASS-ID SPECIES BREED ID",
        *lines["trainval"],
        *lines["test"],
    )
    for name, rows in lines.items():
        text(folder / "annotations" / f"{name}.txt", *rows)


def stanford_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    names = ["AM General Hummer SUV 2000", "Acura TL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
    boxes = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")

    def annotate(images: str, file: str, classes: list[int], fields: tuple[str, ...]) -> None:
        rows = np.empty((1, len(classes)), dtype=[(f, object) for f in fields])
        for i, number in enumerate(classes):
            values = dict.fromkeys(boxes, np.uint16(39)) | {
                "class": np.uint8(number),
                "fname": f"{i + 1:05d}.jpg",
            }
            rows[0, i] = tuple(values[f] for f in fields)
            image(folder / images / f"{i + 1:05d}.jpg")
        savemat(folder / file, {"annotations": rows})

    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    annotate("cars_train", "devkit/cars_train_annos.mat", [3, 1, 2] * 5, (*boxes, "class", "fname"))
    annotate(
        "cars_test", "cars_test_annos_withlabels.mat", [2, 1, 3, 1], (*boxes, "class", "fname")
    )
    annotate(
        "cars_test", "devkit/cars_test_annos.mat", [2, 1, 3, 1], (*boxes, "fname")
    )  # without labels


def oxford_flowers(root: Path) -> None:
    folder = root / "oxford_flowers"
    labels = [2] * 10 + [3] * 10 + [1] * 10
    for i in range(1, 31):
        image(folder / "jpg" / f"image_{i:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    ids = np.arange(1, 31, dtype=np.uint16)[None]
    savemat(
        folder / "setid.mat", {"trnid": ids[:, ::3], "valid": ids[:, 1::3], "tstid": ids[:, 2::3]}
    )
    names = {
        "21": "fire lily",
        "3": "canterbury bells",
        "1": "pink primrose",
        "2": "hard-leaved pocket orchid",
    }
    text(folder / "cat_to_name.json", json.dumps(names))


def food101(root: Path) -> None:
    folder = root / "food-101"
    names = {
        c: [f"{c}/{1005649 + 7 * i}" for i in range(10)]
        for c in ("apple_pie", "baby_back_ribs", "waffles")
    }
    for name in sum(names.values(), []):
        image(folder / "images" / f"{name}.jpg")
    text(folder / "meta" / "train.json", json.dumps({c: n[:7] for c, n in names.items()}))
    text(folder / "meta" / "test.json", json.dumps({c: n[7:] for c, n in names.items()}))
    text(folder / "meta" / "classes.txt", *names)


def fgvc_aircraft(root: Path) -> None:
    folder = root / "fgvc_aircraft"
    variants = ["707-320", "Boeing 717", "F/A-18"]
    text(folder / "variants.txt", *variants)
    for start, (split, n) in enumerate({"train": 6, "val": 3, "test": 5}.items(), 1):
        rows = [(f"{start:03d}{i:04d}", variants[(i + start) % 3]) for i in range(n)]
        text(
            folder / f"images_variant_{split}.txt", *(f"{name} {variant}" for name, variant in rows)
        )
        for name, _ in rows:
            image(folder / "images" / f"{name}.jpg")


def sun397(root: Path) -> None:
    folder = root / "sun397"
    classes = ["/a/abbey", "/a/airplane_cabin", "/c/church/indoor", "/c/church/outdoor"]
    for file in (folder / "ClassName.txt", folder / "SUN397" / "ClassName.txt"):
        text(file, *classes)
    for file, letters in {"Training_01.txt": "vwxyz", "Testing_01.txt": "ab"}.items():
        rows = [f"{c}/sun_{letter}aalbzqrimafwbiv.jpg" for c in classes for letter in letters]
        text(folder / file, *rows)
        for row in rows:
            image(folder / f"SUN397{row}")


def dtd(root: Path) -> None:
    folder = root / "dtd"
    rows = [
        f"{c}/{c}_{i:04d}.jpg" for c in ("banded", "polka-dotted", "zigzagged") for i in range(10)
    ]
    for row in rows:
        image(folder / "images" / row)
    (folder / "images" / "banded" / ".directory").touch()  # the archive has one
    for i, split in enumerate(("train", "val", "test")):
        text(folder / "labels" / f"{split}1.txt", *rows[i::3])


def eurosat(root: Path) -> None:
    for name in (
        "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
        "Pasture", "PermanentCrop", "Residential", "River", "SeaLake",
    ):  # fmt: skip
        for i in range(1, 11):
            image(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg")


def ucf101(root: Path) -> None:
    folder = root / "ucf101"
    actions = {
        "ApplyEyeMakeup": "Apply_Eye_Makeup",
        "HandstandPushups": "Handstand_Pushups",
        "YoYo": "Yo_Yo",
    }
    lists = folder / "ucfTrainTestlist"
    text(lists / "classInd.txt", *(f"{i} {a}" for i, a in enumerate(actions, 1)))
    rows = [(a, i, f"v_{a}_g{g:02d}_c01") for i, a in enumerate(actions, 1) for g in range(1, 9)]
    text(lists / "trainlist01.txt", *(f"{a}/{v}.avi {i}" for a, i, v in rows if v[-6:-4] > "03"))
    text(lists / "testlist01.txt", *(f"{a}/{v}.avi" for a, _, v in rows if v[-6:-4] <= "03"))
    for a, _, v in rows:
        image(folder / "UCF-101-midframes" / actions[a] / f"{v}.jpg")


def classnames(folder: Path) -> None:
    text(folder / "classnames.txt", *(f"{wnid} {name}" for wnid, name in WNIDS.items()))


def imagenet(root: Path) -> None:
    folder = root / "imagenet"
    classnames(folder)
    for k, wnid in enumerate(WNIDS):
        for i in range(6):
            image(folder / "images" / "train" / wnid / f"{wnid}_{10026 + i}.JPEG")
        for i in range(2):
            image(folder / "images" / "val" / wnid / f"ILSVRC2012_val_{i:05d}{k:03d}.JPEG")


def imagenetv2(root: Path) -> None:
    folder = root / "imagenetv2"
    classnames(folder)
    for k in range(len(WNIDS)):
        image(folder / "imagenetv2-matched-frequency-format-val" / str(k) / f"{k:02d}af.jpeg")


def imagenet_sketch(root: Path) -> None:
    folder = root / "imagenet-sketch"
    classnames(folder)
    for wnid in WNIDS:
        for i in range(2):
            image(folder / "images" / wnid / f"sketch_{i}.JPEG")


def _some_classes(folder: Path, images: str, name: str) -> None:
    classnames(folder)
    text(folder / images / "README.txt", "about")
    for wnid in ("n01498041", "n01443537", "n01530575"):
        for i in range(3):
            image(folder / images / wnid / name.format(i))


def imagenet_a(root: Path) -> None:
    _some_classes(root / "imagenet-adversarial", "imagenet-a", "0.00{}_shark _ hat_0.9.jpg")


def imagenet_r(root: Path) -> None:
    _some_classes(root / "imagenet-rendition", "imagenet-r", "art_{}.jpg")
