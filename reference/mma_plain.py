"""MMA written plainly: adapters beside the blocks of both towers, whose middle layer they share.

Parameters are a dict under the family's keys, N the block's number from 1, M the adapter's width:

    text_adapter.N.down.0.weight/bias      (M, W), (M,)       visual_adapter.N.down.0: (M, Wv)
    text_adapter.N.up.weight/bias          (W, M), (W,)       visual_adapter.N.up: (Wv, M)
    shared_adapter.N.0.weight/bias         (M, M), (M,)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import maple_plain
from .clip_plain import Adapt, PlainCLIP
from .maple_plain import as_leaves

SCALE = 0.001
CTX = "a photo of a"


def adapter(params: Mapping[str, Tensor], tower: str, scale: float) -> Adapt:
    """What is added to the outputs of the blocks of `tower` (text or visual)."""

    def adapt(block: int, h: Tensor) -> Tensor:
        number = block + 1
        if f"{tower}_adapter.{number}.up.weight" not in params:
            return torch.zeros_like(h)
        h = _linear(params, f"{tower}_adapter.{number}.down.0", h).clamp(min=0)  # ReLU
        h = _linear(params, f"shared_adapter.{number}.0", h).clamp(min=0)
        return scale * _linear(params, f"{tower}_adapter.{number}.up", h)

    return adapt


def _linear(params: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def text_features(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    scale: float = SCALE,
    ctx: str = CTX,
) -> Tensor:
    """(C, D), not normalised."""
    words = clip.embed(torch.tensor(maple_plain.tokenise(ctx)))
    built = [maple_plain.class_prompt(clip, {"ctx": words}, name) for name in classnames]
    embeddings = torch.stack([b.embeddings for b in built])  # (C, 77, W)
    eot = torch.tensor([b.eot for b in built])  # (C,)
    return clip.text_tower(embeddings, eot, adapt=adapter(params, "text", scale))


def logits(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    scale: float = SCALE,
    ctx: str = CTX,
) -> Tensor:
    """images (B, 3, H, H) -> (B, C)."""
    image = clip.vision_tower(images, adapt=adapter(params, "visual", scale))
    return clip.logits(image, text_features(clip, params, classnames, scale, ctx))


def loss(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    scale: float = SCALE,
    ctx: str = CTX,
) -> Tensor:
    """Cross-entropy, mean over the images. labels (B,)"""
    return functional.cross_entropy(logits(clip, params, classnames, images, scale, ctx), labels)


def gradients(
    loss: Tensor, params: Mapping[str, Tensor], scale: float = SCALE
) -> dict[str, Tensor | None]:
    """What the optimizer gets: d loss / d params, divided by scale.

    Backwards, the adapter's output passes on its gradient times 1 / scale and its input times
    scale. The two cancel for everything before the adapter, so nothing accumulates over the blocks.
    Between them, at the adapter's own parameters, the factor 1 / scale is left.
    """
    true = maple_plain.gradients(loss, params)
    return {key: None if g is None else g / scale for key, g in true.items()}


def random_params(
    clip: PlainCLIP, first: int = 2, last: int = 3, middle: int = 32, seed: int = 0
) -> dict[str, Tensor]:
    """Leaf tensors to test with: adapters in the blocks number `first` to `last`."""
    rng = torch.Generator().manual_seed(seed)
    widths = {
        "text": clip.token_embedding.weight.shape[1],
        "visual": clip.visual.class_embedding.shape[0],
    }
    made: dict[str, Tensor] = {}

    def linear(name: str, n_in: int, n_out: int) -> None:
        made[f"{name}.weight"] = torch.randn(n_out, n_in, generator=rng) * (2 / n_in) ** 0.5
        made[f"{name}.bias"] = torch.randn(n_out, generator=rng) * 0.1

    for number in range(first, last + 1):
        for tower, width in widths.items():
            linear(f"{tower}_adapter.{number}.down.0", width, middle)
            linear(f"{tower}_adapter.{number}.up", middle, width)
        linear(f"shared_adapter.{number}.0", middle, middle)
    return as_leaves(made, clip.dtype)
