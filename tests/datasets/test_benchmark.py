"""Split files, few-shot files, base and new classes, against hand-written expectations."""

import json
import random

import pytest
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data.datasets import Datum
from dassl.utils import Failure, UsageError, set_random_seed
from datasets.benchmark import Benchmark, split_50_20_30, subsample_classes


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
    assert [path for path, *_ in json.loads(file.read_text())["train"]] == [n for n, *_ in names(first.train_x)]
    cfg.SEED = 2  # the run's seed does not change it
    random.seed(99)
    assert names(Pets(cfg).test) == names(first.test)
    file.unlink()
    assert names(Pets(cfg).test) == names(first.test)


def test_split_shares_are_rounded_per_class():
    items = [
        Datum(f"{label}/{i}", label, classname=str(label)) for label, n in ((0, 7), (1, 5), (2, 11)) for i in range(n)
    ]
    train, val, test = split_50_20_30(items, random.Random(0))
    counts = [[sum(d.label == label for d in s) for s in (train, val, test)] for label in range(3)]
    assert counts == [[4, 1, 2], [2, 1, 2], [6, 2, 3]]  # Python rounds 3.5 to 4, 2.5 to 2 and 5.5 to 6
    assert {d.impath for s in (train, val, test) for d in s} == {d.impath for d in items}


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
    """By hand: seeded like the run, random.sample over the labels in order of first appearance, train before val."""
    rows = [[f"{c}/{i}.JPG", label, c] for label, c in ((1, "dog"), (0, "Cat")) for i in range(8)]
    val = [[f"{c}/{i}.JPG", label, c] for label, c in ((1, "dog"), (0, "Cat")) for i in (8, 9)]
    (tmp_path / "pets" / "split_zhou_Pets.json").write_text(json.dumps({"train": rows, "val": val, "test": val}))
    cfg.DATASET.NUM_SHOTS = 3
    set_random_seed(1)
    picked = Pets(cfg)
    assert [n for n, *_ in names(picked.train_x)] == [
        "dog/2.JPG", "dog/4.JPG", "dog/0.JPG", "Cat/4.JPG", "Cat/0.JPG", "Cat/3.JPG",
    ]  # fmt: skip
    assert [n for n, *_ in names(picked.val)] == ["dog/8.JPG", "dog/9.JPG", "Cat/8.JPG", "Cat/9.JPG"]
    # Again from the file, whatever the random state, and the same under base and new.
    again = Pets(cfg)
    assert names(again.train_x) == names(picked.train_x)
    cfg.DATASET.SUBSAMPLE_CLASSES = "new"
    assert names(Pets(cfg).train_x) == [(n, 0, c) for n, label, c in names(picked.train_x) if label == 1]
    cfg.SEED, cfg.DATASET.SUBSAMPLE_CLASSES = 2, "all"
    set_random_seed(2)
    assert names(Pets(cfg).train_x) != names(picked.train_x)


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
    with pytest.raises(Failure, match="no folder .*nowhere/pets/images.*bundled `shapes` needs no data"):
        Pets(cfg)
