"""Zero-shot CLIP (Radford et al., 2021): hand-crafted prompts, nothing learned."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY, TrainerX

from .features import KeptFeatures
from .frozen_clip import (
    PRECISIONS,
    allow_tf32,
    autocast_of,
    check_clip,
    choose_precision,
    load_clip,
)
from .prompt_text import hand_crafted_features, zero_shot_template

SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(KeptFeatures, TrainerX):
    """One template per dataset."""

    frozen_image_tower = True
    class_rows = ()

    @classmethod
    def config_names(cls) -> tuple[str, ...]:
        return ()

    @property
    def classnames(self) -> list[str]:
        return self.dm.dataset.classnames

    def templates(self) -> tuple[str, ...]:
        return (zero_shot_template(self.cfg),)

    def build_data_loader(self) -> None:
        check_clip(self.cfg)
        super().build_data_loader()

    def build_model(self) -> None:
        self.prec = choose_precision("fp16", self.device, fixed=True)
        self.autocast = autocast_of(self.prec, self.device)
        allow_tf32(False)  # as for the other methods: the kept features are theirs too
        self.clip_model = load_clip(self.cfg, PRECISIONS[self.prec], self.device)
        templates = self.templates()
        self.text_features = hand_crafted_features(self.clip_model, self.classnames, templates)

    def frozen_clip(self) -> CLIP:
        return self.clip_model

    def about(self) -> dict[str, Any]:
        return {
            "template": zero_shot_template(self.cfg),
            "attributes": [],
            "precision": self.prec,
            "clip": self.clip_model.source,
        }

    def model_inference(self, image: Tensor) -> Tensor:
        """Images (B, 3, R, R), or kept features (B, D) -> logits (B, C)."""
        features = image if image.dim() == 2 else self.clip_model.encode_image(image)
        image_features = F.normalize(features.float(), dim=-1)
        return self.clip_model.logit_scale.exp() * image_features @ self.text_features.t()

    def train(self) -> None:
        """Nothing to train: test at once."""
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Nothing to load."""


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Seven templates that suit ImageNet, and the dataset's own: their mean feature."""

    frozen_image_tower = True

    def templates(self) -> tuple[str, ...]:
        return SEVEN if self.cfg.DATASET.NAME == "ImageNet" else (*SEVEN, *super().templates())
