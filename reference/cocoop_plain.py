"""CoCoOp written plainly on PlainCLIP: for each image by itself every class's whole sentence.

Prompt parameters are CoOp's, and the meta-net's meta_net.linear1.{weight,bias} (H, D), (H,) and
meta_net.linear2.{weight,bias} (W, H), (W,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import coop_plain
from .clip_plain import PlainCLIP


def bias(prompts: Mapping[str, Tensor], image_feature: Tensor) -> Tensor:
    """pi(x), the meta-net's output for an image: (D,), of unit length -> (W,)."""
    hidden = prompts["meta_net.linear1.weight"] @ image_feature + prompts["meta_net.linear1.bias"]
    hidden = hidden.clamp(min=0)  # ReLU
    return prompts["meta_net.linear2.weight"] @ hidden + prompts["meta_net.linear2.bias"]


def logits(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    attributes: Sequence[str] = (),
) -> Tensor:
    """images (B, 3, H, H) -> (B, C).

    Each image has its own ctx, v_m + pi(x); the attributes' vectors are the same for all.
    """
    rows = []
    for image in images:
        feature = clip.encode_image(image[None])[0]
        own = {**prompts, "ctx": prompts["ctx"] + bias(prompts, feature / feature.norm())}
        text = coop_plain.text_features(clip, own, classnames, attributes=attributes)
        rows.append(clip.logits(feature[None], text)[0])
    return torch.stack(rows)


def loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    attributes: Sequence[str] = (),
) -> Tensor:
    """Cross-entropy, mean over the images. labels (B,)"""
    return functional.cross_entropy(logits(clip, prompts, classnames, images, attributes), labels)


def random_meta_net(clip: PlainCLIP, seed: int = 0) -> dict[str, Tensor]:
    """Parameters to test with: the bias is of the ctx's size (0.02), and differs between images."""
    rng = torch.Generator().manual_seed(seed)
    width, embed_dim = clip.token_embedding.weight.shape[1], clip.text_projection.shape[1]
    shapes = {"linear1": (embed_dim // 16, embed_dim), "linear2": (width, embed_dim // 16)}
    made = {}
    for name, (n_out, n_in) in shapes.items():
        made[f"meta_net.{name}.weight"] = torch.randn(n_out, n_in, generator=rng)
        made[f"meta_net.{name}.bias"] = torch.randn(n_out, generator=rng)
    made["meta_net.linear2.weight"] *= 0.02
    made["meta_net.linear2.bias"] *= 0.02
    return {key: value.to(clip.dtype).requires_grad_() for key, value in made.items()}
