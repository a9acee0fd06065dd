"""Kept image features (DATALOADER.FEATURES): a test image is encoded once for all that leave the
image tower alone."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clip import model
from clip.model import CLIP
from dassl.data.kept import Key, code_of
from dassl.data.kept_images import batches, images_key, kept_for, usual_steps
from dassl.engine.record import device_name


class KeptFeatures:
    """For a trainer around a CLIP: tests with kept features where the method leaves the image tower
    alone.

    A class says so with `frozen_image_tower = True` in its own body: the loader's images go
    unchanged to CLIP.encode_image, and model_inference takes its features, (B, D), in their place.
    A subclass may prompt the tower, so it does not inherit this. A trainer sets `prec`.
    """

    prec: str

    def frozen_clip(self) -> CLIP:
        raise NotImplementedError

    def autocast(self):
        return (
            torch.autocast(self.device.type, torch.float16) if self.prec == "amp" else nullcontext()
        )

    def test_batches(self, loader: DataLoader, split: str) -> Iterator[dict]:
        """As usual, or with features (B, D) for images; only when there are none yet are images
        read."""
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

    def features_key(self, loader: DataLoader) -> tuple[Key, str] | None:
        """What the features' last bit may depend on, for `kept_for`; None where a test must have
        images."""
        frozen = vars(type(self)).get("frozen_image_tower", False)
        steps = usual_steps(loader) if frozen and self.cfg.DATALOADER.FEATURES else None
        if steps is None or any(p.requires_grad for p in self.frozen_clip().visual.parameters()):
            return None
        key, state = images_key(loader, steps)
        backends = (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
        products = [
            getattr(backend, name, None) for backend in backends for name in ("matmul", "conv")
        ]
        key |= {
            "clip": self.frozen_clip().source["sha256"],
            "precision": [
                self.prec,
                *(getattr(product, "fp32_precision", None) for product in products),
            ],
            "device": [
                device_name(self.device),
                torch.backends.cpu.get_cpu_capability(),
                torch.version.cuda,
            ],
            "batch": loader.batch_size,  # products of another size may be other kernels
            "encoder": code_of(*sorted(Path(model.__file__).parent.glob("*.py"))),
            "open_clip": getattr(
                sys.modules.get("open_clip"), "__version__", None
            ),  # imported where it has the tower
        }
        return key, state
