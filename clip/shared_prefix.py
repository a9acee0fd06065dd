"""Text features of class prompts that begin alike: `[SOS] prefix … | class name . [EOT]`.

Attention is causal, so in each block the prefix is the same whatever class follows: it is run
once, and each class's suffix attends to its keys and values. The result is that of running
every class whole (up to rounding), at the cost of the suffixes.

Shapes: G prefixes (CoCoOp: one for each image; else 1) of P tokens; C classes, whose suffixes
have T tokens in all, the longest has S; W the text tower's width. A sequence is the prefix,
once or a copy for each class, and then the T tokens.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import CLIP, NOTHING, Adapt, Prompts, attention, causal_attention

# {block: (positions of the prefix, vectors (1 or G, 1 or C, n, W))}: they take the place of what is
# at these positions of the block's input; none, as slice(1, 1), lets them appear there. With C of
# them, each class has a prefix of its own from there on.
DeepPrompts = Mapping[int, tuple[slice, Prompts]]


class Suffixes(nn.Module):
    """Which of T tokens are whose: C suffixes of different lengths, one behind the other.

    Nothing is padded, so no token is computed that is not read; only attention needs rows of
    one length.

    Attributes:
        offset: (T,) place of each token in its suffix.
        last: (C,) index of each suffix's last token, its EOT.
        inside: (C, S) False behind a suffix's end.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None):
        super().__init__()
        lengths = torch.tensor(lengths)  # (C,)
        self.classes, self.longest = len(lengths), int(lengths.max())
        self.even = bool((lengths == self.longest).all())
        inside = torch.arange(self.longest) < lengths[:, None]
        # A shorter suffix's row is filled up with its first token; nothing reads these.
        first = (lengths.cumsum(0) - lengths)[:, None]
        rows = torch.where(inside, first + torch.arange(self.longest), first)

        def buffer(name: str, value: Tensor) -> None:
            self.register_buffer(name, value.to(device), persistent=False)

        buffer("inside", inside)
        buffer("offset", inside.nonzero()[:, 1])
        buffer("last", lengths.cumsum(0) - 1)
        buffer("row_tokens", rows.flatten())  # (C S,)
        buffer("row_places", inside.flatten().nonzero()[:, 0])  # (T,)

    def to_rows(self, x: Tensor) -> Tensor:
        """(G, T, …) -> (G, C, S, …)."""
        x = x if self.even else x.index_select(1, self.row_tokens)
        return x.unflatten(1, (self.classes, self.longest))

    def from_rows(self, x: Tensor) -> Tensor:
        """(G, C, S, …) -> (G, T, …)."""
        x = x.flatten(1, 2)
        return x if self.even else x.index_select(1, self.row_places)


class PrefixAttention:
    """Causal attention in `copies` (1 or C) prefixes of P tokens and the suffixes behind them.

    A suffix attends to its prefix and to itself, not to the other suffixes.
    """

    def __init__(self, suffixes: Suffixes, p: int, copies: int):
        self.suffixes, self.p, self.copies = suffixes, p, copies
        s, device = suffixes.longest, suffixes.last.device
        self.mask = torch.ones(s, p + s, dtype=torch.bool, device=device).tril(p)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each (G, copies P + T, heads, W/heads)."""
        groups, n, heads = q.shape[0], self.copies * self.p, q.shape[2:]
        prefix = (t[:, :n].reshape(-1, self.p, *heads) for t in (q, k, v))
        prefix = causal_attention(*prefix)  # (G copies, P, …)
        prefix = prefix.reshape(groups, n, *heads)  # (G, copies P, …)
        rows = self.suffixes.to_rows(q[:, n:]).flatten(0, 1)  # (G C, S, …)
        suffix = attention(rows, self.whole(k), self.whole(v), self.mask)
        suffix = suffix.unflatten(0, (groups, -1))  # (G, C, S, …)
        return torch.cat([prefix, self.suffixes.from_rows(suffix)], dim=1)

    def of_last(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same for the suffixes' last tokens alone: queries (G, C, heads, W/heads)."""
        last = q.reshape(-1, 1, *q.shape[2:])  # (G C, 1, …)
        mask = F.pad(self.suffixes.inside, (self.p, 0), value=True)  # (C, P + S)
        mask = mask[:, None, None].repeat(q.shape[0], 1, 1, 1)  # (G C, 1, 1, P + S)
        return attention(last, self.whole(k), self.whole(v), mask).view_as(q)

    def whole(self, x: Tensor) -> Tensor:
        """Each class's prefix and suffix: (G, copies P + T, …) -> (G C, P + S, …)."""
        n = self.copies * self.p
        prefix = x[:, :n].unflatten(1, (self.copies, self.p))  # (G, copies, P, …)
        prefix = prefix.expand(-1, self.suffixes.classes, -1, -1, -1)  # (G, C, P, …)
        suffix = self.suffixes.to_rows(x[:, n:])  # (G, C, S, …)
        return torch.cat([prefix, suffix], dim=2).flatten(0, 1)


def encode_prompts(
    clip_model: CLIP,
    prefix: Tensor,
    suffix: Tensor,
    suffixes: Suffixes,
    deep: DeepPrompts = NOTHING,
    adapt: Adapt = NOTHING,
) -> Tensor:
    """Text features (G, C, D), not normalised, of each prefix with each class's suffix.

    Args:
        prefix: (G, P, W) embeddings before positions are added, SOS first.
        suffix: (T, W) embeddings of the rest of each class's prompt.
        suffixes: which of the T are whose.
        deep: see DeepPrompts.
        adapt: {block: adapter}, see Adapt.

    Raises: ValueError for prompts longer than the text tower takes.
    """
    x = embed_prompts(clip_model, prefix, suffix, suffixes)
    return encode_prompt_tokens(clip_model, x, prefix.shape[1], suffixes, 0, deep, adapt)


def prompt_tokens(
    clip_model: CLIP, prefix: Tensor, suffix: Tensor, suffixes: Suffixes, block: int
) -> Tensor:
    """The tokens that reach a block, counted from 0: (G, P + T, W). Arguments as encode_prompts."""
    x, p = embed_prompts(clip_model, prefix, suffix, suffixes), prefix.shape[1]
    attend = PrefixAttention(suffixes, p, copies=1)
    for below in clip_model.transformer.resblocks[:block]:
        x = below(x, attend)
    return x


def embed_prompts(clip_model: CLIP, prefix: Tensor, suffix: Tensor, suffixes: Suffixes) -> Tensor:
    """The first block's input (G, P + T, W): embeddings and positions."""
    groups, p, _ = prefix.shape
    length, takes = p + suffixes.longest, clip_model.context_length
    if length > takes:
        raise ValueError(f"prompts of {length} tokens; the text tower takes {takes}")
    dtype = clip_model.dtype
    position = clip_model.positional_embedding.type(dtype)
    suffix = suffix.type(dtype) + position[p + suffixes.offset]
    prefix = prefix.type(dtype) + position[:p]
    return torch.cat([prefix, suffix.expand(groups, -1, -1)], dim=1)


def encode_prompt_tokens(
    clip_model: CLIP,
    x: Tensor,
    p: int,
    suffixes: Suffixes,
    block: int,
    deep: DeepPrompts = NOTHING,
    adapt: Adapt = NOTHING,
) -> Tensor:
    """The rest of the text tower from a block on: (1 or G, P + T, W) -> (G, C, D).

    x: as `prompt_tokens` gives it, with prefixes of p tokens. Of one prefix `deep` may make G.
    """
    last = clip_model.transformer.layers - 1
    attend = PrefixAttention(suffixes, p, copies=1)
    for i in range(block, last + 1):
        if i in deep:
            x, p, copies = replace(x, attend.p, attend.copies, *deep[i])
            if (p, copies) != (attend.p, attend.copies):
                attend = PrefixAttention(suffixes, p, copies)
        if i < last:
            x = clip_model.transformer.resblocks[i](x, attend, None, adapt.get(i))
        else:  # of the last block only the EOT of each class is read
            eot = attend.copies * attend.p + suffixes.last
            x = clip_model.transformer.resblocks[i](x, attend.of_last, eot, adapt.get(i))
    return clip_model.ln_final(x) @ clip_model.text_projection


def replace(
    x: Tensor, p: int, copies: int, where: slice, vectors: Prompts
) -> tuple[Tensor, int, int]:
    """x with deep prompts at positions `where` of each prefix; then p and copies as they are now.

    vectors: see DeepPrompts; C of them need a copy of the prefix for each class, G of them a copy
    of everything for each group.
    """
    prefix, suffix = x[:, : copies * p], x[:, copies * p :]  # suffix: (1 or G, T, W)
    prefix = prefix.unflatten(1, (copies, p))  # (1 or G, copies, P, W)
    vectors = vectors(prefix[:, :, where]) if callable(vectors) else vectors
    groups, copies = max(x.shape[0], vectors.shape[0]), max(copies, vectors.shape[1])
    prefix = prefix.expand(groups, copies, -1, -1)
    vectors = vectors.to(x.dtype).expand(groups, copies, -1, -1)  # (G, copies, n, W)
    parts = [prefix[:, :, : where.start], vectors, prefix[:, :, where.stop :]]
    prefix = torch.cat(parts, dim=2)  # (G, copies, P, W); P is another if n is not where's length
    x = torch.cat([prefix.flatten(1, 2), suffix.expand(groups, -1, -1)], dim=1)
    return x, prefix.shape[2], copies
