"""From a dataset to batches."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor, v2
from yacs.config import CfgNode

from dassl.utils import UsageError, cpu_cores, ranks, seeded

from .cache import ImageCache
from .datasets import Datum, build_dataset
from .samplers import SeededSampler, build_sampler
from .transforms import INTERPOLATION_MODES, build_transform

IN_FLIGHT = 2**30  # bytes of batches that wait for the model
Transform = Callable | Sequence[Callable] | None


class DatasetWrapper(Dataset):
    """Reads and transforms Datums' images; those of training stay decoded (CACHE_MB).

    An item is a dict: img (a list of K tensors with DATALOADER.K_TRANSFORMS K > 1), label, domain,
    impath, index; img2, img3 … if `transform` is a list; img0, without augmentation, with
    DATALOADER.RETURN_IMG0.
    """

    def __init__(
        self, cfg: CfgNode, data_source: Sequence[Datum], transform: Transform = None,
        is_train: bool = False,
    ):  # fmt: skip
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.cache = ImageCache(cfg.DATALOADER.get("CACHE_MB", 0) * 2**20 if is_train else 0)
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        if self.k_tfm > 1 and transform is None:
            line = "DATALOADER.K_TRANSFORMS is above 1, but there is no transform"
            raise UsageError(f"{line}: turn off INPUT.NO_TRANSFORM")
        resize = v2.Resize(cfg.INPUT.SIZE, INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION])
        normalize = v2.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
        wanted = [normalize] if "normalize" in cfg.INPUT.TRANSFORMS else []
        self.to_tensor = v2.Compose([resize, ToTensor(), *wanted])

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """A SeededIndex gives the same random transforms in any process."""
        seed = getattr(idx, "seed", None)
        with nullcontext() if seed is None else seeded(seed):
            return self._read(int(idx))

    def _read(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        image = self.cache.read(item.impath)
        if self.transform is None:
            output["img"] = image
        else:
            several = isinstance(self.transform, (list, tuple))
            for i, transform in enumerate(self.transform if several else [self.transform], 1):
                output["img" if i == 1 else f"img{i}"] = self._augment(transform, image)
        if self.cfg.DATALOADER.RETURN_IMG0:
            output["img0"] = self.to_tensor(image)
        return output

    def _augment(self, transform: Callable, image: Image.Image) -> Tensor | list[Tensor]:
        images = [transform(image) for _ in range(self.k_tfm)]
        return images[0] if self.k_tfm == 1 else images


class Loader(DataLoader):
    """A DataLoader whose workers find the images decoded."""

    def __iter__(self) -> Iterator:
        if type(self.dataset) is DatasetWrapper:  # a subclass may read otherwise
            self.dataset.cache.fill(item.impath for item in self.dataset.data_source)
        # what the workers of another dataset draw follows from the epoch's seed, and moves nothing
        state = torch.get_rng_state()
        self.generator.manual_seed(int(torch.randint(2**62, ())))
        torch.set_rng_state(state)
        return super().__iter__()

    def close(self) -> None:
        """Ends the workers; the garbage collector can take 5 seconds for each."""
        self._iterator = None


def quiet_threads(worker: int) -> None:
    """A worker's threads say nothing of a run that was stopped; its own errors go to the run."""
    sys.excepthook = lambda *error: None


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] = (),
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transform = None,
    is_train: bool = True,
    dataset_wrapper: type[Dataset] | None = None,
) -> DataLoader:
    """A loader over Datums; in training without an incomplete last batch.

    Raises UsageError if there are no images, or nothing that makes tensors of them.
    """
    if not data_source:
        kind = "training" if is_train else "test"
        raise UsageError(f"{cfg.DATASET.NAME} has no {kind} images to load")
    if tfm is None and dataset_wrapper is None:
        line = "INPUT.NO_TRANSFORM True: there is no batch of images that are no tensors"
        raise UsageError(f"{line}; set it to False")
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins)
    wrapper = dataset_wrapper or DatasetWrapper
    workers = min(cfg.DATALOADER.NUM_WORKERS, cpu_cores())
    batch_bytes = 4 * 3 * cfg.INPUT.SIZE[0] * cfg.INPUT.SIZE[1] * batch_size
    return Loader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=SeededSampler(sampler) if is_train else sampler,
        num_workers=workers,
        prefetch_factor=max(1, min(4, IN_FLIGHT // (workers * batch_bytes))) if workers else None,
        worker_init_fn=quiet_threads,
        # forked workers share the decoded images without any /dev/shm
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
        # else another wrapper's random numbers would go on, which no resumed run can
        persistent_workers=workers > 0 and is_train and wrapper is DatasetWrapper,
        # else the loader draws from the model's generator, for each worker (Loader seeds it)
        generator=torch.Generator(),
    )


def in_turns(loader: DataLoader) -> DataLoader:
    """A loader of this process's batches (ranks.py), whole ones; of one process the same loader."""
    if ranks.count() == 1:
        return loader
    same = ("num_workers", "collate_fn", "pin_memory", "prefetch_factor", "multiprocessing_context")
    return DataLoader(
        loader.dataset,
        batch_sampler=ranks.turns(list(loader.batch_sampler)),
        generator=torch.Generator(),
        **{name: getattr(loader, name) for name in same},
    )


class NoData:
    """What a trainer finds in place of a DataManager where there are only names of classes."""

    train_loader_x = train_loader_u = val_loader = test_loader = None
    num_source_domains = 0

    def __init__(self, classnames: Sequence[str]):
        self.num_classes = len(classnames)
        self.lab2cname = dict(enumerate(classnames))
        self.dataset = SimpleNamespace(classnames=list(classnames), lab2cname=self.lab2cname)


class DataManager:
    """A dataset and its loaders; train_loader_u and val_loader may be None."""

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transform = None,
        custom_tfm_test: Transform = None,
        dataset_wrapper: type[Dataset] | None = None,
    ):
        # first the transforms: a wrong name is refused before the data are read
        tfm_train, tfm_test = custom_tfm_train, custom_tfm_test
        if tfm_train is None:
            tfm_train = build_transform(cfg, is_train=True)
        if tfm_test is None:
            tfm_test = build_transform(cfg, is_train=False)
        self.dataset = dataset = build_dataset(cfg)
        self.num_classes = dataset.num_classes
        self.num_source_domains = len(cfg.DATASET.get("SOURCE_DOMAINS", ()))
        self.lab2cname = dataset.lab2cname

        def loader(items: Sequence[Datum], c: CfgNode, is_train: bool = False) -> DataLoader:
            return build_data_loader(
                cfg, c.SAMPLER, items, c.BATCH_SIZE,
                n_domain=c.get("N_DOMAIN", 0), n_ins=c.get("N_INS", 2),
                tfm=tfm_train if is_train else tfm_test, is_train=is_train,
                dataset_wrapper=dataset_wrapper,
            )  # fmt: skip

        c = cfg.DATALOADER
        own_u = "TRAIN_U" in c and not c.TRAIN_U.SAME_AS_X  # SkipTuning's config has none
        c_u = c.TRAIN_U if own_u else c.TRAIN_X
        self.train_loader_x = loader(dataset.train_x, c.TRAIN_X, is_train=True)
        self.train_loader_u = (
            loader(dataset.train_u, c_u, is_train=True) if dataset.train_u else None
        )
        self.val_loader = loader(dataset.val, c.TEST) if dataset.val else None
        self.test_loader = loader(dataset.test, c.TEST)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @cached_property
    def train_images(self) -> str:
        """The SHA-256 of which images are trained on and as what, wherever their folder is."""
        data = self.dataset
        items = sorted((item.impath, item.label) for item in (*data.train_x, *(data.train_u or ())))
        ends = [path for path, _ in items[:1] + items[-1:]]
        top = os.path.dirname(os.path.commonprefix(ends))
        lines = "\n".join(f"{path.removeprefix(top)} {label}" for path, label in items)
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Prints the numbers of classes and images."""
        rows = [["Dataset", cfg.DATASET.NAME]]
        for name in ("Source", "Target"):
            if domains := cfg.DATASET.get(f"{name.upper()}_DOMAINS"):
                rows.append([name, domains])
        rows += [["# classes", f"{self.num_classes:,}"]]
        for split in ("train_x", "train_u", "val", "test"):
            if items := getattr(self.dataset, split):
                rows.append([f"# {split}", f"{len(items):,}"])
        print(tabulate(rows))
