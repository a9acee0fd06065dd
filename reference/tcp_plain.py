"""TCP written plainly: every class's own tokens, made of its frozen text feature.

Prompt parameters are a dict under the family's keys, H = D // 4:

    ctx                               (N, W)
    meta_net.linear1.weight/bias      (H, D), (H,)
    meta_net.linear2.weight/bias      (N * W, H), (N * W,)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .clip_plain import PlainCLIP
from .kgcoop_plain import TEMPLATE, distance, teacher_features
from .maple_plain import CONTEXT_LENGTH, EOT, PAD, SOS, as_leaves, tokenise


def class_tokens(prompts: Mapping[str, Tensor], teacher: Tensor) -> Tensor:
    """The tokens of one class, from its teacher (D,), of unit length -> (N, W)."""
    hidden = prompts["meta_net.linear1.weight"] @ teacher + prompts["meta_net.linear1.bias"]
    hidden = hidden * torch.sigmoid(1.702 * hidden)  # QuickGELU
    tokens = prompts["meta_net.linear2.weight"] @ hidden + prompts["meta_net.linear2.bias"]
    n, width = prompts["ctx"].shape
    return torch.stack([tokens[i * width : (i + 1) * width] for i in range(n)])


def text_features(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    layer: int = 8,
    words: str = "{}.",
    template: str = TEMPLATE,
) -> Tensor:
    """(C, D), not normalised.

    layer: the block at whose input the class's tokens take the place of ctx.
    words: what stands between ctx and EOT, {} for the name. template: the frozen sentence.
    """
    teachers = teacher_features(clip, classnames, template)
    sentences, ends, tokens = [], [], []
    for name, teacher in zip(classnames, teachers, strict=True):
        behind = [*tokenise(words.format(name.replace("_", " "))), EOT]
        end = len(prompts["ctx"]) + len(behind)
        behind += [PAD] * (CONTEXT_LENGTH - end - 1)
        before = clip.embed(torch.tensor([SOS]))
        sentences.append(torch.cat([before, prompts["ctx"], clip.embed(torch.tensor(behind))]))
        ends.append(end)
        tokens.append(class_tokens(prompts, teacher / teacher.norm()))
    return clip.text_tower(
        torch.stack(sentences), torch.tensor(ends), {layer: (1, torch.stack(tokens))}
    )


def logits(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    layer: int = 8,
    words: str = "{}.",
    template: str = TEMPLATE,
) -> Tensor:
    """images (B, 3, H, H) -> (B, C)."""
    text = text_features(clip, prompts, classnames, layer, words, template)
    return clip.logits(clip.encode_image(images), text)


def loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    layer: int = 8,
    words: str = "{}.",
    template: str = TEMPLATE,
    weight: float = 8.0,
) -> Tensor:
    """Cross-entropy + weight * (1 - mean cosine of text and teacher).

    images (B, 3, H, H), labels (B,)
    """
    text = text_features(clip, prompts, classnames, layer, words, template)
    cross_entropy = functional.cross_entropy(clip.logits(clip.encode_image(images), text), labels)
    return cross_entropy + weight * distance(text, teacher_features(clip, classnames, template))


def random_prompts(clip: PlainCLIP, n_ctx: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Leaf tensors to test with: class tokens as large as a block's input, and not all alike."""
    rng = torch.Generator().manual_seed(seed)
    width, embed_dim = clip.token_embedding.weight.shape[1], clip.text_projection.shape[1]
    made = {
        "ctx": torch.randn(n_ctx, width, generator=rng) * 0.02,
        "meta_net.linear1.weight": torch.randn(embed_dim // 4, embed_dim, generator=rng),
        "meta_net.linear1.bias": torch.randn(embed_dim // 4, generator=rng) * 0.1,
        "meta_net.linear2.weight": torch.randn(n_ctx * width, embed_dim // 4, generator=rng) * 0.2,
        "meta_net.linear2.bias": torch.randn(n_ctx * width, generator=rng) * 0.1,
    }
    return as_leaves(made, clip.dtype)
