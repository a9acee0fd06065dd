"""Test images that runs share, and kept decoded (DATALOADER.TEST_CACHE)."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import PIL
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler, default_collate
from torchvision.transforms import ToTensor, v2

from dassl.utils import images, ranks
from dassl.utils.progress import bar_or_lines

from .data_manager import DatasetWrapper, Loader, build_data_loader
from .kept import Key, code_of, digest, kept
from .transforms import transforms

USUAL = [v2.Resize, v2.CenterCrop, ToTensor]  # and perhaps Normalize


def usual_steps(loader: DataLoader) -> list[Callable] | None:
    """A loader's transforms, if it gives the usual test images in order; else None."""
    if type(loader) is not Loader or type(loader.dataset) is not DatasetWrapper:
        return None
    data, transform = loader.dataset, loader.dataset.transform
    if data.is_train or data.cfg.DATALOADER.RETURN_IMG0:
        return None
    if type(loader.sampler) is not SequentialSampler:
        return None
    steps = list(transform.transforms) if type(transform) is v2.Compose else []
    return steps if [type(step) for step in steps] in (USUAL, [*USUAL, v2.Normalize]) else None


def images_key(loader: DataLoader, steps: Iterable[Callable]) -> tuple[Key, str]:
    """What the images follow from, and a digest that changes with their files."""
    root = f"{os.path.abspath(data_folder(loader))}/"
    paths = [os.path.abspath(item.impath) for item in loader.dataset.data_source]
    code = [transforms.__file__, images.__file__, *sorted(Path(__file__).parent.glob("*.py"))]
    key = {
        "images": digest([path.removeprefix(root) for path in paths]),
        "transforms": [repr(step) for step in steps],
        "versions": [str(v) for v in (torch.__version__, torchvision.__version__, PIL.__version__)],
        "code": code_of(*code),
    }
    return key, digest([_state(path) for path in paths])


def _state(path: str) -> tuple[int, ...] | None:
    """Changes with a file, even if its time is set back; None if it is missing."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def data_folder(loader: DataLoader) -> Path:
    """The absolute DATASET.ROOT."""
    return Path(loader.dataset.cfg.DATASET.ROOT).expanduser().absolute()


def kept_for(
    loader: DataLoader,
    folder: str,
    split: str,
    key: tuple[Key, str],
    make: Callable[[], Iterable[Tensor]],
    size: int = 0,
) -> tuple[Tensor | None, bool]:
    """`kept` in a file in `folder`, relative to the data folder; prints its size.

    key: as `images_key` gives it. The file's name follows from the first part alone, so with a
    changed image it takes the old one's place.
    """
    key, state = key
    name = f"{loader.dataset.cfg.DATASET.NAME}-{split}-{digest(key)[:16]}"
    path = data_folder(loader) / Path(folder).expanduser() / name
    with ranks.first_before_others():
        rows, found = kept(path, key | {"state": state}, make, size)
    if rows is not None:
        print(f"{'Found' if found else 'Kept'} {path} ({rows.nbytes / 1e6:,.1f} MB)")
    return rows, found


def batches(loader: DataLoader, rows: Tensor, finish: Callable[[Tensor], Tensor]) -> Iterator[dict]:
    """This process's of the loader's batches, with `finish` of kept rows (N, …) as images."""
    about = [
        {"label": x.label, "domain": x.domain, "impath": x.impath, "index": i}
        for i, x in enumerate(loader.dataset.data_source)
    ]
    for start in ranks.turns(range(0, len(about), loader.batch_size)):
        part = slice(start, start + loader.batch_size)
        yield {"img": finish(rows[part]), **default_collate(about[part])}


def kept_images(
    loader: DataLoader, split: str, device: torch.device
) -> tuple[Iterator[dict] | None, bool]:
    """The batches, on the device, from kept uint8 crops; whether these were there.

    None, and a line, if its images are not the usual ones or cannot be kept.
    """
    cfg, steps = loader.dataset.cfg, usual_steps(loader)
    if steps is None:
        line = f"DATALOADER.TEST_CACHE is not for these {split} images"
        print(f"{line}: not only resized, cropped and normalised")
        return None, False
    resize, crop, _, *normalize = steps
    key = images_key(loader, (resize, crop))

    def crops() -> Iterator[Tensor]:
        tfm = v2.Compose([resize, crop, v2.PILToTensor()])
        items, size = loader.dataset.data_source, loader.batch_size
        reader = build_data_loader(cfg, "SequentialSampler", items, size, tfm=tfm, is_train=False)
        for batch in bar_or_lines(reader, f"decoding {split}", len(reader)):
            yield batch["img"]

    height, width = cfg.INPUT.SIZE
    size = 3 * height * width * len(loader.dataset)
    rows, found = kept_for(loader, cfg.DATALOADER.TEST_CACHE, split, key, crops, size)
    if rows is None:
        return None, False
    finish = v2.Compose([to_float, *normalize])
    return batches(loader, rows, lambda pixels: finish(pixels.to(device))), found


def to_float(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1], bit for bit as ToTensor does it on a CPU."""
    # by a tensor: for a number a GPU multiplies by 1/255, which rounds otherwise
    return pixels.float().div_(torch.full((), 255.0, device=pixels.device))
