"""OpenAI's CLIP (Radford et al., 2021): two towers that take prompts as tensors.

Modules, attributes and the keys of the state dict are OpenAI's, so their checkpoints load.
What is added are arguments for prompts and adapters; no code here belongs to one method.
Class prompts go through the text tower in shared_prefix.py.

Shapes: B images, N sequences, L tokens, W a tower's width, D the joint embedding's.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frozen import FrozenMLP, Linear, is_frozen, linear

# Queries, keys and values, each (N, L, heads, W/heads) -> what they attend to.
AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
# {block: adapter}; adapter(ln_1(block's input)) is added to the block's output.
Adapt = Mapping[int, Callable[[Tensor], Tensor]]
# A block's prompts, or a function that makes them of those which come out of the block before.
Prompts = Tensor | Callable[[Tensor], Tensor]
NOTHING: Mapping = {}
# How many images a CPU encodes at a time without gradients. More do not fit its caches, and each
# tensor above 32 MB gets newly mapped memory, which is cleared first.
FEW = 8


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in its own type (float32) and returned in the input's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).type(x.dtype)


class QuickGELU(nn.Module):
    """The cheap GELU that OpenAI trained with: x · sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class MLP(nn.Sequential):
    """Linear, QuickGELU (or what is put into its place), linear: (…, W) -> (…, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.add_module("c_fc", Linear(width, 4 * width))
        self.add_module("gelu", QuickGELU())
        self.add_module("c_proj", Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias
        frozen = isinstance(self.gelu, QuickGELU) and is_frozen(x, *weights)
        return FrozenMLP.apply(x, *weights)[0] if frozen else super().forward(x)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Full, masked or causal softmax attention: each (N, L, heads, W/heads).

    mask: (…, queries, keys), True where a query may attend to a key.
    """
    dtype = q.dtype
    # A CPU's gradients of attention take longer in half precision (python -m bench.cpu).
    wide = torch.float32 if q.device.type == "cpu" and dtype.itemsize == 2 else dtype
    q, k, v = (t.transpose(1, 2).to(wide) for t in (q, k, v))  # (N, heads, L, W/heads)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return y.transpose(1, 2).to(dtype)  # (N, L, heads, W/heads)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each position to itself and those before it."""
    return attention(q, k, v, causal=True)


def take(x: Tensor, at: slice | Tensor) -> Tensor:
    """Some positions, the same in each row: (N, L, W) -> (N, len(at), W)."""
    return x[:, at] if isinstance(at, slice) else x.index_select(1, at)


def few_at_a_time(
    encode: Callable[[Tensor], Tensor], images: Tensor, given: Iterable[Prompts] = ()
) -> Tensor:
    """encode(images); on a CPU without gradients FEW of the images (B, …) at a time.

    given: prompts that `encode` uses. Where each image has its own, all go at once.
    """
    whole = images.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling()
    if whole or len(images) <= FEW or not all(callable(p) or len(p) == 1 for p in given):
        return encode(images)
    return torch.cat([encode(few) for few in images.split(FEW)])


class Attention(nn.Module):
    """Multi-head attention; `attend` says which kind. Parameters as nn.MultiheadAttention's."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, attend: AttentionFn, at: slice | Tensor | None = None) -> Tensor:
        """(N, L, W) -> (N, L, W), or with only the positions `at` as queries (N, len(at), W)."""
        if at is None:
            q, k, v = self.project(x, 0, 3)
        else:
            [q], (k, v) = self.project(take(x, at), 0, 1), self.project(x, 1, 3)
        return self.out_proj(attend(q, k, v).flatten(2))  # heads side by side: (N, L, W)

    def project(self, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """Queries (0), keys (1), values (2): (N, L, W) -> each (N, L, heads, W/heads)."""
        rows = slice(first * x.shape[-1], last * x.shape[-1])
        y = linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        # (N, L, (last - first) W) -> (N, L, last - first, heads, W/heads)
        return y.unflatten(-1, (last - first, self.heads, -1)).unbind(2)


class ResidualAttentionBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width)
        self.ln_2 = LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        attend: AttentionFn = attention,
        at: slice | Tensor | None = None,
        adapter: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """(N, L, W) -> (N, L, W).

        Args:
            at: positions of each row; only they are computed, (N, len(at), W).
            adapter: adapter(ln_1(x)) is added to the result.
        """
        h = self.ln_1(x)
        y = self.attn(h, attend, at)
        if at is not None:
            x, h = take(x, at), take(h, at)
        x = x + y
        x = x + self.mlp(self.ln_2(x))
        return x if adapter is None else x + adapter(h)


class Transformer(nn.Module):
    """A stack of blocks: (L, N, W) -> (L, N, W), as OpenAI's."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool = False):
        super().__init__()
        self.width, self.layers = width, layers
        self.attend = causal_attention if causal else attention
        blocks = [ResidualAttentionBlock(width, heads) for _ in range(layers)]
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)  # (N, L, W)
        for block in self.resblocks:
            x = block(x, self.attend)
        return x.transpose(0, 1)  # (L, N, W)


class VisionTransformer(nn.Module):
    """CLIP's image tower."""

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
    ):
        super().__init__()
        self.input_resolution, self.output_dim = input_resolution, output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale, tokens = width**-0.5, (input_resolution // patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def embed(self, image: Tensor, prompts: Tensor | None = None) -> Tensor:
        """The first block's input: (B, 3, R, R) -> (B, 1 + patches + n, W).

        Args:
            image: normalised pixels, of the weights' type.
            prompts: (1 or B, n, W) vectors behind the patches, without position, before
                ln_pre (MaPLe).
        """
        x = self.conv1(image).flatten(2).transpose(1, 2)  # (B, patches, W)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)  # (B, 1, W)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype)
        if prompts is not None:
            prompts = prompts.to(x.dtype).expand(x.shape[0], -1, -1)  # (B, n, W)
            x = torch.cat([x, prompts], dim=1)  # (B, 1 + patches + n, W)
        return self.ln_pre(x)

    def run(
        self,
        x: Tensor,
        deep: Mapping[int, Prompts] = NOTHING,
        adapt: Adapt = NOTHING,
        blocks: range | None = None,
        read_prompts: bool = False,
    ) -> Tensor:
        """The tokens behind some blocks, by default all: (B, L, W) -> (B, L, W).

        Behind the last block there is only the class token, (B, 1, W), and with `read_prompts` also
        the prompts, (B, 1 + n, W).

        Args:
            deep: {block: (1 or B, n, W)}, which stand behind the patches from that block on. What
                stood there is dropped.
            adapt: {block: adapter}, see Adapt.
        """
        own, last = len(self.positional_embedding), self.transformer.layers - 1
        for i in range(last + 1) if blocks is None else blocks:
            if i in deep:
                vectors = deep[i](x[:, own:]) if callable(deep[i]) else deep[i]
                vectors = vectors.to(x.dtype).expand(x.shape[0], -1, -1)  # (B, n, W)
                x = torch.cat([x[:, :own], vectors], dim=1)
            at = slice(0, 1) if i == last else None
            if i == last and read_prompts:
                prompts = torch.arange(own, x.shape[1], device=x.device)
                at = torch.cat([prompts.new_zeros(1), prompts])
            x = self.transformer.resblocks[i](x, attention, at, adapt.get(i))
        return x

    def forward(
        self,
        image: Tensor,
        prompts: Tensor | None = None,
        deep: Mapping[int, Prompts] = NOTHING,
        adapt: Adapt = NOTHING,
    ) -> Tensor:
        """Image features, not normalised: (B, 3, R, R) -> (B, D); see `embed` and `run`."""
        x = self.run(self.embed(image, prompts), deep, adapt)
        return self.ln_post(x[:, 0]) @ self.proj


class CLIP(nn.Module):
    """The two towers and the temperature; arguments as OpenAI's, heads are 64 wide.

    If vision_layers is a tuple the image tower is a ResNet, and vision_patch_size None.
    """

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int | tuple[int, int, int, int],
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
    ):
        super().__init__()
        self.context_length, self.vocab_size = context_length, vocab_size
        if isinstance(vision_layers, int):
            self.visual = VisionTransformer(
                input_resolution=image_resolution,
                patch_size=vision_patch_size,
                width=vision_width,
                layers=vision_layers,
                heads=vision_width // 64,
                output_dim=embed_dim,
            )
        else:
            with torch.device("cpu"):  # the import makes tensors: not on CLIP's device
                from .resnet import ResNet  # slow to import
            self.visual = ResNet(
                layers=vision_layers,
                output_dim=embed_dim,
                heads=vision_width * 32 // 64,
                image_size=image_resolution,
                width=vision_width,
            )
        self.transformer = Transformer(
            width=transformer_width,
            layers=transformer_layers,
            heads=transformer_heads,
            causal=True,
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def initialize_parameters(self) -> None:
        """OpenAI's initialisation, for training from scratch."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.transformer.width**-0.5)
        for tower in (self.transformer, self.visual.transformer):
            proj_std = tower.width**-0.5 * (2 * tower.layers) ** -0.5
            for block in tower.resblocks:
                nn.init.normal_(block.attn.in_proj_weight, std=tower.width**-0.5)
                nn.init.normal_(block.attn.out_proj.weight, std=proj_std)
                nn.init.zeros_(block.attn.out_proj.bias)
                nn.init.normal_(block.mlp.c_fc.weight, std=(2 * tower.width) ** -0.5)
                nn.init.normal_(block.mlp.c_proj.weight, std=proj_std)

    @property
    def dtype(self) -> torch.dtype:
        """The type the towers compute in."""
        return self.visual.conv1.weight.dtype

    def encode_image(
        self,
        image: Tensor,
        prompts: Tensor | None = None,
        deep: Mapping[int, Prompts] = NOTHING,
        adapt: Adapt = NOTHING,
    ) -> Tensor:
        """(B, 3, R, R) -> (B, D), not normalised; see VisionTransformer.embed and run."""
        given = [*deep.values(), *([] if prompts is None else [prompts])]
        return few_at_a_time(
            lambda image: self.visual(image.type(self.dtype), prompts, deep, adapt), image, given
        )

    def image_tokens(self, image: Tensor, block: int) -> Tensor:
        """The tokens that reach a block, counted from 0: (B, 3, R, R) -> (B, 1 + patches, W)."""
        visual = self.visual
        return few_at_a_time(
            lambda image: visual.run(visual.embed(image.type(self.dtype)), blocks=range(block)),
            image,
        )

    def encode_image_tokens(
        self,
        tokens: Tensor,
        block: int,
        deep: Mapping[int, Prompts] = NOTHING,
        read_prompts: bool = False,
    ) -> Tensor:
        """The rest of the image tower, up to ln_post, from a block on.

        Args:
            tokens: (B, 1 + patches, W), as `image_tokens` gives them.
            deep, read_prompts: see VisionTransformer.run.

        Returns: (B, 1 or 1 + n, W), the class token first. With `visual.proj` it is the feature.
        """
        visual, blocks = self.visual, range(block, self.visual.transformer.layers)
        return few_at_a_time(
            lambda x: visual.ln_post(visual.run(x, deep, NOTHING, blocks, read_prompts)),
            tokens,
            deep.values(),
        )

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids (N, L), as of `tokenize` -> (N, D), not normalised."""
        position = self.positional_embedding[: text.shape[1]].type(self.dtype)  # (L, W)
        x = self.token_embedding(text).type(self.dtype) + position  # (N, L, W)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)
        # EOT has the highest id of all tokens.
        x = x[torch.arange(len(x), device=x.device), text.argmax(dim=-1)]  # (N, W)
        return self.ln_final(x) @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosines of images and texts: (B, N) and its transpose."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        return logits, logits.t()


# Trainers of the family import these two from here, as from OpenAI's clip.model. They come
# last since weights.py needs the classes above.
from .weights import build_model, convert_weights  # noqa: E402, F401
