"""The drawn benchmark: the same images every time, all classes, also when runs start at once."""

import filecmp
import hashlib
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Failure
from datasets import shapes_tasks
from datasets.shapes import Shapes, ShapesBackground, ShapesBlur, ShapesCount, combinations
from datasets.shapes_render import COLORS, GRAY, SHAPES, Style, render

FEW = {"train": 3, "val": 1, "test": 2}


def make(kind: type, root: Path, **changes):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.SEED = str(root), kind.__name__, 1
    for key, value in changes.items():
        cfg.DATASET[key] = value
    return kind(cfg)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(Shapes, "parts", FEW)


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*.*") if p.is_file())


def test_drawing_is_the_same_every_time(few, tmp_path):
    make(Shapes, tmp_path / "a"), make(Shapes, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a" / "shapes" / "images")) == 32 * 6
    assert not filecmp.cmpfiles(
        tmp_path / "a", tmp_path / "b", [f for f in files(tmp_path / "a") if "lock" not in f], False
    )[1]


def test_base_and_new_classes(few, tmp_path):
    data = make(Shapes, tmp_path)
    assert len(data.classnames) == 32 == len(set(data.classnames))
    assert data.classnames[0].split()[1] == "red"
    for half in (data.classnames[:16], data.classnames[16:]):
        assert sorted(n.split()[1] for n in half) == sorted(list(COLORS) * 2)
        assert (
            len({(n.split()[0], n.split()[2]) for n in half}) == 16
        )  # so colour alone never decides
    assert [len(s) for s in (data.train_x, data.val, data.test)] == [96, 32, 64]
    assert make(Shapes, tmp_path, SUBSAMPLE_CLASSES="new").classnames == data.classnames[16:]
    rows = json.loads((tmp_path / "shapes" / "split_zhou_Shapes.json").read_text())["test"]
    assert rows[0][1:] == [0, data.classnames[0]] and rows[0][0].startswith(
        data.classnames[0].replace(" ", "_") + "/"
    )


def test_the_relatives(monkeypatch, tmp_path):
    for kind in (ShapesBackground, ShapesCount, ShapesBlur):
        monkeypatch.setattr(kind, "parts", FEW)
    assert "red star on yellow background" not in combinations()
    background, count, blur = (
        make(k, tmp_path) for k in (ShapesBackground, ShapesCount, ShapesBlur)
    )
    assert (
        all(" on " in n and n.endswith("background") for n in background.classnames)
        and background.num_classes == 24
    )
    assert count.num_classes == 18 and "two red circles" in count.classnames
    assert blur.classnames == list(combinations())
    assert {"ShapesNight", "ShapesSketch"} < set(DATASET_REGISTRY.registered_names())


def test_a_users_images_are_not_drawn_over(few, tmp_path):
    images, name = tmp_path / "shapes/images", next(iter(combinations())).replace(" ", "_")
    for photo, line in (
        ("holiday/photo.png", "images/holiday is none of"),
        (f"{name}/photo.png", f"images/{name}/photo.png is none of"),
        ("0001.png", "images/0001.png is none of"),
    ):
        (images / photo).parent.mkdir(parents=True, exist_ok=True)
        (images / photo).write_bytes(b"mine")
        with pytest.raises(Failure, match=line):
            make(Shapes, tmp_path)
        assert (images / photo).read_bytes() == b"mine"
        shutil.rmtree(images)
    for harmless in (".DS_Store", "Thumbs.db", f"{name}/0001.png"):
        (images / harmless).parent.mkdir(parents=True, exist_ok=True)
        (images / harmless).write_bytes(b"")
    assert len(make(Shapes, tmp_path).train_x) == 96


def test_a_drawing_broken_off_is_begun_anew(few, monkeypatch, tmp_path):
    saved = Shapes.draw.__globals__["save_png"]
    calls = []

    def stop(path, image):
        calls.append(path)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return saved(path, image)

    monkeypatch.setitem(Shapes.draw.__globals__, "save_png", stop)
    with pytest.raises(KeyboardInterrupt):
        make(Shapes, tmp_path)
    assert not (tmp_path / "shapes" / "split_zhou_Shapes.json").exists()
    assert len(make(Shapes, tmp_path).train_x) == 96


def draw_elsewhere(root: str) -> int:
    Shapes.parts = FEW
    return len(make(Shapes, Path(root)).test)


def test_runs_that_start_at_once_share_one_drawing(tmp_path):
    with ProcessPoolExecutor(2) as pool:
        assert list(pool.map(draw_elsewhere, [str(tmp_path)] * 2)) == [64, 64]
    assert len(files(tmp_path / "shapes" / "images")) == 32 * 6


def test_images_show_what_their_name_says():
    """The colour at the centre, as many separate objects, another outline for each shape."""
    from scipy.ndimage import label

    style = Style(noise=0, fade=(0, 0), shade=0, rotation=0)

    def draw(color=0, shape="circle", count=1, pattern=0):
        attributes = (np.array([v]) for v in (pattern, color, SHAPES.index(shape), GRAY, count))
        return render(np.random.RandomState(0), *attributes, size=96, style=style)[0].astype(int)

    for i, rgb in enumerate(COLORS.values()):
        assert np.abs(draw(color=i)[48, 48] / np.array(rgb) - 0.95).max() < 0.16
    for n in (1, 2, 3, 4):
        image = draw(count=n)
        colored = image.max(-1) - image.min(-1) > 60
        assert label(colored)[1] == n
    outlines = {
        tuple((d := draw(shape=s)).max(-1).flatten() - d.min(-1).flatten() > 60) for s in SHAPES
    }
    assert len(outlines) == len(SHAPES)


# Classes, look and number of images of each task of docs/PLAN.md: no result of a method may change
# them.
FROZEN = {
    Shapes: "f29ed9e971bca349",
    shapes_tasks.ShapesFog: "26ab02d108b910a7",
    shapes_tasks.ShapesDusk: "546d6620028f3d31",
    shapes_tasks.ShapesGarden: "0651e214971432b5",
    shapes_tasks.ShapesCrowd: "ba4df99e925f0eb3",
}


@pytest.mark.parametrize("kind", FROZEN)
def test_the_five_tasks_are_frozen(kind):
    text = json.dumps([list(kind.classes().items()), repr(kind.style), kind.parts])
    assert hashlib.sha256(text.encode()).hexdigest().startswith(FROZEN[kind])


@pytest.mark.parametrize("kind", FROZEN)
def test_the_rules_of_a_task(kind):
    """Each colour twice in each half, and all but the colour of each class only once.

    By chance, two tasks have up to three classes in common.
    """
    classes = list(kind.classes().items())
    assert len(dict(classes)) == 32
    for half in (classes[:16], classes[16:]):
        scenes = [tuple(sorted(scene.items())) for _, scene in half]
        colours = [dict(scene)["color"] for scene in scenes]
        assert sorted(colours) == sorted(list(range(len(COLORS))) * 2)
        without = [tuple(pair for pair in scene if pair[0] != "color") for scene in scenes]
        assert len(set(without)) == 16
    for other in FROZEN:
        assert other is kind or len(other.classes().keys() & dict(classes).keys()) <= 3


def test_the_new_classes_at_dusk_have_other_shapes():
    names = list(shapes_tasks.ShapesDusk.classes())
    base, new = ({name.split()[-1] for name in half} for half in (names[:16], names[16:]))
    assert not base & new and base | new == set(SHAPES)


def test_the_other_tasks_are_drawn_as_the_first(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes_tasks.ShapesCrowd, "parts", FEW)
    data = make(shapes_tasks.ShapesCrowd, tmp_path, SUBSAMPLE_CLASSES="new")
    assert data.classnames == list(shapes_tasks.ShapesCrowd.classes())[16:]
    assert (tmp_path / "shapes_crowd" / "split_zhou_ShapesCrowd.json").is_file()
