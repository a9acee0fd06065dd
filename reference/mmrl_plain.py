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

import torch
from torch import Tensor

from .clip_plain import PlainCLIP
from .maple_plain import EOT, PAD, SOS, as_leaves, tokenise

R = "representation_learner.compound_rep_tokens"
PROJECTION = "representation_learner.compound_rep_tokens_r2{}proj.{}"
TEMPLATE = "a photo of a {}."


def tokens_of(params: Mapping[str, Tensor], tower: str, n: int) -> Tensor:
    """The (K, W or Wv) tokens of the n-th listed block; tower is t or v."""
    name = PROJECTION.format(tower, n)
    return params[R] @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def sentence(classname: str, template: str) -> list[int]:
    """SOS, the template with the class's name, EOT."""
    return [SOS, *tokenise(template.replace("{}", classname.replace("_", " "))), EOT]


def text_states(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classname: str,
    layers: Sequence[int],
    template: str = TEMPLATE,
) -> list[Tensor]:
    """What comes out of each block, (77 or 77 + K, W)."""
    ids = sentence(classname, template)
    ids = torch.tensor(ids + [PAD] * (77 - len(ids)))
    x = clip.embed(ids) + clip.positional_embedding
    states, n = [], 0
    for i, block in enumerate(clip.transformer.resblocks):
        if i + 1 in layers:
            new = tokens_of(params, "t", n).to(clip.dtype)
            behind = x[1:] if n == 0 else x[1 + len(new) :]
            x = torch.cat([x[:1], new, behind])
            n += 1
        length = len(x)
        mask = torch.full((length, length), float("-inf"), dtype=clip.dtype).triu(1)
        x = block(x[None], mask)[0]
        states.append(x)
    return states


def text_features(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    layers: Sequence[int],
    template: str = TEMPLATE,
) -> Tensor:
    """(C, D), not normalised."""
    rows = []
    for name in classnames:
        last = text_states(clip, params, name, layers, template)[-1]
        eot = len(sentence(name, template)) - 1 + len(params[R])
        rows.append(clip.ln_final(last[eot]) @ clip.text_projection)
    return torch.stack(rows)


def image_states(
    clip: PlainCLIP, params: Mapping[str, Tensor], image: Tensor, layers: Sequence[int]
) -> list[Tensor]:
    """What comes out of each block for one image (3, H, H): CLS, tokens, patches."""
    v = clip.visual
    patches = v.conv1(image[None].to(clip.dtype))[0].flatten(1).T
    x = v.ln_pre(torch.cat([v.class_embedding[None], patches]) + v.positional_embedding)
    states, n = [], 0
    for i, block in enumerate(v.transformer.resblocks):
        if i + 1 in layers:
            new = tokens_of(params, "v", n).to(clip.dtype)
            behind = x[1:] if n == 0 else x[1 + len(new) :]
            x = torch.cat([x[:1], new, behind])
            n += 1
        x = block(x[None], None)[0]
        states.append(x)
    return states


def image_features(
    clip: PlainCLIP, params: Mapping[str, Tensor], images: Tensor, layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """(B, D) of the class token and of the representation tokens, not normalised."""
    v, k = clip.visual, len(params[R])
    of_class, of_rep = [], []
    for image in images:
        last = image_states(clip, params, image, layers)[-1]
        of_class.append(v.ln_post(last[0]) @ v.proj)
        mean = sum(v.ln_post(last[1 + i]) for i in range(k)) / k
        of_rep.append(mean @ params["image_encoder.proj_rep"])
    return torch.stack(of_class), torch.stack(of_rep)


def teacher_features(
    clip: PlainCLIP, classnames: Sequence[str], template: str = TEMPLATE
) -> Tensor:
    """(C, D), unit length: CLIP's own."""
    rows = []
    for name in classnames:
        ids = sentence(name, template)
        rows.append(_unit(clip.encode_text(torch.tensor([ids + [PAD] * (77 - len(ids))]))[0]))
    return torch.stack(rows)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def both_logits(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    layers: Sequence[int],
    template: str = TEMPLATE,
) -> tuple[Tensor, Tensor]:
    """(B, C) of the class token and of the representation tokens."""
    text = text_features(clip, params, classnames, layers, template)
    of_class, of_rep = image_features(clip, params, images, layers)
    return clip.logits(of_class, text), clip.logits(of_rep, text)


def loss(
    clip: PlainCLIP,
    params: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    layers: Sequence[int],
    alpha: float = 0.7,
    reg_weight: float = 1.0,
    template: str = TEMPLATE,
) -> Tensor:
    """Two cross-entropies, and how far the features are from CLIP's own."""
    text = _unit(text_features(clip, params, classnames, layers, template))
    of_class, of_rep = (_unit(f) for f in image_features(clip, params, images, layers))
    frozen_image, frozen_text = (
        _unit(clip.encode_image(images)),
        teacher_features(clip, classnames, template),
    )
    scale, total = clip.logit_scale.exp(), 0.0
    for features, weight in ((of_class, alpha), (of_rep, 1 - alpha)):
        for row, label in zip(features, labels, strict=True):
            scores = scale * text @ row
            total = total + weight * (scores.logsumexp(0) - scores[label]) / len(labels)
    image_gap = 1 - sum(a @ b for a, b in zip(of_class, frozen_image, strict=True)) / len(images)
    text_gap = 1 - sum(a @ b for a, b in zip(text, frozen_text, strict=True)) / len(text)
    return total + reg_weight * image_gap + reg_weight * text_gap


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
