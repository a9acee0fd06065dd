"""CoOp written plainly on top of PlainCLIP: every class's whole 77-token sentence, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .clip_plain import PlainCLIP
from .maple_plain import CONTEXT_LENGTH, EOT, SOS, tokenise


def text_features(clip: PlainCLIP, ctx: Tensor, classnames: Sequence[str], position: str = "end") -> Tensor:
    """(C, D), not normalised. ctx (N, W), or (C, N, W) for class-specific contexts; position end, middle or front."""
    sentences, ends = [], []
    for i, classname in enumerate(classnames):
        own = ctx[i] if ctx.dim() == 3 else ctx
        words = classname.replace("_", " ")
        ids = tokenise(words + ".")
        name = clip.embed(torch.tensor(ids[: len(tokenise(words))]))
        full_stop = clip.embed(torch.tensor([*ids[len(tokenise(words)) :], EOT]))
        half = len(own) // 2
        middle = {"end": [own, name], "middle": [own[:half], name, own[half:]], "front": [name, own]}[position]
        sentence = torch.cat([clip.embed(torch.tensor([SOS])), *middle, full_stop])
        ends.append(len(sentence) - 1)
        padding = clip.embed(torch.zeros(CONTEXT_LENGTH - len(sentence), dtype=torch.long))
        sentences.append(torch.cat([sentence, padding]))
    return clip.text_tower(torch.stack(sentences), torch.tensor(ends), {})
