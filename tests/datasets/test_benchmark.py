"""Split files, few-shot files, base and new classes, against hand-written expectations."""

import json
import random

import pytest
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data.datasets import Datum
from dassl.utils import Failure, UsageError, set_random_seed
from datasets.benchmark import Benchmark, split_50_20_30, split_80_20, subsample_classes


class Pets(Benchmark):
    dataset_dir = "pets"
    image_dir = "images"


@pytest.fixture
def cfg(tmp_path) -> CfgNode:
    """A folder of 3 classes with 10 images each, one of them hidden."""
    for name in ("dog", "Cat", "ape"):
        folder = tmp_path / "pets" / "images" / name
        folder.mkdir(parents=True)
        for i in range(10):
            (folder / f"{i}.JPG").touch()
        (folder / ".hidden.jpg").touch()
    cfg = get_cfg_default()
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.SEED = "Pets", str(tmp_path), 1
    return cfg


def names(items):
    return [(d.impath.split("images/")[1], d.label, d.classname) for d in items]


def test_a_split_is_made_once_and_kept(cfg, tmp_path):
    first = Pets(cfg)
    assert [len(s) for s in (first.train_x, first.val, first.test)] == [15, 6, 9]
    assert first.classnames == ["Cat", "ape", "dog"]
    file = tmp_path / "pets" / "split_zhou_Pets.json"
    assert [path for path, *_ in json.loads(file.read_text())["train"]] == [
        n for n, *_ in names(first.train_x)
    ]
    cfg.SEED = 2  # the run's seed does not change it
    random.seed(99)
    assert names(Pets(cfg).test) == names(first.test)
    file.unlink()
    assert names(Pets(cfg).test) == names(first.test)


def test_split_shares_are_rounded_per_class():
    items = [
        Datum(f"{label}/{i}", label, classname=str(label))
        for label, n in ((0, 7), (1, 5), (2, 11))
        for i in range(n)
    ]
    train, val, test = split_50_20_30(items, random.Random(0))
    counts = [[sum(d.label == label for d in s) for s in (train, val, test)] for label in range(3)]
    assert counts == [
        [4, 1, 2],
        [2, 1, 2],
        [6, 2, 3],
    ]  # Python rounds 3.5 to 4, 2.5 to 2 and 5.5 to 6
    assert {d.impath for s in (train, val, test) for d in s} == {d.impath for d in items}


def test_a_class_of_three_has_one_image_on_each_side():
    """Larger classes are cut as upstream's are; of two images none validates."""
    for n in range(2, 200):
        items = [Datum(str(i), 0, classname="a") for i in range(n)]
        train, val, test = split_50_20_30(items, random.Random(0))
        n_train, n_val = {2: (1, 0), 3: (1, 1)}.get(n, (round(n * 0.5), round(n * 0.2)))
        assert (len(train), len(val), len(test)) == (n_train, n_val, n - n_train - n_val)
        assert [d.impath for d in train + val + test] == [
            d.impath for d in random.Random(0).sample(items, n)
        ]
        train, val = split_80_20(items, random.Random(0))
        assert (len(train), len(val)) == (n - round(n * 0.2), round(n * 0.2))


def test_classes_that_are_missing_on_a_side_are_named(cfg, tmp_path, capsys):
    rows = [[f"{c}/0.JPG", n, c] for n, c in enumerate(("Cat", "ape", "dog"))]
    split = tmp_path / "pets" / "split_zhou_Pets.json"
    split.write_text(json.dumps({"train": rows, "val": rows[1:2], "test": rows[:2]}))
    Pets(cfg)
    assert capsys.readouterr().out.splitlines() == [
        f"{split}: 2 images are to train on and to test with as well, the first is "
        f"{tmp_path}/pets/images/Cat/0.JPG",
        "2 of 3 classes have no validation images and do not count there: Cat, dog",
        "1 of 3 classes have no test images and do not count there: dog",
    ]


def test_a_split_files_order_and_backslashes_are_kept(cfg, tmp_path):
    rows = [["dog\\3.JPG", 1, "hot_dog"], ["Cat/0.JPG", 0, "cat"], ["dog/1.JPG", 1, "hot_dog"]]
    (tmp_path / "pets" / "split_zhou_Pets.json").write_text(
        json.dumps({"train": rows, "val": rows[:1], "test": rows[1:]})
    )
    data = Pets(cfg)
    assert names(data.train_x) == [
        ("dog/3.JPG", 1, "hot_dog"),
        ("Cat/0.JPG", 0, "cat"),
        ("dog/1.JPG", 1, "hot_dog"),
    ]
    assert data.lab2cname == {0: "cat", 1: "hot_dog"}


def test_few_shot_picks_are_upstreams(cfg, tmp_path):
    """By hand: random.sample, seeded as the run, by label as they appear, train before val."""
    rows = [[f"{c}/{i}.JPG", label, c] for label, c in ((1, "dog"), (0, "Cat")) for i in range(8)]
    val = [[f"{c}/{i}.JPG", label, c] for label, c in ((1, "dog"), (0, "Cat")) for i in (8, 9)]
    (tmp_path / "pets" / "split_zhou_Pets.json").write_text(
        json.dumps({"train": rows, "val": val, "test": val})
    )
    cfg.DATASET.NUM_SHOTS = 3
    set_random_seed(1)
    picked = Pets(cfg)
    assert [n for n, *_ in names(picked.train_x)] == [
        "dog/2.JPG", "dog/4.JPG", "dog/0.JPG", "Cat/4.JPG", "Cat/0.JPG", "Cat/3.JPG",
    ]  # fmt: skip
    assert [n for n, *_ in names(picked.val)] == [
        "dog/8.JPG",
        "dog/9.JPG",
        "Cat/8.JPG",
        "Cat/9.JPG",
    ]
    # Again from the file, whatever the random state, and the same under base and new.
    again = Pets(cfg)
    assert names(again.train_x) == names(picked.train_x)
    cfg.DATASET.SUBSAMPLE_CLASSES = "new"
    assert names(Pets(cfg).train_x) == [
        (n, 0, c) for n, label, c in names(picked.train_x) if label == 1
    ]
    cfg.SEED, cfg.DATASET.SUBSAMPLE_CLASSES = 2, "all"
    set_random_seed(2)
    assert names(Pets(cfg).train_x) != names(picked.train_x)


WRONG_PICKS = {
    "a class is missing": (
        lambda picks: picks["train"][:4],
        "picks 0 images of class 2 (0 lines), not 2",
    ),
    "one image is all": (
        lambda picks: picks["train"][:1],
        "picks 1 images of class 0 (1 lines), not 2",
    ),
    "an image is missing": (
        lambda picks: picks["train"][1:],
        "picks 1 images of class 0 (1 lines), not 2",
    ),
    "an image twice": (
        lambda picks: picks["train"] + picks["train"][:1],
        "picks 2 images of class 0 (3 lines), not 2",
    ),
    "one for another": (
        lambda picks: picks["train"][:1] + picks["train"][:5],
        "picks 2 images of class 0 (3 lines), not 2",
    ),
    "none": (lambda picks: [], "picks 0 images of class "),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("what", WRONG_PICKS)
def test_picks_that_are_not_so_many_of_each_class(what, split, cfg, tmp_path):
    """By them, base and new would be other classes, or the accuracy that of some."""
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = 2, "base"
    picked = names(Pets(cfg).train_x)
    file = tmp_path / "pets" / "split_fewshot" / "shot_2-seed_1.json"
    right = json.loads(file.read_text())
    assert [len(right["train"]), len(right["val"])] == [6, 6]
    change, told = WRONG_PICKS[what]
    file.write_text(
        json.dumps(right | {split: change({"train": sorted(right[split], key=lambda row: row[1])})})
    )
    with pytest.raises(Failure) as caught:
        Pets(cfg)
    assert str(caught.value).startswith(f"{file} {told}") and "remove it for new picks" in str(
        caught.value
    )
    file.write_text(json.dumps(right))
    assert names(Pets(cfg).train_x) == picked


def test_a_class_with_fewer_images_is_picked_whole(cfg, tmp_path):
    for i in range(4, 10):  # leaves 4: 2 to train on
        (tmp_path / "pets" / "images" / "dog" / f"{i}.JPG").unlink()
    cfg.DATASET.NUM_SHOTS = 4
    picked = names(Pets(cfg).train_x)
    assert [label for _, label, _ in picked] == [0] * 4 + [1] * 4 + [2] * 2 and names(
        Pets(cfg).train_x
    ) == picked


def test_a_backslash_in_a_files_name(cfg, tmp_path):
    (tmp_path / "pets" / "images" / "dog" / "0.JPG").rename(
        tmp_path / "pets" / "images" / "dog" / "Cat\\0.JPG"
    )
    cfg.DATASET.NUM_SHOTS = 5
    first, again = Pets(cfg), Pets(cfg)
    for a, b in ((first.train_x, again.train_x), (first.val, again.val), (first.test, again.test)):
        assert names(a) == names(b)
    assert "dog/Cat\\0.JPG" in [path for path, *_ in names(first.train_x + first.val + first.test)]


def test_one_class_has_no_new_ones(cfg, tmp_path):
    rows = [[f"Cat/{i}.JPG", 0, "cat"] for i in range(3)]
    (tmp_path / "pets" / "split_zhou_Pets.json").write_text(
        json.dumps({"train": rows[:1], "val": rows[1:2], "test": rows[2:]})
    )
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    assert Pets(cfg).classnames == ["cat"]
    cfg.DATASET.SUBSAMPLE_CLASSES = "new"
    with pytest.raises(
        UsageError, match="^Pets has one class, a base class: there are no new ones to take$"
    ):
        Pets(cfg)


def test_base_is_the_first_half_rounded_up():
    items = [Datum(f"{label}", label, classname=str(label)) for label in (4, 0, 2, 3, 1)]
    base, base_test = subsample_classes(items, items[1:3], subset="base")
    new, _ = subsample_classes(items, items[1:3], subset="new")
    assert [(d.impath, d.label) for d in base] == [("0", 0), ("2", 2), ("1", 1)]
    assert [(d.impath, d.label) for d in new] == [("4", 1), ("3", 0)]
    assert [(d.impath, d.label) for d in base_test] == [("0", 0), ("2", 2)]


def test_what_is_wrong_is_one_line(cfg, tmp_path):
    split = tmp_path / "pets" / "split_zhou_Pets.json"
    cases = {
        "not a split file": json.dumps({"train": []}),
        "is not valid JSON": "{",
        r"split_zhou_Pets.json names .*/dog/77.JPG, which is not there": json.dumps(
            {"train": [["dog/77.JPG", 0, "dog"]], "val": [], "test": []}
        ),
        "label/class-name mismatch": json.dumps(
            {"train": [["dog/1.JPG", 0, "dog"], ["dog/2.JPG", 0, "wolf"]], "val": [], "test": []}
        ),
        'The classes 0 and 1 are both called "Hot  dog": rename one, or': json.dumps(
            {
                "train": [["dog/1.JPG", 0, "hot_dog"], ["Cat/2.JPG", 1, "Hot  dog"]],
                "val": [],
                "test": [],
            }
        ),
        "The class 1 has no name: give it one in": json.dumps(
            {"train": [["dog/1.JPG", 0, "dog"], ["Cat/2.JPG", 1, " _"]], "val": [], "test": []}
        ),
        "not a split file .*class name 7": json.dumps(
            {"train": [["dog/1.JPG", 0, 7]], "val": [], "test": []}
        ),
    }
    for line, content in cases.items():
        split.write_text(content)
        with pytest.raises(Failure, match=line) as caught:
            Pets(cfg)
        assert "\n" not in str(caught.value)
    cfg.DATASET.SUBSAMPLE_CLASSES = "novel"
    with pytest.raises(UsageError, match="DATASET.SUBSAMPLE_CLASSES.*novel.*all, base, new"):
        Pets(cfg)
    cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.ROOT = "all", str(tmp_path / "nowhere")
    with pytest.raises(
        Failure, match="no folder .*nowhere/pets/images.*bundled `shapes` needs no data"
    ):
        Pets(cfg)
