"""PromptSRC written plainly: independent prompts of both towers, and three constraints.

Prompt parameters are a dict under the family's keys:

    prompt_learner.ctx                                 (N, W), behind SOS
    text_encoder.transformer.resblocks.n.VPT_shallow   (N, W), in their place at block n's input
    image_encoder.VPT                                  (Nv, Wv), appended after the patches
    image_encoder.transformer.resblocks.n.VPT_shallow  (Nv, Wv), in their place at block n's input
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from .clip_plain import PlainCLIP
from .maple_plain import EOT, PAD, SOS, as_leaves, class_prompt, tokenise

TEXT_BLOCK = "text_encoder.transformer.resblocks.{}.VPT_shallow"
IMAGE_BLOCK = "image_encoder.transformer.resblocks.{}.VPT_shallow"
TEMPLATES = OPENAI_IMAGENET_TEMPLATES[:60]


def text_features(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    frozen_words: str = "",
) -> Tensor:
    """(C, D), not normalised. SOS ctx frozen-words name . EOT"""
    ctx = {"ctx": prompts["prompt_learner.ctx"]}
    built = [class_prompt(clip, ctx, name, frozen_words=frozen_words) for name in classnames]
    embeddings = torch.stack([b.embeddings for b in built])  # (C, 77, W)
    eot = torch.tensor([b.eot for b in built])  # (C,)
    blocks = _at_blocks(clip.transformer, prompts, TEXT_BLOCK)
    deep = {n: (1, vectors) for n, vectors in blocks.items()}  # ctx begins at position 1
    return clip.text_tower(embeddings, eot, deep)


def image_features(clip: PlainCLIP, prompts: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """images (B, 3, H, H) -> (B, D), not normalised."""
    deep = _at_blocks(clip.visual.transformer, prompts, IMAGE_BLOCK)
    return clip.vision_tower(images, prompts["image_encoder.VPT"], deep)


def _at_blocks(
    transformer: torch.nn.Module, prompts: Mapping[str, Tensor], key: str
) -> dict[int, Tensor]:
    numbers = range(len(transformer.resblocks))
    return {n: prompts[key.format(n)] for n in numbers if key.format(n) in prompts}


def logits(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    frozen_words: str = "",
) -> Tensor:
    """images (B, 3, H, H) -> (B, C)."""
    text = text_features(clip, prompts, classnames, frozen_words)
    return clip.logits(image_features(clip, prompts, images), text)


def teacher_features(clip: PlainCLIP, classnames: Sequence[str]) -> Tensor:
    """(C, D), unit length: the mean over 60 templates of the frozen, unnormalised text features."""
    rows = []
    for name in classnames:
        spoken = name.replace("_", " ")
        sentences = [[SOS, *tokenise(template(spoken)), EOT] for template in TEMPLATES]
        longest = max(map(len, sentences))  # the padding is left out: no EOT sees it
        tokens = torch.tensor([ids + [PAD] * (longest - len(ids)) for ids in sentences])
        rows.append(_unit(clip.encode_text(tokens).mean(dim=0)))
    return torch.stack(rows)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    text_weight: float = 25.0,
    image_weight: float = 10.0,
    frozen_words: str = "",
) -> Tensor:
    """Cross-entropy + the constraints on text features, image features and logits.

    images (B, 3, H, H), labels (B,)
    """
    text = _unit(text_features(clip, prompts, classnames, frozen_words))
    image = _unit(image_features(clip, prompts, images))
    teacher = teacher_features(clip, classnames)
    frozen_image = _unit(clip.encode_image(images))
    scale = clip.logit_scale.exp()

    log_q = torch.log_softmax(scale * image @ text.T, dim=1)
    log_p = torch.log_softmax(scale * frozen_image @ teacher.T, dim=1)
    cross_entropy = -log_q[torch.arange(len(labels)), labels].mean()
    on_text = (text - teacher).abs().mean()
    on_image = (image - frozen_image).abs().mean()
    on_logits = (log_p.exp() * (log_p - log_q)).mean()  # over B * C
    return cross_entropy + text_weight * on_text + image_weight * on_image + on_logits


# The Gaussian average


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """The weights of epochs 1 ... `epochs`; their sum is 1."""
    heights = [math.exp(-(((e - mean) / std) ** 2) / 2) for e in range(1, epochs + 1)]
    return [h / sum(heights) for h in heights]


def average(
    each_epoch: Sequence[Mapping[str, Tensor]], mean: float, std: float
) -> dict[str, Tensor]:
    """The sum of the epochs' parameters, each times its epoch's weight, in double precision."""
    weights = gaussian_weights(len(each_epoch), mean, std)
    return {
        key: sum(w * p[key].double() for w, p in zip(weights, each_epoch, strict=True))
        for key in each_epoch[0]
    }


def random_prompts(
    clip: PlainCLIP,
    n_text: int = 4,
    n_image: int = 3,
    depth_text: int = 3,
    depth_image: int = 2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Leaf tensors to test with; the numbers and depths differ, so that a swap shows."""
    rng = torch.Generator().manual_seed(seed)
    width, vision_width = clip.token_embedding.weight.shape[1], clip.visual.class_embedding.shape[0]
    made = {"prompt_learner.ctx": torch.randn(n_text, width, generator=rng) * 0.02}
    for n in range(1, depth_text):
        made[TEXT_BLOCK.format(n)] = torch.randn(n_text, width, generator=rng) * 0.5
    made["image_encoder.VPT"] = torch.randn(n_image, vision_width, generator=rng) * 0.5
    for n in range(1, depth_image):
        made[IMAGE_BLOCK.format(n)] = torch.randn(n_image, vision_width, generator=rng) * 0.5
    return as_leaves(made, clip.dtype)
