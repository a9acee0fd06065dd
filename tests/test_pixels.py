"""inference/pixels.py beside the transforms that a run's test applies, bit for bit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform, preprocessing_of
from dassl.utils import Failure, read_image
from inference.pixels import read_pixels

from .runs import REPO

# Shorter and longer, even and odd, equal to what is asked for, and extreme.
SIZES = [(1, 1), (2, 97), (31, 32), (33, 32), (32, 32), (64, 64), (65, 97), (251, 130), (224, 225)]
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]
CROPS = [(32, 32), (47, 47), (30, 51), (51, 30)]


def config(transforms=("normalize",), crop=(32, 32), how="bicubic"):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = crop, how
    cfg.INPUT.TRANSFORMS = list(transforms)
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.48145466, 0.4578, 0.408], [0.2686, 0.26, 0.2757]
    cfg.VERBOSE = False
    return cfg


def drawn(file: Path, size: tuple[int, int], mode: str = "RGB") -> str:
    """A file of noise with what the mode has: a palette, transparency, 16 bits."""
    rng, rows = np.random.default_rng(size), size[::-1]
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, rows, np.uint16))
    elif mode in ("CMYK", "RGBA"):
        image = Image.frombytes(mode, size, rng.bytes(4 * size[0] * size[1]))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*rows, 3), np.uint8)).convert(mode)
    file = file.with_suffix(".tif" if mode in ("CMYK", "YCbCr") else ".png")
    image.save(file)
    return str(file)


def both(file: str, cfg) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the engine's."""
    ours = read_pixels(file, preprocessing_of(cfg))
    return ours, build_transform(cfg, is_train=False)(read_image(file)).numpy()


def assert_same_bits(file: str, cfg) -> None:
    ours, theirs = both(file, cfg)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape == (3, *cfg.INPUT.SIZE)
    assert np.array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.mark.parametrize("how", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("crop", CROPS)
def test_sizes(crop, how, tmp_path):
    for size in SIZES:
        assert_same_bits(drawn(tmp_path / "x", size), config(crop=crop, how=how))
        assert_same_bits(drawn(tmp_path / "x", size[::-1]), config(crop=crop, how=how))


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, tmp_path):
    file = drawn(tmp_path / "x", (75, 50), mode)
    assert_same_bits(file, config())
    assert_same_bits(file, config(transforms=[]))


def test_an_upright_photograph(tmp_path):
    """A JPEG that lies on its side, as its EXIF says: the pixels are those of the upright one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(drawn(tmp_path / "x", (80, 50))) as image:
        image.save(tmp_path / "x.jpg", exif=exif)
    assert_same_bits(str(tmp_path / "x.jpg"), config())
    with Image.open(tmp_path / "x.jpg") as lying:
        lying.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    files = (tmp_path / "x.jpg", tmp_path / "upright.png")
    one, other = (read_pixels(str(f), preprocessing_of(config())) for f in files)
    assert np.array_equal(one, other)


def test_training_transforms_do_not_count(tmp_path):
    names = ["random_resized_crop", "random_flip", "normalize", "gaussian_noise"]
    assert_same_bits(drawn(tmp_path / "x", (70, 41)), config(names))


def test_instance_norm(tmp_path):
    file = drawn(tmp_path / "x", (70, 41))
    for names in (["instance_norm"], ["normalize", "instance_norm"]):
        ours, theirs = both(file, config(names))
        assert np.allclose(ours, theirs, atol=1e-5) and abs(ours.mean()) < 1e-5


def test_a_damaged_file(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(Failure, match=r"Cannot read the image .*x\.png"):
        read_pixels(str(tmp_path / "x.png"), preprocessing_of(config()))


def test_it_imports_no_torch(tmp_path):
    code = "import sys\nfrom inference.pixels import read_pixels\nassert read_pixels(sys.argv[1], "
    code += (
        f"{preprocessing_of(config())!r}).shape == (3, 32, 32)\nsys.exit('torch' in sys.modules)"
    )
    file = drawn(tmp_path / "x", (70, 41))
    assert subprocess.run([sys.executable, "-c", code, file], cwd=REPO).returncode == 0
