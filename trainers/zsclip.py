"""Zero-shot CLIP (Radford et al., 2021): hand-crafted prompts, nothing learned."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import tokenize
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils.errors import UsageError

from .base import PRECISIONS, choose_precision, load_clip
from .prompt_text import spoken, zero_shot_template


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(TrainerX):
    """One template per dataset."""

    def templates(self) -> list[str]:
        return [zero_shot_template(self.cfg)]

    def build_model(self) -> None:
        self.clip_model = load_clip(self.cfg, PRECISIONS[choose_precision("fp16", self.device)], self.device)
        self.text_features = F.normalize(sum(map(self.encode, self.templates())), dim=-1)

    @torch.no_grad()
    def encode(self, template: str) -> Tensor:
        """(C, D) text features of all classes under one template, unit length, float32."""
        names = [spoken(name) for name in self.dm.dataset.classnames]
        try:
            tokens = tokenize([template.format(name) for name in names]).to(self.device)
        except RuntimeError as e:
            raise UsageError(f"{e}: shorten the class name") from e
        return F.normalize(self.clip_model.encode_text(tokens).float(), dim=-1)

    def model_inference(self, image: Tensor) -> Tensor:
        image_features = F.normalize(self.clip_model.encode_image(image).float(), dim=-1)
        return self.clip_model.logit_scale.exp() * image_features @ self.text_features.t()

    def train(self) -> None:
        """Nothing to train: test at once."""
        self.test()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Nothing to load."""
