"""Tensors kept in files (dassl/data/kept.py), and decoded test images in them
(DATALOADER.TEST_CACHE)."""

import inspect
import multiprocessing
import os
import signal
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import ToTensor, v2

from dassl.data import DatasetWrapper
from dassl.data.cache import ImageCache
from dassl.data.kept import code_of, kept, load, save
from dassl.data.kept_images import to_float
from dassl.data.transforms import build_transform
from dassl.utils import Failure, read_image
from dassl.utils.lock import locked

from .test_record import read

KEY = {"a": [1, "é"], "b": None}
ROWS = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(1))
fork = multiprocessing.get_context("fork").Process


def rows():
    return [ROWS[:4], ROWS[4:]]


def never():
    raise AssertionError("made again")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_made_once_and_found_by_the_next(tmp_path, dtype):
    parts = [part.abs().to(dtype) for part in rows()]
    made, found = kept(tmp_path / "f", KEY, lambda: parts)
    assert not found and made.dtype == dtype and torch.equal(made, torch.cat(parts))
    again, found = kept(tmp_path / "f", KEY, never)
    assert found and again.dtype == dtype and torch.equal(again, made)
    assert names(tmp_path) == ["f", "f.lock"]


def test_another_key_takes_its_place(tmp_path):
    kept(tmp_path / "f", KEY, rows)
    other, found = kept(tmp_path / "f", KEY | {"b": 1}, lambda: [ROWS + 1])
    assert not found and torch.equal(other, ROWS + 1) and load(tmp_path / "f", KEY) is None


def test_a_torn_or_altered_file_is_made_anew(tmp_path, capsys):
    path = tmp_path / "f"
    save(path, KEY, rows())
    whole = path.read_bytes()
    size = len(whole)
    torn = [
        whole[:n]
        for n in (0, 1, 7, 8, 9, ROWS.nbytes - 1, ROWS.nbytes, size - 9, size - 8, size - 1)
    ]
    flipped = [bytearray(whole) for _ in range(0, size, 7)]
    for i, content in enumerate(flipped):
        content[7 * i] ^= 1 << i % 8
    for content in [*torn, *map(bytes, flipped), b"\0" * size, whole + b"\0"]:
        path.write_bytes(content)
        tensor, found = kept(path, KEY, rows)
        assert torch.equal(tensor, ROWS) and not found and path.read_bytes() == whole
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(
        line.startswith((f"{path} is damaged", f"Cannot use {path}: ")) for line in lines
    )


def test_killed_while_writing(tmp_path):
    path = tmp_path / "f"

    def slow():
        yield torch.zeros(2**20)  # more than is buffered
        time.sleep(60)

    process = fork(target=kept, args=(path, KEY, slow))
    process.start()
    while not (tmp_path / "f.tmp").exists() or not (tmp_path / "f.tmp").stat().st_size:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not path.exists()
    tensor, found = kept(path, KEY, rows)
    assert torch.equal(tensor, ROWS) and not found and names(tmp_path) == ["f", "f.lock"]


def test_of_several_at_once_one_makes_it(tmp_path):
    def write():
        def make():
            (tmp_path / f"made by {os.getpid()}").touch()
            time.sleep(0.2)
            return rows()

        os._exit(0 if torch.equal(kept(tmp_path / "f", KEY, make)[0], ROWS) else 1)

    processes = [fork(target=write) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.glob("made by *"))) == 1


def test_who_waits_says_so(tmp_path):
    def wait():
        with open(tmp_path / "said", "w", buffering=1) as file, redirect_stdout(file):
            kept(tmp_path / "f", KEY, rows)

    process = fork(target=wait)
    with locked(tmp_path / "f"):
        process.start()
        while process.is_alive() and not (
            (tmp_path / "said").exists() and (tmp_path / "said").read_text()
        ):
            time.sleep(0.01)
    process.join()
    assert (
        tmp_path / "said"
    ).read_text() == f"Waiting for another run, which is making {tmp_path}/f\n"
    assert kept(tmp_path / "f", KEY, never)[1]


def test_other_code_has_another_digest(tmp_path):
    (tmp_path / "a.py").write_text("a")
    (tmp_path / "b.py").write_text("b")
    files = tmp_path / "a.py", tmp_path / "b.py"
    first = code_of(*files)
    assert code_of(*files) == first != code_of(*files[:1])
    (tmp_path / "b.py").write_text("c")
    assert code_of(*files) != first


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path, capsys):
    (tmp_path / "f.tmp").symlink_to("/dev/full")
    assert kept(tmp_path / "f", KEY, rows) == (None, False)
    line = capsys.readouterr().out
    assert (
        line.startswith(f"Cannot write {tmp_path}/f: No space left on device. ")
        and line.count("\n") == 1
    )
    assert names(tmp_path) == ["f.lock"]


def test_what_will_not_fit_is_not_begun(tmp_path, capsys):
    assert kept(tmp_path / "f", KEY, never, size=2**60) == (None, False)
    assert capsys.readouterr().out.startswith(
        f"No space for {tmp_path}/f: it takes 1,152,921,504,607 MB"
    )


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert kept(tmp_path / "file" / "f", KEY, never) == (None, False)
    line = capsys.readouterr().out
    assert line.startswith(f"Cannot write to {tmp_path}/file: ") and line.endswith(
        "Going on without it\n"
    )


def test_where_only_reading_is_allowed_what_is_there_is_used(tmp_path, monkeypatch):
    save(tmp_path / "f", KEY, rows())
    monkeypatch.setattr("dassl.data.kept.locked", never)
    assert torch.equal(kept(tmp_path / "f", KEY, never)[0], ROWS)


# -- DATALOADER.TEST_CACHE


@pytest.fixture
def images(cfg, image_root, tmp_path) -> Path:
    """A data folder of this test's own. Uncompressed: an image that has changed is no longer or
    shorter."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file in image_root.glob("*.png"):
        Image.open(file).save(folder / file.name, format="BMP")
    cfg.DATASET.ROOT = str(folder)
    return folder


CROPS = ("DATALOADER.TEST_CACHE", "crops", "DATALOADER.TEST.BATCH_SIZE", 5)  # of 12 images


def inputs(trainer, split="test") -> list[torch.Tensor]:
    """What the model gets in a test."""
    seen = []
    hook = trainer.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    trainer.test(split)
    hook.remove()
    return seen


def files(make, *changes) -> list[torch.Tensor]:
    return inputs(make(*CROPS, *changes, "DATALOADER.TEST_CACHE", ""))


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True)
    )


@pytest.fixture
def unread(monkeypatch):
    """unread() lets no image be read from here on."""
    return lambda: monkeypatch.setattr("dassl.data.cache.read_image", never)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("transforms", [("normalize",), ()])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_images_are_those_of_the_files(
    make, images, unread, workers, transforms, interpolation
):
    opts = (
        "INPUT.TRANSFORMS",
        transforms,
        "INPUT.INTERPOLATION",
        interpolation,
        "INPUT.SIZE",
        (8, 8),
    )
    opts += (
        "INPUT.PIXEL_MEAN",
        [0.48145466, 0.4578275, 0.40821073],
        "DATALOADER.NUM_WORKERS",
        workers,
    )
    expected = files(make, *opts)
    assert [len(batch) for batch in expected] == [5, 5, 2]
    assert same(inputs(make(*CROPS, *opts)), expected)
    unread()
    assert same(inputs(make(*CROPS, *opts)), expected)
    assert same(
        inputs(make(*CROPS, *opts, "INPUT.PIXEL_STD", [0.5, 0.5, 0.5]), "test"), expected
    ) != bool(transforms)


def test_the_rest_of_a_batch_is_the_loaders(make, images):
    trainer = make(*CROPS)
    for ours, usual in zip(
        trainer.test_batches(trainer.test_loader, "test"), trainer.test_loader, strict=True
    ):
        assert (
            list(ours) != [] and ours.keys() == usual.keys() and ours["impath"] == usual["impath"]
        )
        for key in ("img", "label", "domain", "index"):
            assert torch.equal(ours[key], usual[key]) and ours[key].dtype == usual[key].dtype, key


def test_all_pixel_values_become_the_same_numbers():
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 16, 256)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    expected = ToTensor()(image)
    assert torch.equal(to_float(pixels[None])[0], expected)


def test_each_split_and_size_has_its_file(make, images, unread):
    inputs(make(*CROPS))
    inputs(make(*CROPS), "val")
    smaller = make(*CROPS, "INPUT.SIZE", (8, 6))
    assert next(smaller.test_batches(smaller.test_loader, "test"))["img"].shape == (5, 3, 8, 6)
    kept_files = [p for p in (images / "crops").iterdir() if p.suffix != ".lock"]
    assert len(kept_files) == 3 and sum(p.name.startswith("Noise-val-") for p in kept_files) == 1
    unread()  # another batch size is no other file
    inputs(make(*CROPS, "DATALOADER.TEST.BATCH_SIZE", 12))
    inputs(make(*CROPS, "DATASET.ROOT", f"{images}/../{images.name}/"))  # nor another spelling


def test_a_changed_image_is_noticed(make, images):
    before = inputs(make(*CROPS))
    for path in (images / "13.png", images / "23.png"):
        stat = path.stat()
        with Image.open(path) as image:
            image.rotate(180).save(path, format="BMP")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    after = inputs(make(*CROPS))
    assert not same(after, before) and same(after, files(make))
    assert len(names(images / "crops")) == 2  # in the old one's place, and its lock


def test_the_code_that_reads_images_is_in_the_key(make, images, monkeypatch):
    """An image read or cropped by other code is another image."""
    seen: set[str] = set()
    monkeypatch.setattr(
        "dassl.data.kept_images.code_of", lambda *files: seen.update(map(str, files)) or "code"
    )
    inputs(make(*CROPS))
    for what in (DatasetWrapper, ImageCache, read_image, build_transform, to_float):
        assert inspect.getfile(what) in seen, what


def test_another_order_of_the_images_is_another_file(make, images):
    inputs(make(*CROPS))
    trainer = make(*CROPS)
    trainer.test_loader.dataset.data_source.reverse()
    expected = [batch["img"] for batch in trainer.test_loader]
    assert same(inputs(trainer), expected)


def test_a_missing_image_is_named(make, images):
    inputs(make(*CROPS))
    (images / "20.png").unlink()
    with pytest.raises(Failure, match=r"The image .*/20.png does not exist"):
        inputs(make(*CROPS))


@pytest.mark.parametrize("fault", ["torn", "full", "folder"])
def test_a_file_that_cannot_be_used_changes_nothing(make, images, capsys, fault):
    expected = inputs(make(*CROPS))
    [path] = (p for p in (images / "crops").iterdir() if p.suffix != ".lock")
    os.truncate(path, 1000)
    if fault == "full":
        path.unlink()
        Path(f"{path}.tmp").symlink_to("/dev/full")
    if fault == "folder":
        for file in (images / "crops").iterdir():
            file.unlink()
        (images / "crops").rmdir()
        (images / "crops").touch()
    capsys.readouterr()
    assert same(inputs(make(*CROPS)), expected)
    said = {
        "torn": f"{path} is damaged",
        "full": f"Cannot write {path}",
        "folder": f"Cannot write to {images}/crops",
    }
    assert said[fault] in capsys.readouterr().out


class Wrapper(DatasetWrapper):
    pass


def rewrap(trainer):
    trainer.test_loader.dataset.__class__ = Wrapper


def retransform(trainer):
    trainer.test_loader.dataset.transform = v2.Compose(
        [*trainer.test_loader.dataset.transform.transforms, v2.Identity()]
    )


@pytest.mark.parametrize(
    ("opts", "change"),
    [
        (("INPUT.TRANSFORMS", ("normalize", "instance_norm")), None),
        (("DATALOADER.TEST.SAMPLER", "RandomSampler"), None),
        (("DATALOADER.RETURN_IMG0", True), None),
        ((), rewrap),
        ((), retransform),
    ],
)
def test_other_images_are_not_kept(make, images, capsys, opts, change):
    trainer = make(*CROPS, *opts)
    if change:
        change(trainer)
    assert sum(map(len, inputs(trainer))) == 12
    assert "DATALOADER.TEST_CACHE is not for these test images" in capsys.readouterr().out
    assert not (images / "crops").exists()


def test_the_record_says_where_the_images_came_from(make, images, tmp_path):
    for out, test_from in ("first", "images"), ("second", "crops"):
        trainer = make(*CROPS, "OPTIM.MAX_EPOCH", 2, "OUTPUT_DIR", str(tmp_path / out))
        trainer.train()
        got = read(trainer)
        assert got["test_from"] == test_from
        assert got["images_per_second"]["test"] == pytest.approx(12 / got["test_seconds"])
