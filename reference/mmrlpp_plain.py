"""MMRL++ written plainly: MMRL's tokens made with low-rank matrices, mixed into the older ones.

Parameters are a dict under the family's keys, n counting the listed blocks from 0:

    representation_learner.compound_rep_tokens                  R, (K, d)
    representation_learner.srra_r2vproj.weight                  (Wv, d), of all blocks
    representation_learner.srra_r2vproj.srra.n.A/B/bias         (Wv, r), (r, d), (Wv,)
    representation_learner.srra_r2tproj…                        the same for the text's width
    image_encoder.A/B                                           (Wv, q), (q, D)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from . import mmrl_plain
from .clip_plain import PlainCLIP
from .maple_plain import as_leaves
from .mmrl_plain import TEMPLATE, Features, R

SHARED = "representation_learner.srra_r2{}proj.weight"
OWN = "representation_learner.srra_r2{}proj.srra.{}.{}"


def all_tokens(params: Mapping[str, Tensor], tower: str, layers: Sequence[int]) -> list[Tensor]:
    """The (K, W or Wv) tokens of each listed block; tower is t or v."""
    made = []
    for n in range(len(layers)):
        a, b, bias = (params[OWN.format(tower, n, part)] for part in ("A", "B", "bias"))
        r, shared = params[R], params[SHARED.format(tower)]
        made.append(r @ shared.T + (r @ b.T) @ a.T + bias)
    return made


def features(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    layers: Sequence[int],
    beta: float = 0.9,
) -> Features:
    tokens = all_tokens(params, "t", layers)
    text = mmrl_plain.text_features(clip, tokens, classnames, layers, TEMPLATE, beta)
    tokens = all_tokens(params, "v", layers)
    projection = clip.visual.proj + params["image_encoder.A"] @ params["image_encoder.B"]
    image = mmrl_plain.image_features(clip, tokens, projection, images, layers, beta)
    return Features(text, *image)


def loss(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    layers: Sequence[int],
    beta: float = 0.9,
    **settings: float,
) -> Tensor:
    """MMRL's loss of these features."""
    found = features(clip, params, classnames, images, layers, beta)
    return mmrl_plain.loss_of(clip, found, classnames, images, labels, **settings)


def random_params(
    clip: PlainCLIP, layers: Sequence[int], k: int = 3, dim: int = 24, seed: int = 0
) -> dict[str, Tensor]:
    """Leaf tensors to test with, large enough to matter."""
    rng = torch.Generator().manual_seed(seed)
    width, (vision, out) = clip.token_embedding.weight.shape[1], clip.visual.proj.shape
    made = {R: torch.randn(k, dim, generator=rng)}

    def matrix(name: str, rows: int, columns: int) -> None:
        made[name] = torch.randn(rows, columns, generator=rng) * columns**-0.5

    for tower, rows in (("v", vision), ("t", width)):
        matrix(SHARED.format(tower), rows, dim)
        for n in range(len(layers)):
            matrix(OWN.format(tower, n, "A"), rows, 4)
            matrix(OWN.format(tower, n, "B"), 4, dim)
            made[OWN.format(tower, n, "bias")] = torch.randn(rows, generator=rng) * 0.1
    matrix("image_encoder.A", vision, 64)
    matrix("image_encoder.B", 64, out)
    return as_leaves(made, clip.dtype)
