"""From a PIL image to the model's input, by the names a config lists in INPUT.TRANSFORMS."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, ToTensor, v2
from yacs.config import CfgNode

from dassl.utils import check_availability

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


class InstanceNormalization:
    """Gives each channel of a (C, H, W) image mean 0 and standard deviation 1."""

    def __call__(self, image: Tensor) -> Tensor:
        std, mean = torch.std_mean(image, dim=(1, 2), keepdim=True)
        return (image - mean) / (std + 1e-8)


class Cutout:
    """Zeroes squares around random pixels of a (C, H, W) image; at the border they are cut off."""

    def __init__(self, n_holes: int, length: int):
        self.n_holes = n_holes
        self.half = length // 2

    def __call__(self, image: Tensor) -> Tensor:
        image = image.clone()
        for _ in range(self.n_holes):
            y, x = (int(torch.randint(size, ())) for size in image.shape[1:])
            image[:, max(y - self.half, 0) : y + self.half, max(x - self.half, 0) : x + self.half] = 0
        return image


def _on_pil(cfg: CfgNode) -> dict[str, Callable]:
    """Augmentations of the PIL image, in the order in which they are applied."""
    c = cfg.INPUT
    height, width = c.SIZE
    interpolation = INTERPOLATION_MODES[c.INTERPOLATION]
    larger = (round(height * 1.125), round(width * 1.125))
    translate = v2.Compose([v2.Resize(larger, interpolation), v2.RandomCrop(c.SIZE)])
    return {
        "random_translation": v2.RandomChoice([translate, v2.Resize(c.SIZE, interpolation)]),
        "random_crop": v2.RandomCrop(c.SIZE, padding=c.CROP_PADDING),
        "random_resized_crop": v2.RandomResizedCrop(c.SIZE, scale=c.RRCROP_SCALE, interpolation=interpolation),
        "random_flip": v2.RandomHorizontalFlip(),
        "randaugment": v2.RandAugment(c.RANDAUGMENT_N, c.RANDAUGMENT_M),
        "colorjitter": v2.ColorJitter(c.COLORJITTER_B, c.COLORJITTER_C, c.COLORJITTER_S, c.COLORJITTER_H),
        "randomgrayscale": v2.RandomGrayscale(c.RGS_P),
        "gaussian_blur": v2.RandomApply([v2.GaussianBlur(c.GB_K)], c.GB_P),
    }


def _on_tensor(cfg: CfgNode) -> dict[str, Callable]:
    """The same for the tensor."""
    c = cfg.INPUT
    return {
        "cutout": Cutout(c.CUTOUT_N, c.CUTOUT_LEN),
        "normalize": v2.Normalize(c.PIXEL_MEAN, c.PIXEL_STD),
        "gaussian_noise": v2.RandomApply([v2.GaussianNoise(c.GN_MEAN, c.GN_STD, clip=False)], 0.5),
        "instance_norm": InstanceNormalization(),
    }


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> Callable | None:
    """PIL image -> float tensor (3, *INPUT.SIZE). `choices` replaces cfg.INPUT.TRANSFORMS.

    For testing only "normalize" and "instance_norm" count, after resizing the shorter edge and a centre crop.
    Gives None with INPUT.NO_TRANSFORM; raises UsageError for an unknown name.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied (INPUT.NO_TRANSFORM)")
        return None
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES, "INPUT.INTERPOLATION")
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    on_pil, on_tensor = _on_pil(cfg), _on_tensor(cfg)
    for choice in choices:
        check_availability(choice, [*on_pil, *on_tensor, "center_crop"], "transform")

    interpolation = INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]
    if is_train:
        steps = [transform for name, transform in on_pil.items() if name in choices]
        if not {"random_crop", "random_resized_crop"} & set(choices):
            steps.insert(0, v2.Resize(cfg.INPUT.SIZE, interpolation))
        wanted = set(choices)
    else:
        steps = [v2.Resize(max(cfg.INPUT.SIZE), interpolation), v2.CenterCrop(cfg.INPUT.SIZE)]
        wanted = set(choices) & {"normalize", "instance_norm"}
    # not v2.ToDtype: it multiplies by 1/255, whose rounding differs from upstream's division
    steps += [ToTensor()] + [transform for name, transform in on_tensor.items() if name in wanted]
    if cfg.VERBOSE:
        print(f"Building transform_{'train' if is_train else 'test'}")
        for step in steps:
            print(f"+ {step}")
    return v2.Compose(steps)
