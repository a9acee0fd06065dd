"""OpenAI's CLIP with a ViT, written plainly: 77 tokens, every class whole, float softmax attention.

Shapes: B images, C texts (classes), L tokens, W text width, Wv vision width, D embedding, N prompt
    vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

HEAD_WIDTH = 64

# An adapter: (index of a block, ln_1 of its input (B, L, W)) -> what its output gets (B, L, W)
Adapt = Callable[[int, Tensor], Tensor]


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """One transformer block, pre-LayerNorm: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // HEAD_WIDTH)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, L, W), mask (L, L) added to the attention scores, or None -> (B, L, W)."""
        y = self.ln_1(x).transpose(0, 1)  # nn.MultiheadAttention wants (L, B, W)
        # need_weights=True: the softmax is written out, no fused kernel
        y, _ = self.attn(y, y, y, attn_mask=mask, need_weights=True)
        x = x + y.transpose(0, 1)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The blocks of a tower, under OpenAI's names."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width) for _ in range(layers)])


class Vision(nn.Module):
    """The image tower's parameters, under OpenAI's names."""

    def __init__(self, width: int, layers: int, patch: int, tokens: int, embed_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, embed_dim))


class PlainCLIP(nn.Module):
    """CLIP from a state dict in OpenAI's layout (see weights.py). Frozen; one dtype throughout.

    dtype: given, or that of visual.conv1.weight.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
        super().__init__()
        weights = dict(state_dict)
        for scalar in ("input_resolution", "context_length", "vocab_size"):
            weights.pop(scalar, None)

        vision_width, _, patch, _ = weights["visual.conv1.weight"].shape
        vision_tokens = weights["visual.positional_embedding"].shape[0]
        vocab, text_width = weights["token_embedding.weight"].shape
        context_length = weights["positional_embedding"].shape[0]
        embed_dim = weights["text_projection"].shape[1]

        vision_layers = _count_blocks(weights, "visual.transformer.")
        text_layers = _count_blocks(weights, "transformer.")

        with torch.device("meta"):  # no values yet: all of them come from the state dict
            self.visual = Vision(vision_width, vision_layers, patch, vision_tokens, embed_dim)
            self.transformer = Transformer(text_width, text_layers)
            self.token_embedding = nn.Embedding(vocab, text_width)
            self.positional_embedding = nn.Parameter(torch.zeros(context_length, text_width))
            self.ln_final = nn.LayerNorm(text_width)
            self.text_projection = nn.Parameter(torch.zeros(text_width, embed_dim))
            self.logit_scale = nn.Parameter(torch.zeros(()))

        self.dtype = dtype or weights["visual.conv1.weight"].dtype
        # strict: every parameter is named once. assign: these copies become the parameters.
        copies = {key: w.detach().to(self.dtype, copy=True) for key, w in weights.items()}
        self.load_state_dict(copies, strict=True, assign=True)
        self.requires_grad_(False)
        self.eval()

    # Plain CLIP

    def encode_text(self, tokens: Tensor) -> Tensor:
        """tokens (C, 77) ids, padded with 0 -> (C, D), not normalised. EOT has the largest id."""
        return self.text_tower(self.embed(tokens), tokens.argmax(dim=-1))

    def encode_image(self, image: Tensor) -> Tensor:
        """image (B, 3, H, H) -> (B, D), not normalised."""
        return self.vision_tower(image)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, D), (C, D) -> (B, C): cosine similarity times exp(logit_scale)."""
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * image_features @ text_features.T

    # The two towers, with a place for prompts

    def embed(self, tokens: Tensor) -> Tensor:
        """ids (..., L) -> (..., L, W), before positions are added."""
        return self.token_embedding(tokens)

    def text_tower(
        self,
        embeddings: Tensor,
        eot: Tensor,
        deep: Mapping[int, tuple[int, Tensor]] | None = None,
        adapt: Adapt | None = None,
    ) -> Tensor:
        """Text features at the EOT positions.

        embeddings: (C, L, W) before positions are added; L is 77, or less where nothing but padding
            is cut off
        eot: (C,) the index of EOT in each text
        deep: {block: (start, (N, W) or (C, N, W))}: at this block's input, tokens start ...
            start+N-1 are replaced
        returns: (C, D), not normalised
        """
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        mask = torch.full((length, length), float("-inf"), dtype=self.dtype, device=x.device)
        mask = mask.triu(diagonal=1)  # causal: no token sees those behind it
        for i, block in enumerate(self.transformer.resblocks):
            if deep and i in deep:
                start, prompts = deep[i]
                middle = prompts.to(self.dtype).expand(x.shape[0], -1, -1)
                x = torch.cat([x[:, :start], middle, x[:, start + middle.shape[1] :]], dim=1)
            added = adapt(i, block.ln_1(x)) if adapt else 0
            x = block(x, mask) + added
        x = self.ln_final(x)
        return x[torch.arange(len(x), device=x.device), eot] @ self.text_projection

    def vision_tower(
        self,
        image: Tensor,
        prompts: Tensor | None = None,
        deep: Mapping[int, Tensor] | None = None,
        adapt: Adapt | None = None,
    ) -> Tensor:
        """Image features at the class token.

        image: (B, 3, H, H)
        prompts: (N, Wv) appended after the patch tokens: no position added, before ln_pre
        deep: {block: (N, Wv)}: at this block's input, the last N tokens are replaced
        returns: (B, D), not normalised
        """
        v = self.visual
        x = v.conv1(image.to(self.dtype))  # (B, Wv, grid, grid)
        x = x.flatten(start_dim=2).transpose(1, 2)  # (B, grid * grid, Wv), row by row
        class_token = v.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([class_token, x], dim=1) + v.positional_embedding
        if prompts is not None:
            x = torch.cat([x, prompts.to(self.dtype).expand(len(x), -1, -1)], dim=1)
        x = v.ln_pre(x)
        for i, block in enumerate(v.transformer.resblocks):
            if deep and i in deep:
                n = len(deep[i])
                x = torch.cat([x[:, :-n], deep[i].to(self.dtype).expand(len(x), -1, -1)], dim=1)
            added = adapt(i, block.ln_1(x)) if adapt else 0
            x = block(x, mask=None) + added
        return v.ln_post(x[:, 0]) @ v.proj


def _count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len([k for k in weights if k.startswith(prefix) and k.endswith(".attn.in_proj_weight")])
