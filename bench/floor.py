"""The floor: the arithmetic that must be done, at the machine's rate of matrix products."""

from collections.abc import Sequence
from functools import partial

import torch

import trainers.frozen_clip
from clip.frozen import linear
from reference.weights import ARCHS, Arch

from .cases import Case
from .plain import Plain
from .timing import seconds_of

Count = tuple[float, float]  # FLOPs of matrix products with weights, FLOPs of attention


def text_count(prefix: int, suffixes: Sequence[int], arch: Arch) -> Count:
    """FLOPs of classes behind a shared prefix, forward.

    Of the last block only the EOTs' outputs are needed, and every token's keys and values.
    """
    width, blocks = arch.text_width, arch.text_layers - 1
    tokens = prefix + sum(suffixes)
    # Attention is causal: a token sees itself and those before it.
    pairs = prefix * (prefix + 1) / 2 + sum(n * prefix + n * (n + 1) / 2 for n in suffixes)
    pairs_of_eots = sum(prefix + n for n in suffixes)
    products = width**2 * (24 * blocks * tokens + 4 * tokens + 20 * len(suffixes))
    return products, 4 * width * (blocks * pairs + pairs_of_eots)


def image_count(prompts: int, arch: Arch) -> Count:
    """FLOPs of an image, forward; of the last block only what the class token needs."""
    width, blocks = arch.vision_width, arch.vision_layers - 1
    patches = (arch.image_size // arch.patch_size) ** 2
    tokens = patches + 1 + prompts
    patching = 6 * patches * arch.patch_size**2 * width
    products = width**2 * (24 * blocks * tokens + 4 * tokens + 20) + patching
    return products, 4 * width * (blocks * tokens**2 + tokens)


def floor_flops(case: Case, plain: Plain) -> float:
    """FLOPs that must be done: both towers forward, and in training backward to the prompts.

    The weights are frozen, so backward a product with them costs as much as forward, and
    attention twice as much. CoCoOp's image tower has no backward pass and its text tower has
    every image's prefix. In evaluation the text features are there.
    """
    arch = ARCHS[case.arch]
    cocoop = case.method == "CoCoOp"
    texts = case.batch if cocoop else 1
    text = [n * texts for n in text_count(plain.prefix, plain.suffixes, arch)]
    prompts = 0 if cocoop else len(plain.prompts["ctx"])
    image = [n * case.batch for n in image_count(prompts, arch)]
    if case.evaluates:
        return sum(image)
    trained = 2 * text[0] + 3 * text[1]
    return trained + (sum(image) if cocoop else 2 * image[0] + 3 * image[1])


def plain_flops(case: Case) -> float:
    """About what the plain path does: for the time left and the number of rounds."""
    arch = ARCHS[case.arch]
    texts, images = counts(case)
    text = 77 * texts * case.classes * 24 * arch.text_width**2 * arch.text_layers
    forward = text + images * sum(image_count(prompts=2, arch=arch))
    return forward if case.evaluates else 2 * forward


def counts(case: Case) -> tuple[int, int]:
    """How often the plain path encodes all classes, and how many images."""
    images, draws = case.batch, case.draws
    own = images * max(1, draws)
    return {
        "CoCoOp": (images, images),
        "BayesianPrompt": (own, images),
        "unconditional BayesianPrompt": (draws, images),
        "MMRL": (1, 2 * images),
        "VaMP": (own, 2 * images),
        "VaMP_MMRL": (own, 2 * images),
        "EMPL": (2 * own, images),
        "ReBaPL_MaPLe": (draws, draws * images) if case.evaluates else (1, images + draws),
    }.get(case.method, (1, images))


def matrix_rate(device: str, prec: str, quick: bool) -> float:
    """FLOP/s of the best of a few products of the towers' shapes."""
    dtype = torch.float16 if prec == "amp" else trainers.frozen_clip.PRECISIONS[prec]
    rows, repeats, count = (512, 2, 2) if quick else (4096, 5, 5)
    if device == "cuda" and not quick:
        count = 100
    best = 0.0
    for width, hidden in ((512, 2048), (2048, 512), (768, 3072), (3072, 768)):
        x = torch.randn(rows, width, device=device, dtype=dtype)
        weight = torch.randn(hidden, width, device=device, dtype=dtype)
        product = partial(linear, x, weight, weight[:, 0].clone())  # as the towers do it
        seconds = min(seconds_of(product, device, count) for _ in range(repeats))
        best = max(best, 2 * rows * width * hidden / seconds)
    return best
