"""MaPLe, with and without ATPrompt's attributes, written plainly on PlainCLIP.

Prompt parameters are a dict under the family's key names, without the "prompt_learner." prefix:

    ctx                                          (N_CTX, W)
    ctx_att1, ctx_att2, ctx_att3                 (N_ATT, W), one used for each attribute
    proj.weight, proj.bias                       MaPLe's mapper F, Linear W -> Wv; or P2C's:
    proj.fc1.weight/bias, proj.fc2.weight/bias   W -> s_H W -> GELU -> Wv
    compound_prompts_text.N                      (N_CTX, W), text prompts at block N + 1's input
    compound_prompt_projections.N.weight/bias    Linear W -> Wv, block N + 1 of the vision tower

PROMPT_DEPTH J is one more than there are compound_prompts_text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.nn import functional

from .clip_plain import PlainCLIP

CONTEXT_LENGTH = 77
SOS, EOT, PAD = 49406, 49407, 0

Prompts = dict[str, Tensor]

_tokenizer = SimpleTokenizer()


class MapleOutput(NamedTuple):
    """What `maple_forward` gives."""

    text_features: Tensor  # (C, D), not normalised
    image_features: Tensor  # (B, D), not normalised
    logits: Tensor  # (B, C)
    loss: Tensor | None  # cross-entropy; None where no labels were given


def maple_forward(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    images: Tensor,
    labels: Tensor | None = None,
    attributes: Sequence[str] = (),
    frozen_words: str = "",
    upstream_slicing: bool = False,
) -> MapleOutput:
    """MaPLe (frozen_words "of a"), or MaPLe + ATPrompt (attributes, no frozen words).

    images (B, 3, H, H), labels (B,)
    """
    text = text_features(clip, prompts, classnames, attributes, frozen_words, upstream_slicing)
    image = image_features(clip, prompts, images)
    logits = clip.logits(image, text)
    loss = None if labels is None else functional.cross_entropy(logits, labels)
    return MapleOutput(text, image, logits, loss)


# Text


def text_features(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classnames: Sequence[str],
    attributes: Sequence[str] = (),
    frozen_words: str = "",
    upstream_slicing: bool = False,
) -> Tensor:
    """(C, D), not normalised."""
    build = class_prompt_upstream_slicing if upstream_slicing else class_prompt
    built = [build(clip, prompts, name, attributes, frozen_words) for name in classnames]
    embeddings = torch.stack([b.embeddings for b in built])  # (C, 77, W)
    eot = torch.tensor([b.eot for b in built])  # (C,)
    ctx_start = built[0].ctx_start  # of all: what is before ctx does not depend on the class
    deep = {block: (ctx_start, p) for block, p in deep_text_prompts(prompts).items()}
    return clip.text_tower(embeddings, eot, deep)


class ClassPrompt(NamedTuple):
    """A class's sentence."""

    embeddings: Tensor  # (77, W) before positions are added
    eot: int  # where EOT stands
    ctx_start: int  # where ctx starts


def class_prompt(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classname: str,
    attributes: Sequence[str] = (),
    frozen_words: str = "",
) -> ClassPrompt:
    """SOS att1 word1 att2 word2 ... ctx frozen-words name . EOT pad ...  as 77 embeddings."""
    pieces = [_words(clip, [SOS])]
    for k, attribute in enumerate(attributes, start=1):
        pieces.append(prompts[f"ctx_att{k}"].to(clip.dtype))
        pieces.append(_words(clip, tokenise(attribute)))
    ctx_start = sum(len(piece) for piece in pieces)
    pieces.append(prompts["ctx"].to(clip.dtype))
    pieces.append(_words(clip, tokenise(frozen_words)))
    pieces.append(_words(clip, tokenise(name_and_full_stop(classname))))
    eot = sum(len(piece) for piece in pieces)
    pieces.append(_words(clip, [EOT]))
    padding = CONTEXT_LENGTH - eot - 1
    if padding < 0:
        raise ValueError(f"the prompt of class {classname!r} has more than {CONTEXT_LENGTH} tokens")
    pieces.append(_words(clip, [PAD] * padding))
    return ClassPrompt(torch.cat(pieces), eot, ctx_start)


def class_prompt_upstream_slicing(
    clip: PlainCLIP,
    prompts: Mapping[str, Tensor],
    classname: str,
    attributes: Sequence[str] = (),
    frozen_words: str = "",
) -> ClassPrompt:
    """The same as ATPrompt's published code does it: as if every attribute word were one token.

    It tokenises the sentence with an X for every learnable vector, then cuts out pieces at fixed
    places. Where a word has two tokens, every later cut falls one token too early: the second half
    of "playfulness" is overwritten, an X (the word "x") takes the place of "energy", another X is
    left before the name.
    """
    sentence = placeholder_sentence(prompts, classname, attributes, frozen_words)
    ids = [SOS, *tokenise(sentence), EOT]
    eot = len(ids) - 1  # the sentence's length is unchanged by the cutting
    ids = ids + [PAD] * (CONTEXT_LENGTH - len(ids))
    if len(ids) > CONTEXT_LENGTH:
        raise ValueError(f"the prompt of class {classname!r} has more than {CONTEXT_LENGTH} tokens")
    at = 1
    pieces = [_words(clip, ids[:1])]
    for k in range(1, len(attributes) + 1):
        vectors = prompts[f"ctx_att{k}"].to(clip.dtype)
        pieces.append(vectors)
        at += len(vectors)
        pieces.append(_words(clip, ids[at : at + 1]))  # "the" token of the attribute word
        at += 1
    ctx_start = at
    pieces.append(prompts["ctx"].to(clip.dtype))
    at += len(prompts["ctx"])
    pieces.append(_words(clip, ids[at:]))
    return ClassPrompt(torch.cat(pieces), eot, ctx_start)


def placeholder_sentence(
    prompts: Mapping[str, Tensor],
    classname: str,
    attributes: Sequence[str] = (),
    frozen_words: str = "",
) -> str:
    """The prompt as text, X for every learnable vector: X X color X X shape X X red hexagon."""
    words: list[str] = []
    for k, attribute in enumerate(attributes, start=1):
        words += ["X"] * len(prompts[f"ctx_att{k}"]) + [attribute]
    words += ["X"] * len(prompts["ctx"])
    words += [frozen_words] if frozen_words else []
    words += [name_and_full_stop(classname)]
    return " ".join(words)


def name_and_full_stop(classname: str) -> str:
    """One piece, since the tokenizer joins punctuation: "crane (bird)" gives a token ")."."""
    return classname.replace("_", " ") + "."


def tokenise(text: str) -> list[int]:
    """BPE ids without SOS and EOT."""
    return _tokenizer.encode(text)


def _words(clip: PlainCLIP, ids: list[int]) -> Tensor:
    """Frozen embeddings (len(ids), W)."""
    return clip.embed(torch.tensor(ids, dtype=torch.long))


def deep_text_prompts(prompts: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """{block: (N_CTX, W)} for the blocks 1 ... J-1."""
    return {n + 1: prompts[f"compound_prompts_text.{n}"] for n in range(_count_deep(prompts))}


# Vision


def image_features(clip: PlainCLIP, prompts: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """images (B, 3, H, H) -> (B, D), not normalised."""
    shallow = mapper(prompts, prompts["ctx"])
    return clip.vision_tower(images, shallow, deep_visual_prompts(prompts))


def mapper(prompts: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """F: (N, W) -> (N, Wv), MaPLe's Linear or P2C's MLP, whichever the parameters are for."""
    if "proj.weight" in prompts:
        return _linear(prompts, "proj", x)
    hidden = _linear(prompts, "proj.fc1", x)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))  # GELU, exact (not QuickGELU)
    return _linear(prompts, "proj.fc2", hidden)


def deep_visual_prompts(prompts: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """{block: (N_CTX, Wv)} for the blocks 1 ... J-1, from the deep text prompts."""
    made = {}
    for n in range(_count_deep(prompts)):
        text_prompt = prompts[f"compound_prompts_text.{n}"]
        made[n + 1] = _linear(prompts, f"compound_prompt_projections.{n}", text_prompt)
    return made


def _linear(prompts: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ prompts[f"{name}.weight"].T + prompts[f"{name}.bias"]


def _count_deep(prompts: Mapping[str, Tensor]) -> int:
    return len([key for key in prompts if key.startswith("compound_prompts_text.")])


# Parameters to test with


def random_prompts(
    clip: PlainCLIP,
    n_ctx: int = 2,
    n_att: int = 2,
    depth: int = 3,
    hidden_scale: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Prompts:
    """Leaf tensors that require gradients; the family's scales, but deep projections that differ.

    hidden_scale: None for MaPLe's Linear mapper, s_H for P2C's MLP. dtype: given, or the model's.
    """
    rng = torch.Generator().manual_seed(seed)
    width = clip.token_embedding.weight.shape[1]
    vision_width = clip.visual.class_embedding.shape[0]
    prompts: Prompts = {}

    def normal(name: str, *shape: int, std: float) -> None:
        prompts[name] = torch.randn(*shape, generator=rng) * std

    def linear(name: str, n_in: int, n_out: int) -> None:
        bound = n_in**-0.5
        prompts[f"{name}.weight"] = (torch.rand(n_out, n_in, generator=rng) * 2 - 1) * bound
        prompts[f"{name}.bias"] = (torch.rand(n_out, generator=rng) * 2 - 1) * bound

    normal("ctx", n_ctx, width, std=0.02)
    for k in (1, 2, 3):
        normal(f"ctx_att{k}", n_att, width, std=0.01)
    if hidden_scale is None:
        linear("proj", width, vision_width)
    else:
        linear("proj.fc1", width, hidden_scale * width)
        linear("proj.fc2", hidden_scale * width, vision_width)
    for n in range(depth - 1):
        normal(f"compound_prompts_text.{n}", n_ctx, width, std=0.02)
        linear(f"compound_prompt_projections.{n}", width, vision_width)
    return as_leaves(prompts, dtype or clip.dtype)


def as_leaves(prompts: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Prompts:
    """Detached copies (in `dtype`, if given) that require gradients."""
    return {
        key: p.detach().to(dtype or p.dtype, copy=True).requires_grad_()
        for key, p in prompts.items()
    }


def prompts_from_checkpoint(
    state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> Prompts:
    """Learned parameters of a model's or prompt learner's state dict: no prefix, no buffers."""
    kept: Prompts = {}
    whole_model = any(key.startswith("prompt_learner.") for key in state_dict)
    prefix = "prompt_learner." if whole_model else ""
    names = ("ctx", "proj.", "compound_prompts_text.", "compound_prompt_projections.")
    for key, value in state_dict.items():
        if key.startswith(prefix) and key.removeprefix(prefix).startswith(names):
            kept[key.removeprefix(prefix)] = value
    return as_leaves(kept, dtype)


def gradients(loss: Tensor, prompts: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """d loss / d prompts by name; None where a parameter took no part, as ctx_att3 often."""
    grads = torch.autograd.grad(loss, list(prompts.values()), retain_graph=True, allow_unused=True)
    return dict(zip(prompts, grads, strict=True))
