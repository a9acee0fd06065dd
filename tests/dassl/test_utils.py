import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dassl.metrics import compute_accuracy
from dassl.utils import (
    AverageMeter,
    Failure,
    MetricMeter,
    Registry,
    UsageError,
    atomic_write,
    collect_env_info,
    download_url,
    expand_user,
    listdir_nohidden,
    mkdir_if_missing,
    print_error,
    read_image,
    read_json,
    set_random_seed,
    setup_logger,
    write_json,
)
from dassl.utils.tools import mix_seed, seeded
from dassl.utils.torchtools import adjust_learning_rate, set_bn_to_eval


def test_registry_names_the_nearest():
    registry = Registry("TRAINER")

    @registry.register()
    class MaPLe:
        pass

    @registry.register()
    class CoOp:
        pass

    assert registry.get("MaPLe") is MaPLe
    with pytest.raises(UsageError) as caught:
        registry.get("maple")
    assert (
        str(caught.value) == 'Unknown trainer "maple": did you mean MaPLe? Available: CoOp, MaPLe'
    )
    assert caught.value.exit_code == 2
    with pytest.raises(KeyError):
        registry.register(MaPLe)


def test_meters_keep_tensors_and_do_not_overflow_in_half():
    meter = AverageMeter()
    for value in (60000.0, 20000.0):
        meter.update(torch.tensor(value, dtype=torch.float16))
    assert (meter.val, meter.avg) == (20000.0, 40000.0)
    metrics = MetricMeter()
    metrics.update({"loss": torch.tensor(1.5, requires_grad=True), "acc": 50})
    metrics.update({"loss": 0.5, "acc": torch.tensor(100.0)})
    assert str(metrics) == "loss 0.5000 (1.0000) acc 100.0000 (75.0000)"


def save(image, path, **options):
    image.save(path, **options)
    return str(path)


def test_read_image_modes(tmp_path):
    def pixel(image, name, **options):
        read = read_image(save(image, tmp_path / name, **options))
        assert read.mode == "RGB"
        return read.getpixel((0, 0))

    grey16 = Image.fromarray(np.array([[32768, 65535]], dtype=np.uint16))
    assert pixel(grey16, "16.png") == (128, 128, 128)  # Pillow's convert would clip it to 255
    assert pixel(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "cmyk.tif") == (255, 0, 0)
    assert pixel(Image.new("LA", (2, 2), (10, 255)), "la.png") == (10, 10, 10)
    assert pixel(Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "rgba.png") == (255, 255, 255)
    assert pixel(Image.new("1", (2, 2), 1), "1.png") == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 7, 8, 9])
    assert pixel(palette, "p.png") == (7, 8, 9)
    assert pixel(palette, "p.gif", transparency=1) == (255, 255, 255)
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert pixel(red, "t.png", transparency=(255, 0, 0)) == (255, 255, 255)
    assert pixel(red, "u.png", transparency=(0, 255, 0)) == (255, 0, 0)
    with pytest.raises(Failure, match="f.tif: its pixels are fractions"):
        pixel(Image.new("F", (2, 2), 0.9), "f.tif")


def test_read_image_turns_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    image = Image.new("RGB", (2, 3), "white")
    image.putpixel((0, 2), (0, 0, 0))  # bottom left
    read = read_image(save(image, tmp_path / "turned.png", exif=exif))
    assert read.size == (3, 2)
    assert read.getpixel((0, 0)) == (0, 0, 0)  # top left


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("form", ["png", "jpg", "tif"])
def test_read_image_turns_as_pillow_does(tmp_path, orientation, form):
    exif, rng = Image.Exif(), np.random.RandomState(0)
    exif[0x0112] = orientation
    image = Image.fromarray(rng.randint(0, 255, (5, 7, 3), np.uint8))
    path = save(image, tmp_path / f"a.{form}", exif=exif)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(read_image(path), expected)


def test_read_image_needs_no_notes_that_can_be_written(tmp_path):
    """Each byte of a photo's EXIF changed: Pillow's own turning raises TypeError, for one."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a photo", (72, 1)
    image = Image.new("RGB", (16, 8), "white")
    content = bytearray(Path(save(image, tmp_path / "a.jpg", exif=exif)).read_bytes())
    start, raised = content.index(b"Exif"), set()
    for at in range(start + 12, start + 12 + len(exif.tobytes()) - 14):
        for value in (0, 1, 2, 7, 255):
            changed = content.copy()
            changed[at] = value
            (tmp_path / "b.jpg").write_bytes(changed)
            try:
                with Image.open(tmp_path / "b.jpg") as opened:
                    ImageOps.exif_transpose(opened)
            except Exception as error:
                raised.add(type(error))
            assert sorted(read_image(str(tmp_path / "b.jpg")).size) == [8, 16]
    assert raised  # else this shows nothing


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text", "a pipe", "a folder"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_read_image_names_a_broken_file(tmp_path, damage, name):
    path = tmp_path / name
    Image.effect_noise((64, 64), 50).save(path)
    make = {"missing": str, "a pipe": os.mkfifo, "a folder": os.mkdir}.get(damage)
    if make:
        path.unlink()
        make(path)
    else:
        whole = path.read_bytes()
        path.write_bytes(
            {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"hello"}[damage]
        )
    with pytest.raises(Failure) as caught:
        read_image(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_read_image_names_a_broken_avif(tmp_path):
    """Of which Pillow raises RuntimeError."""
    path = tmp_path / "a.avif"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes().replace(b"av01", b"av00"))
    with pytest.raises(Failure, match=f"Cannot read the image {path}: "):
        read_image(str(path))


def test_home_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    assert [expand_user(p) for p in ("~", "~/x", "a/~", "./~x", "", Path("~/x"))] == [
        "/home/me", "/home/me/x", "a/~", "./~x", "", "/home/me/x",
    ]  # fmt: skip
    for path, told in (
        (
            "~nobody2/x",
            "~nobody2/x: there is no user nobody2; a folder that is called so is ./~nobody2",
        ),
        (f"{tmp_path}/{'é' * 128}", "… is no path: File name too long"),
        ("a\0b", "'a\\x00b' is no path: "),
    ):
        with pytest.raises(UsageError) as caught:
            expand_user(path)
        assert told in str(caught.value) and len(str(caught.value)) < 200
    assert expand_user(f"{tmp_path}/{'é' * 127}") == f"{tmp_path}/{'é' * 127}"


def test_failure_of_a_loader_worker_is_one_line_again():
    text = "Caught Failure in DataLoader worker process 0.\nTraceback:\n  x\n"
    text += "dassl.utils.errors.Failure: a: b\n"
    assert str(Failure(text)) == "a: b"


def test_json_is_written_atomically(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json({"x": [1]}, str(path))
    assert read_json(str(path)) == {"x": [1]}
    with pytest.raises(TypeError):
        write_json({"x": object()}, str(path))
    assert os.listdir(path.parent) == ["a.json"] and json.loads(path.read_text()) == {"x": [1]}
    path.write_text("{")
    for bad in (path, tmp_path / "none.json"):
        with pytest.raises(Failure, match=bad.name):
            read_json(str(bad))


def test_atomic_write_survives_ctrl_c(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(str(path)) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a"] and path.read_bytes() == b"old"


def test_json_that_is_nested_too_deep(tmp_path):
    (tmp_path / "a.json").write_text("[" * 99999)
    with pytest.raises(Failure, match="a.json is not valid JSON"):
        read_json(str(tmp_path / "a.json"))


def test_download_url(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    download_url((tmp_path / "a").as_uri(), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == b"content"
    for url in ((tmp_path / "nowhere").as_uri(), "no address", "http://127.0.0.1:9/x"):
        with pytest.raises(
            Failure, match=f"Cannot download {url}: .*. Put the file at .*/c"
        ) as caught:
            download_url(url, str(tmp_path / "c"))
        assert "\n" not in str(caught.value)
    with cut_off() as url, pytest.raises(Failure, match=f"Cannot download {url}: .*IncompleteRead"):
        download_url(url, str(tmp_path / "c"))
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@contextmanager
def cut_off() -> Iterator[str]:
    """The address of a file of which a server sends a part."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with listening.accept()[0] as asked:
                asked.recv(65536)
                asked.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n0123456789")

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        thread.join()


def test_rates_and_norms_by_hand():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    net.apply(set_bn_to_eval)
    assert net[0].training and not net[1].training
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    seen = []
    for more in ({"stepsize": 2}, {"linear_decay": True, "final_lr": 0.1, "max_epoch": 4}):
        for epoch in range(4):
            adjust_learning_rate(optimizer, 0.5, epoch, **more)
            seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.5, 0.4, 0.3, 0.2])


def test_folders(tmp_path):
    for name in ("b", ".hidden", "a"):
        (tmp_path / name).touch()
    assert listdir_nohidden(str(tmp_path), sort=True) == ["a", "b"]
    with pytest.raises(Failure, match="Cannot make the folder"):
        mkdir_if_missing(str(tmp_path / "a" / "under_a_file"))


def test_seeds():
    def draws():
        return torch.rand(2).tolist(), np.random.rand(), __import__("random").random()

    set_random_seed(3)
    first = draws()
    set_random_seed(3)
    with seeded(7):
        inside = draws()
    assert draws() == first
    with seeded(7):
        assert draws() == inside
    assert len({mix_seed(seed, epoch) for seed in range(20) for epoch in range(20)}) == 400


def test_log_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restores it in the end
    setup_logger(str(tmp_path))
    print("first")
    print_error("went wrong")
    setup_logger(str(tmp_path))  # a second run in the same folder
    print("second")
    first, second = sorted(path for path in tmp_path.iterdir())
    assert first.name == "log.txt" and second.name.startswith("log.txt-20")
    assert first.read_text() == "first\nwent wrong\n" and second.read_text() == "second\n"
    captured = capsys.readouterr()
    assert captured.out == "first\nsecond\n" and captured.err == "went wrong\n"


def test_log_in_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="Cannot make the folder"):
        setup_logger(str(tmp_path / "file" / "out"))


def test_accuracy():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    top1, top2 = compute_accuracy(scores, torch.tensor([1, 1, 0, 0]), topk=(1, 2))
    assert (top1.item(), top2.item()) == (50.0, 75.0)


def test_env_info():
    info = collect_env_info()
    assert f"PyTorch: {torch.__version__}" in info and "CUDA" not in info.replace(
        torch.__version__, ""
    )


def test_env_info_names_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", "Card {}".format)
    assert f"CUDA: {torch.version.cuda}\nGPU 0: Card 0\nGPU 1: Card 1" in collect_env_info()
