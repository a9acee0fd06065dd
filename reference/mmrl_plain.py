"""MMRL written plainly: every class and image whole, the tokens put behind SOS and behind CLS.

Parameters are a dict under the family's keys, n counting the listed blocks from 0:

    representation_learner.compound_rep_tokens                          R, (K, d)
    representation_learner.compound_rep_tokens_r2vproj.n.weight/bias    (Wv, d), (Wv,)
    representation_learner.compound_rep_tokens_r2tproj.n.weight/bias    (W, d), (W,)
    image_encoder.proj_rep                                              (Wv, D)

`layers` are the listed blocks' numbers, from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .clip_plain import PlainCLIP
from .maple_plain import EOT, PAD, SOS, as_leaves, tokenise

R = "representation_learner.compound_rep_tokens"
PROJECTION = "representation_learner.compound_rep_tokens_r2{}proj.{}"
TEMPLATE = "a photo of a {}."


def all_tokens(params: Mapping[str, Tensor], tower: str, layers: Sequence[int]) -> list[Tensor]:
    """The (K, W or Wv) tokens of each listed block; tower is t or v."""
    names = [PROJECTION.format(tower, n) for n in range(len(layers))]
    return [params[R] @ params[f"{n}.weight"].T + params[f"{n}.bias"] for n in names]


def sentence(classname: str, template: str) -> list[int]:
    """SOS, the template with the class's name, EOT."""
    return [SOS, *tokenise(template.replace("{}", classname.replace("_", " "))), EOT]


def insert(
    x: Tensor, block: int, layers: Sequence[int], tokens: Sequence[Tensor], beta: float
) -> Tensor:
    """The input (B, L, W) of a block, from 1, with its tokens behind the first position.

    At the first listed block they are new; at a later one they take the place of the older ones,
    of which they keep the part 1 − beta.
    """
    if block not in layers:
        return x
    n = list(layers).index(block)
    new, k = tokens[n].to(x.dtype).expand(len(x), -1, -1), len(tokens[n])
    if n == 0:
        return torch.cat([x[:, :1], new, x[:, 1:]], dim=1)
    mixed = beta * new + (1 - beta) * x[:, 1 : 1 + k]
    return torch.cat([x[:, :1], mixed, x[:, 1 + k :]], dim=1)


def text_states(
    clip: PlainCLIP,
    tokens: Sequence[Tensor],
    classnames: Sequence[str],
    layers: Sequence[int],
    template: str = TEMPLATE,
    beta: float = 1.0,
) -> list[Tensor]:
    """What comes out of each block, (C, 77 or 77 + K, W)."""
    sentences = [sentence(name, template) for name in classnames]
    ids = torch.tensor([ids + [PAD] * (77 - len(ids)) for ids in sentences])
    x = clip.embed(ids) + clip.positional_embedding
    states = []
    for number, block in enumerate(clip.transformer.resblocks, start=1):
        x = insert(x, number, layers, tokens, beta)
        length = x.shape[1]
        mask = torch.full((length, length), float("-inf"), dtype=clip.dtype).triu(1)
        x = block(x, mask)
        states.append(x)
    return states


def text_features(
    clip: PlainCLIP,
    tokens: Sequence[Tensor],
    classnames: Sequence[str],
    layers: Sequence[int],
    template: str = TEMPLATE,
    beta: float = 1.0,
) -> Tensor:
    """(C, D), not normalised, with the text tower's tokens."""
    last = text_states(clip, tokens, classnames, layers, template, beta)[-1]
    eots = [len(sentence(name, template)) - 1 + len(tokens[0]) for name in classnames]
    states = torch.stack([state[eot] for state, eot in zip(last, eots, strict=True)])
    return clip.ln_final(states) @ clip.text_projection


def image_states(
    clip: PlainCLIP,
    tokens: Sequence[Tensor],
    images: Tensor,
    layers: Sequence[int],
    beta: float = 1.0,
) -> list[Tensor]:
    """What comes out of each block for images (B, 3, H, H): CLS, tokens, patches, (B, L, Wv)."""
    v = clip.visual
    patches = v.conv1(images.to(clip.dtype)).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(images), 1, -1), patches], dim=1)
    x = v.ln_pre(x + v.positional_embedding)
    states = []
    for number, block in enumerate(v.transformer.resblocks, start=1):
        x = block(insert(x, number, layers, tokens, beta), None)
        states.append(x)
    return states


def image_features(
    clip: PlainCLIP,
    tokens: Sequence[Tensor],
    projection: Tensor,
    images: Tensor,
    layers: Sequence[int],
    beta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(B, D) of the class token and of the representation tokens, not normalised.

    tokens: the image tower's. projection: (Wv, D), of the representation tokens.
    """
    v, k = clip.visual, len(tokens[0])
    last = image_states(clip, tokens, images, layers, beta)[-1]
    mean = sum(v.ln_post(last[:, 1 + i]) for i in range(k)) / k
    return v.ln_post(last[:, 0]) @ v.proj, mean @ projection


class Features(NamedTuple):
    """What logits and loss are made of, not normalised."""

    text: Tensor  # (C, D)
    of_class: Tensor  # (B, D)
    of_rep: Tensor  # (B, D)


def features(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    layers: Sequence[int],
    template: str = TEMPLATE,
) -> Features:
    text = text_features(clip, all_tokens(params, "t", layers), classnames, layers, template)
    tokens, projection = all_tokens(params, "v", layers), params["image_encoder.proj_rep"]
    return Features(text, *image_features(clip, tokens, projection, images, layers))


def teacher_features(
    clip: PlainCLIP, classnames: Sequence[str], template: str = TEMPLATE
) -> Tensor:
    """(C, D), unit length: CLIP's own."""
    sentences = [sentence(name, template) for name in classnames]
    return _unit(clip.encode_text(torch.tensor([x + [PAD] * (77 - len(x)) for x in sentences])))


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def both_logits(clip: PlainCLIP, found: Features) -> tuple[Tensor, Tensor]:
    """(B, C) of the class token and of the representation tokens."""
    return clip.logits(found.of_class, found.text), clip.logits(found.of_rep, found.text)


def loss_of(
    clip: PlainCLIP,
    found: Features,
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    alpha: float = 0.7,
    reg_weight: float = 1.0,
    template: str = TEMPLATE,
    teacher: Tensor | None = None,
) -> Tensor:
    """Two cross-entropies, and how far the features are from CLIP's own.

    teacher: what `teacher_features` gives, if it is there already.
    """
    text, of_class, of_rep = (_unit(f) for f in found)
    frozen_image = _unit(clip.encode_image(images))
    frozen_text = teacher_features(clip, classnames, template) if teacher is None else teacher
    scale, total = clip.logit_scale.exp(), 0.0
    for rows, weight in ((of_class, alpha), (of_rep, 1 - alpha)):
        for row, label in zip(rows, labels, strict=True):
            scores = scale * text @ row
            total = total + weight * (scores.logsumexp(0) - scores[label]) / len(labels)
    image_gap = 1 - sum(a @ b for a, b in zip(of_class, frozen_image, strict=True)) / len(images)
    text_gap = 1 - (text * frozen_text).sum() / len(text)
    return total + reg_weight * image_gap + reg_weight * text_gap


def loss(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    layers: Sequence[int],
    **settings: float,
) -> Tensor:
    """See `loss_of`."""
    found = features(clip, params, classnames, images, layers)
    return loss_of(clip, found, classnames, images, labels, **settings)


def random_params(
    clip: PlainCLIP, layers: Sequence[int], k: int = 3, dim: int = 24, seed: int = 0
) -> dict[str, Tensor]:
    """Leaf tensors to test with, large enough to matter."""
    rng = torch.Generator().manual_seed(seed)
    width, vision = clip.token_embedding.weight.shape[1], clip.visual.class_embedding.shape[0]
    made = {R: torch.randn(k, dim, generator=rng)}
    for tower, out in (("v", vision), ("t", width)):
        for n in range(len(layers)):
            name = PROJECTION.format(tower, n)
            made[f"{name}.weight"] = torch.randn(out, dim, generator=rng) * dim**-0.5
            made[f"{name}.bias"] = torch.randn(out, generator=rng) * 0.1
    shape = clip.visual.proj.shape
    made["image_encoder.proj_rep"] = torch.randn(shape, generator=rng) * shape[0] ** -0.5
    return as_leaves(made, clip.dtype)
