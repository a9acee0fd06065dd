"""Kept image features (DATALOADER.FEATURES): a test image is encoded once for many methods."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import clip
from clip.model import CLIP
from dassl.data.kept import Key, code_of
from dassl.data.kept_images import batches, images_key, kept_for, usual_steps
from dassl.engine.record import device_name
from dassl.utils import ranks


def says(method: object, what: str) -> bool:
    """Whether a method's class has `what = True` in its own body.

    A subclass may do what its parent does not, so nothing of this kind is inherited.
    """
    return vars(type(method)).get(what, False)


class KeptFeatures:
    """Lets a trainer around a CLIP be tested with kept features.

    Only if its class says `frozen_image_tower = True`: the loader's images go unchanged to
    CLIP.encode_image, and model_inference takes its features (B, D) in their place. A trainer sets
    `prec` and `autocast` (frozen_clip.py) and gives `frozen_clip`.
    """

    prec: str
    autocast: Callable[[], AbstractContextManager]

    def frozen_clip(self) -> CLIP:
        """The CLIP whose image tower encodes."""
        raise NotImplementedError

    def test_batches(self, loader: DataLoader, split: str) -> Iterator[dict]:
        """As usual, or with features (B, D) for images, which are read only if none are kept."""
        usual = super().test_batches(loader, split)  # reads nothing until it is asked for a batch
        key = self.features_key(loader)
        if key is None:
            yield from usual
            return

        @cache
        def encoded() -> list[Tensor]:
            with ranks.alone():  # who makes what all will read
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
        """All that the features' last bit may depend on; None where a test must have images."""
        frozen = says(self, "frozen_image_tower")
        steps = usual_steps(loader) if frozen and self.cfg.DATALOADER.FEATURES else None
        clip_model = self.frozen_clip()
        if steps is None or any(p.requires_grad for p in clip_model.visual.parameters()):
            return None
        key, state = images_key(loader, steps)
        libraries = (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
        products = [getattr(lib, kind, None) for lib in libraries for kind in ("matmul", "conv")]
        rounding = [getattr(product, "fp32_precision", None) for product in products]
        capability = torch.backends.cpu.get_cpu_capability()
        open_clip = sys.modules.get("open_clip")  # imported where the tower is its own
        key |= {
            "clip": clip_model.source["sha256"],
            "activation": clip_model.source.get("activation"),
            "precision": [self.prec, *rounding],
            "device": [device_name(self.device), capability, torch.version.cuda],
            "batch": loader.batch_size,  # products of another size may be other kernels
            "encoder": code_of(*sorted(Path(clip.__file__).parent.glob("*.py"))),
            "open_clip": getattr(open_clip, "__version__", None),
        }
        return key, state
