"""The ResNets of OpenAI: open_clip's, called as VisionTransformer is."""

from collections.abc import Mapping
from typing import NoReturn

from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from dassl.utils.errors import UsageError

from .model import NOTHING

NEEDS_VIT = (
    "prompts or adapters in the image tower: this needs a ViT, the model has a ResNet; "
    "choose ViT-B/16, say"
)


class ResNet(ModifiedResNet):
    """CLIP's image tower as a ResNet with attention pooling. It takes no prompts."""

    @property
    def input_resolution(self) -> int:
        """R, the side of its images; VisionTransformer's name."""
        return self.image_size

    @property
    def transformer(self) -> NoReturn:
        """There are no blocks that a method could prompt. Raises: UsageError."""
        raise UsageError(NEEDS_VIT)

    def forward(
        self, image: Tensor, prompts: None = None, deep: Mapping = NOTHING, adapt: Mapping = NOTHING
    ) -> Tensor:
        """Image features, not normalised: (B, 3, R, R) -> (B, D).

        Raises: UsageError for prompts, deep prompts or adapters, which need a ViT.
        """
        if prompts is not None or deep or adapt:
            raise UsageError(NEEDS_VIT)
        return super().forward(image)
