"""Kept image features (DATALOADER.FEATURES): a test image is encoded once for all that leave the image tower alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clip import model
from clip.model import CLIP
from dassl.data.kept import Key, code_of
from dassl.data.kept_images import batches, images_key, kept_for, usual_steps
from dassl.engine import TrainerX
from dassl.engine.record import device_name


def takes_features(function: Callable) -> Callable:
    """Says of a function that where it takes images it may be given the frozen tower's features of them, (B, D).

    Kept features are used where all functions from model_inference down to the tower say so. An override says nothing
    unless it is marked too, so a subclass that prompts the image tower gets images.
    """
    function.takes_features = True
    return function


def versions(tower: nn.Module) -> list[tuple[int, int]]:
    """Of its weights and buffers: another list once one has been written to, replaced or added."""
    return [(t.data_ptr(), t._version) for t in tower.state_dict().values()]


class FrozenTowerTrainer(TrainerX):
    """A trainer around a CLIP, which tests with kept features where it may. A subclass sets `prec`."""

    prec: str

    def frozen_clip(self) -> CLIP:
        raise NotImplementedError

    def way_of_images(self) -> list[tuple[object, str]]:
        """The methods that a test's images go through, each an object and a name."""
        return [(self, "model_inference")]

    def autocast(self):
        return torch.autocast(self.device.type, torch.float16) if self.prec == "amp" else nullcontext()

    def test_batches(self, loader: DataLoader, split: str) -> Iterator[dict]:
        """As usual, or with features (B, D) for images; only when there are none yet are images read."""
        usual = super().test_batches(loader, split)  # reads nothing until it is asked for a batch
        key = self.features_key(loader)
        if key is None:
            yield from usual
            return

        @cache
        def encoded() -> list[Tensor]:
            return [torch.cat([self.encode(batch) for batch in usual]).cpu()]

        features, found = kept_for(loader, self.cfg.DATALOADER.FEATURES, split, key, encoded)
        if found:
            self.recorder.test_from = "features"
        if features is None:
            [features] = encoded()
        yield from batches(loader, features, lambda rows: rows.to(self.device, copy=True))

    def encode(self, batch: dict) -> Tensor:
        """(B, D), as the tower gives them."""
        image, _ = self.parse_batch_test(batch)
        with self.autocast():
            return self.frozen_clip().encode_image(image)

    def leaves_tower_alone(self) -> bool:
        """Whether all that images go through takes features too, and the image tower is still the CLIP file's."""
        ours, base = type(self), FrozenTowerTrainer
        if ours.parse_batch_test is not base.parse_batch_test or ours.autocast is not base.autocast:
            return False
        way = (getattr(owner, name, None) for owner, name in self.way_of_images())
        if not all(getattr(method, "takes_features", False) for method in way):
            return False
        tower, loaded = self.frozen_clip().visual, getattr(self.frozen_clip(), "as_loaded", None)
        return versions(tower) == loaded and not any(p.requires_grad for p in tower.parameters())

    def features_key(self, loader: DataLoader) -> tuple[Key, str] | None:
        """What the features' last bit may depend on, for `kept_for`; None where a test must have images."""
        steps = usual_steps(loader) if self.cfg.DATALOADER.FEATURES else None
        if steps is None or not self.leaves_tower_alone():
            return None
        key, state = images_key(loader, steps)
        backends = (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
        products = [getattr(backend, name, None) for backend in backends for name in ("matmul", "conv")]
        key |= {
            "clip": self.frozen_clip().source["sha256"],
            "precision": [self.prec, *(getattr(product, "fp32_precision", None) for product in products)],
            "device": [device_name(self.device), torch.backends.cpu.get_cpu_capability(), torch.version.cuda],
            "batch": loader.batch_size,  # products of another size may be other kernels
            "encoder": code_of(*sorted(Path(model.__file__).parent.glob("*.py"))),
            "open_clip": getattr(sys.modules.get("open_clip"), "__version__", None),  # imported where it has the tower
        }
        return key, state
