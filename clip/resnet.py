"""The ResNets among OpenAI's image towers: open_clip's, under OpenAI's attributes and with
VisionTransformer's call."""

from collections.abc import Mapping
from typing import NoReturn

from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from dassl.utils.errors import UsageError

NEEDS_VIT = "prompts or adapters in the image tower: this needs a ViT, the model has a ResNet; choose ViT-B/16, say"


class ResNet(ModifiedResNet):
    """CLIP's image tower as a ResNet with attention pooling. It takes no prompts."""

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        output_dim: int,
        heads: int,
        image_size: int,
        width: int,
    ):
        super().__init__(layers, output_dim, heads, image_size, width)
        self.input_resolution = image_size

    @property
    def transformer(self) -> NoReturn:
        """A method that looks for the blocks of a ViT is told so. Raises: UsageError."""
        raise UsageError(NEEDS_VIT)

    def forward(
        self,
        image: Tensor,
        prompts: None = None,
        deep: Mapping | None = None,
        adapt: Mapping | None = None,
    ) -> Tensor:
        """Image features, not normalised: (B, 3, R, R) -> (B, D).

        Raises: UsageError for prompts, deep prompts or adapters, which need a ViT.
        """
        if prompts is not None or deep or adapt:
            raise UsageError(NEEDS_VIT)
        return super().forward(image)
