from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant, classnames_file
from .readers import read_classnames


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """A folder's number is the place of its class in classnames.txt."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"

    def classes(self) -> dict[str, str]:
        names = read_classnames(classnames_file(self.folder))
        return {str(i): name for i, name in enumerate(names.values())}
