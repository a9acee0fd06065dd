"""Upstream's pickles: the same picks on another machine, and no code that is run."""

import builtins
import json
import os
import pickle
import random
from pathlib import Path

import pytest

from dassl.data.datasets import Datum
from dassl.data.datasets.base_dataset import Datum as UpstreamsDatum
from dassl.utils import Failure, set_random_seed
from datasets.pickles import read_pickle

from .test_fifteen import load, make_tree, rows
from .trees import image


def upstreams_picks(data, shots: int) -> dict[str, list[Datum]]:
    """What upstream picks: `random.sample` of each label, in order of first appearance."""
    set_random_seed(7)
    picks = {}
    for name, split, n in (("train", data.train_x, shots), ("val", data.val, min(shots, 4))):
        groups: dict[int, list[Datum]] = {}
        for d in split:
            groups.setdefault(d.label, []).append(d)
        picks[name] = [
            d for group in groups.values() for d in random.sample(group, min(n, len(group)))
        ]
    return picks


def moved(lists: dict[str, list[Datum]], here: Path, there: str) -> dict[str, list[Datum]]:
    """The same on a machine where the dataset's folder is `there`."""
    return {
        name: [Datum(d.impath.replace(str(here), there), d.label, 0, d.classname) for d in split]
        for name, split in lists.items()
    }


def save(content: object, path: Path, protocol: int | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


@pytest.mark.parametrize(
    "there", ["/home/zhou/data/eurosat", "/mnt/EuroSAT (copy)", "data/eurosat", ""]
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_upstreams_picks_of_another_machine(there, protocol, tmp_path):
    folder = make_tree("eurosat", tmp_path)
    whole = load("eurosat", tmp_path)
    picks = upstreams_picks(whole, 2)
    save(moved(picks, folder, there), folder / "split_fewshot" / "shot_2-seed_1.pkl", protocol)
    # a cache of ours with other picks gives way to it
    other = {
        name: [[str(Path(d.impath).relative_to(folder / "2750")), d.label, d.classname]]
        for name, d in (("train", whole.train_x[0]), ("val", whole.val[0]))
    }
    (folder / "split_fewshot" / "shot_2-seed_1.json").write_text(json.dumps(other))
    data = load("eurosat", tmp_path, NUM_SHOTS=2)
    assert rows(data.train_x) == rows(picks["train"]) and len(data.train_x) == 20
    assert rows(data.val) == rows(picks["val"]) and len(data.val) == 20
    assert rows(data.test) == rows(whole.test)
    new = load("eurosat", tmp_path, NUM_SHOTS=2, SUBSAMPLE_CLASSES="new")
    assert rows(new.train_x) == [(p, n - 5, c) for p, n, c in rows(data.train_x) if n >= 5]


def test_windows_paths(tmp_path):
    folder = make_tree("eurosat", tmp_path)
    picks = upstreams_picks(load("eurosat", tmp_path), 1)
    for separator in ("/", "\\"):  # upstream joins the folder with a split file's path
        folders = "D:\\data\\eurosat\\2750"
        windows = {
            name: [
                Datum(separator.join([folders, *d.impath.split("/")[-2:]]), d.label, 0, d.classname)
                for d in split
            ]
            for name, split in picks.items()
        }
        save(windows, folder / "split_fewshot" / "shot_1-seed_1.pkl")
        assert rows(load("eurosat", tmp_path, NUM_SHOTS=1).train_x) == rows(picks["train"])


def test_imagenets_pickles(tmp_path):
    """preprocessed.pkl's order decides what is picked; few-shot files hold training images."""
    folder = make_tree("imagenet", tmp_path)
    listed = load("imagenet", tmp_path)
    there = "/scratch/imagenet"
    lists = {"train": listed.train_x[::-1], "test": listed.test[::-1]}
    save(moved(lists, folder, there), folder / "preprocessed.pkl")
    (folder / "classnames.txt").unlink()  # not needed then
    data = load("imagenet", tmp_path)
    assert rows(data.train_x) == rows(lists["train"]) and rows(data.val) == rows(data.test) == rows(
        lists["test"]
    )
    assert not (folder / "listing.json").exists()
    few = {"train": lists["train"][::3]}
    save(moved(few, folder, there), folder / "split_fewshot" / "shot_2-seed_1.pkl")
    data = load("imagenet", tmp_path, NUM_SHOTS=2)
    assert rows(data.train_x) == rows(few["train"]) and len(data.val) == 22
    Path(data.test[0].impath).unlink()
    with pytest.raises(
        Failure,
        match=rf"{folder}/preprocessed.pkl names {there}\S*.JPEG, which is not below {folder}",
    ):
        load("imagenet", tmp_path)


# -- refused


class Runs:
    """Unpickling it calls a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class SubDatum(UpstreamsDatum):
    def __reduce__(self):
        return os.system, ("touch ruined",)


class NotDatum:
    pass


MALICIOUS = {
    "posix.system": lambda: Runs(os.system, "touch ruined"),
    "builtins.eval": lambda: Runs(eval, "open('ruined', 'w')"),
    "builtins.exec": lambda: Runs(exec, "open('ruined', 'w')"),
    "builtins.getattr": lambda: Runs(builtins.getattr, UpstreamsDatum, "__init__"),
    "posix.system ": lambda: SubDatum("a", 0, 0, "b"),
    "tests.datasets.test_pickles.NotDatum": NotDatum,
    "pathlib": lambda: Path("a"),
    "collections.OrderedDict": lambda: __import__("collections").OrderedDict(train=[]),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_anything_but_datum_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, content in enumerate((MALICIOUS[name](), {"train": [MALICIOUS[name]()], "val": []})):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            path = tmp_path / f"{i}-{protocol}.pkl"
            # protocols 0 to 2 call builtins by Python 2's name
            named = name.strip().replace("builtins", "(builtins|__builtin__)")
            save(content, path, protocol)
            with pytest.raises(
                Failure,
                match=rf"^Refused to read {path}: it names {named}\S*, which has no place in a",
            ):
                read_pickle(path, ["train", "val"], tmp_path)
    assert not (tmp_path / "ruined").exists()


DATUM = b"cdassl.data.datasets.base_dataset\nDatum\n"
BY_HAND = {
    "an attribute of Datum": b"\x80\x04\x8c\x20dassl.data.datasets.base_dataset"
    b"\x8c\x0eDatum.__init__\x93.",
    "a module of Datum's module": b"cdassl.data.datasets.base_dataset\nrandom\n.",
    "the os module by a dotted name": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
}


@pytest.mark.parametrize("what", BY_HAND)
def test_names_written_by_hand_are_refused(what, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(BY_HAND[what])
    with pytest.raises(Failure, match=rf"Refused to read {path}"):
        read_pickle(path, ["train"], tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        DATUM + b"(N}Vimpath\nI1\nstb.",  # BUILD on the class itself: it would set Datum.impath
        DATUM + b"(N}V__init__\nNstb.",
        DATUM + b"(N}V__slots__\nNsV_impath\nVx\nstb0" + b"(dVtrain\n(l" + DATUM + b"as.",
        b"(dVtrain\n(l" + DATUM + b"(Vx\ntRas.",  # a Datum made by a call
        b"(dVtrain\n(lVa path\nas.",  # a list of strings
        b"(lVtrain\na.",  # no dict
        b"(dVval\n(ls.",  # no training images
        b"(dVtrain\n(lccopyreg\n_reconstructor\n(I1\nI2\nI3\ntRas.",
        b"Pid\n.",  # a persistent id
        b"\x82\x01.",  # an extension
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",  # bytes without end
        b"",
        b"{}",
    ],
)
def test_what_has_another_form_is_one_line(content, tmp_path):
    before = dict(vars(UpstreamsDatum))
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(
        Failure,
        match=rf"^{path} is truncated, damaged or no list of images. Remove it and it is made",
    ):
        read_pickle(path, ["train"], tmp_path)
    assert dict(vars(UpstreamsDatum)) == before and Datum("x", 1).impath == "x"


def test_truncated_anywhere(tmp_path):
    whole = pickle.dumps({"train": [Datum("a/b.jpg", 1, 0, "cat")] * 3, "val": []})
    path = tmp_path / "a.pkl"
    path.write_bytes(whole)
    image(tmp_path / "a" / "b.jpg")
    assert (
        rows(*read_pickle(path, ["train", "val"], tmp_path))
        == [(f"{tmp_path}/a/b.jpg", 1, "cat")] * 3
    )
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(Failure, match="is truncated, damaged or no list|Refused to read"):
            read_pickle(path, ["train", "val"], tmp_path)


@pytest.mark.parametrize(
    "datum",
    [
        Datum(3, 1, 0, "cat"),
        Datum("a", "1", 0, "cat"),
        Datum("a", 1, 0, None),
        Datum("a", 1, [], "cat"),
    ],
)
def test_wrong_attributes(datum, tmp_path):
    save({"train": [datum]}, tmp_path / "a.pkl")
    with pytest.raises(Failure, match="no list of images"):
        read_pickle(tmp_path / "a.pkl", ["train"], tmp_path)


# -- of another split


def test_picks_that_this_split_does_not_have(tmp_path):
    """Without the split file that the picks were made with, they may be among the test images."""
    folder = make_tree("eurosat", tmp_path)
    data = load("eurosat", tmp_path)
    file = folder / "split_fewshot" / "shot_1-seed_1.pkl"
    good = data.train_x[0]
    for bad, line in (
        (
            data.test[0],
            rf"picks {data.test[0].impath} for class 0, which is no such image of this split"
            ".*split file",
        ),
        (Datum(good.impath, 4, 0, "x"), "for class 4, which is no such image of this split"),
        (
            Datum("/x/eurosat/2750/Forest/Forest_99.jpg", 1, 0, "Forest"),
            rf"names /x/\S+, which is not below {folder}",
        ),
        (Datum("/x/eurosat/../../etc/passwd", 1, 0, "Forest"), r"names /x/\S+, which is not below"),
    ):
        save({"train": [bad, good], "val": []}, file)
        with pytest.raises(Failure, match=line) as caught:
            load("eurosat", tmp_path, NUM_SHOTS=1)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    file.unlink()
    lists = {"train": [["River/River_77.jpg", 8, "River"]], "val": []}
    file.with_suffix(".json").write_text(json.dumps(lists))
    with pytest.raises(
        Failure,
        match=r"shot_1-seed_1.json picks \S*River_77.jpg for class 8, which is no such image",
    ):
        load("eurosat", tmp_path, NUM_SHOTS=1)
