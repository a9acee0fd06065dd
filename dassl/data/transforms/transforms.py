"""From a PIL image to the model's input, by the names in INPUT.TRANSFORMS."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, ToTensor, v2
from yacs.config import CfgNode

from dassl.utils import check_availability

Interpolation = InterpolationMode | int  # Pillow's number
INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


class InstanceNormalization:
    """Gives each channel of a (C, H, W) image mean 0 and standard deviation 1."""

    def __init__(self, eps: float = 1e-8):
        self.eps = eps

    def __call__(self, image: Tensor) -> Tensor:
        std, mean = torch.std_mean(image, dim=(1, 2), keepdim=True)
        return (image - mean) / (std + self.eps)


class Cutout:
    """Zeroes squares around random pixels of a (C, H, W) image."""

    def __init__(self, n_holes: int = 1, length: int = 16):
        self.n_holes = n_holes
        self.half = length // 2

    def __call__(self, image: Tensor) -> Tensor:
        image = image.clone()
        for _ in range(self.n_holes):
            y, x = (int(torch.randint(size, ())) for size in image.shape[1:])
            top, left = max(y - self.half, 0), max(x - self.half, 0)
            image[:, top : y + self.half, left : x + self.half] = 0
        return image


class GaussianNoise(v2.RandomApply):
    """Adds noise to a tensor, with probability p."""

    def __init__(self, mean: float = 0, std: float = 0.15, p: float = 0.5):
        super().__init__([v2.GaussianNoise(mean, std, clip=False)], p)


class Random2DTranslation(v2.RandomChoice):
    """Resizes to (height, width); with probability p to 9/8 of it, cropped anywhere."""

    def __init__(
        self, height: int, width: int, p: float = 0.5,
        interpolation: Interpolation = InterpolationMode.BILINEAR,
    ):  # fmt: skip
        larger = v2.Resize((round(height * 1.125), round(width * 1.125)), interpolation)
        moved = v2.Compose([larger, v2.RandomCrop((height, width))])
        super().__init__([moved, v2.Resize((height, width), interpolation)], p=[p, 1 - p])


# In the order in which they are applied. Each transform is built only where it is chosen: code
# written for Dassl may have a config without the others' keys.
_ON_PIL: dict[str, Callable[[CfgNode, InterpolationMode], Callable]] = {
    "random_translation": lambda c, how: Random2DTranslation(*c.SIZE, interpolation=how),
    "random_crop": lambda c, how: v2.RandomCrop(c.SIZE, padding=c.CROP_PADDING,
                                               pad_if_needed=True),
    "random_resized_crop": lambda c, how: v2.RandomResizedCrop(c.SIZE, c.RRCROP_SCALE,
                                                               interpolation=how),
    "random_flip": lambda c, how: v2.RandomHorizontalFlip(),
    "randaugment": lambda c, how: v2.RandAugment(c.RANDAUGMENT_N, c.RANDAUGMENT_M),
    "colorjitter": lambda c, how: v2.ColorJitter(c.COLORJITTER_B, c.COLORJITTER_C, c.COLORJITTER_S,
                                                 c.COLORJITTER_H),
    "randomgrayscale": lambda c, how: v2.RandomGrayscale(c.RGS_P),
    "gaussian_blur": lambda c, how: v2.RandomApply([v2.GaussianBlur(c.GB_K)], c.GB_P),
}  # fmt: skip
_ON_TENSOR: dict[str, Callable[[CfgNode], Callable]] = {
    "cutout": lambda c: Cutout(c.CUTOUT_N, c.CUTOUT_LEN),
    "normalize": lambda c: v2.Normalize(c.PIXEL_MEAN, c.PIXEL_STD),
    "gaussian_noise": lambda c: GaussianNoise(c.GN_MEAN, c.GN_STD),
    "instance_norm": lambda c: InstanceNormalization(),
}
AVAI_CHOICES = [*_ON_PIL, *_ON_TENSOR, "center_crop"]


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> Callable | None:
    """PIL image -> float tensor (3, *INPUT.SIZE). `choices` replaces cfg.INPUT.TRANSFORMS.

    For testing only "normalize" and "instance_norm" count, after resizing the shorter edge and a
    centre crop. Gives None with INPUT.NO_TRANSFORM; raises UsageError for an unknown name.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied (INPUT.NO_TRANSFORM)")
        return None
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES, "INPUT.INTERPOLATION")
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, AVAI_CHOICES, "transform")

    interpolation = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    if is_train:
        steps = [
            make(cfg.INPUT, interpolation) for name, make in _ON_PIL.items() if name in choices
        ]
        if not {"random_crop", "random_resized_crop"} & set(choices):
            steps.insert(0, v2.Resize(cfg.INPUT.SIZE, interpolation))
        wanted = set(choices)
    else:
        steps = [v2.Resize(max(cfg.INPUT.SIZE), interpolation), v2.CenterCrop(cfg.INPUT.SIZE)]
        wanted = set(choices) & {"normalize", "instance_norm"}
    # not v2.ToDtype: it multiplies by 1/255, which rounds otherwise
    steps.append(ToTensor())
    steps += [make(cfg.INPUT) for name, make in _ON_TENSOR.items() if name in wanted]
    if cfg.VERBOSE:
        print(f"Building transform_{'train' if is_train else 'test'}")
        for step in steps:
            print(f"+ {step}")
    return v2.Compose(steps)


def preprocessing_of(cfg: CfgNode) -> dict[str, Any]:
    """What `build_transform` does to a test image, in plain data, in this order.

    resize: pixels of the shorter edge; crop: [height, width] of the centre; interpolation: its
    name; mean, std: of the RGB channels, None where nothing is normalised; instance_norm: only
    where it is chosen.
    """
    given, chosen = cfg.INPUT, cfg.INPUT.TRANSFORMS
    normalized = "normalize" in chosen
    return {
        "resize": max(given.SIZE),
        "crop": list(given.SIZE),
        "interpolation": given.INTERPOLATION,
        "mean": list(given.PIXEL_MEAN) if normalized else None,
        "std": list(given.PIXEL_STD) if normalized else None,
    } | ({"instance_norm": True} if "instance_norm" in chosen else {})
