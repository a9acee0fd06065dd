"""CoOp, with and without ATPrompt's attributes, written plainly: every class's whole sentence.

Prompt parameters are a dict under the family's keys: ctx (N, W), or (C, N, W) for class-specific
contexts; with attributes ctx_att1, ctx_att2, ctx_att3 (N_ATT, W), as many used as there are
attribute words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .clip_plain import PlainCLIP
from .maple_plain import CONTEXT_LENGTH, EOT, SOS, tokenise


def text_features(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    position: str = "end",
    attributes: Sequence[str] = (),
) -> Tensor:
    """(C, D), not normalised, of the sentences SOS att1 word1 att2 word2 ... ctx name . EOT

    position: of the name: end (behind ctx), middle (between its halves) or front (before it).
    Attributes come before both.
    """
    sentences, ends = [], []
    before = [clip.embed(torch.tensor([SOS]))]
    for k, attribute in enumerate(attributes, start=1):
        before += [prompts[f"ctx_att{k}"], clip.embed(torch.tensor(tokenise(attribute)))]
    for i, classname in enumerate(classnames):
        own = prompts["ctx"][i] if prompts["ctx"].dim() == 3 else prompts["ctx"]
        words = classname.replace("_", " ")
        ids = tokenise(words + ".")
        name = clip.embed(torch.tensor(ids[: len(tokenise(words))]))
        full_stop = clip.embed(torch.tensor([*ids[len(tokenise(words)) :], EOT]))
        half = len(own) // 2
        orders = {
            "end": [own, name],
            "middle": [own[:half], name, own[half:]],
            "front": [name, own],
        }
        middle = orders[position]
        sentence = torch.cat([*before, *middle, full_stop])
        ends.append(len(sentence) - 1)
        padding = clip.embed(torch.zeros(CONTEXT_LENGTH - len(sentence), dtype=torch.long))
        sentences.append(torch.cat([sentence, padding]))
    return clip.text_tower(torch.stack(sentences), torch.tensor(ends), {})


def logits(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    position: str = "end",
    attributes: Sequence[str] = (),
) -> Tensor:
    """images (B, 3, H, H) -> (B, C)."""
    text = text_features(clip, prompts, classnames, position, attributes)
    return clip.logits(clip.encode_image(images), text)


def loss(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor,
    position: str = "end",
    attributes: Sequence[str] = (),
) -> Tensor:
    """Cross-entropy, mean over the images. labels (B,)"""
    predicted = logits(clip, prompts, classnames, images, position, attributes)
    return functional.cross_entropy(predicted, labels)
