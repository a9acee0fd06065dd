"""OpenAI's CLIP (Radford et al., 2021) whose two transformers take prompts as arguments.

The modules, their attributes and the keys of their state dict are OpenAI's, so every checkpoint of theirs loads. What
is added are the arguments of `encode_image` and the method `encode_prompts`: prompts are tensors here, and no
prompt-learning method is known. Shapes: B images, C classes, W width of a tower, D width of the joint embedding.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.utils.errors import Failure

# (block index, ln_1 of the block's input) -> what is added to the block's output, position by position.
Adapt = Callable[[int, Tensor], Tensor]
NO_DEEP: Mapping = {}


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in its own type (float32) and returned in the input's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).type(x.dtype)


class QuickGELU(nn.Module):
    """The cheap GELU that OpenAI trained with: x · sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head attention under nn.MultiheadAttention's parameter names, with its keys and values in the open."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L, W) -> keys and values, each (N, heads, L, W/heads)."""
        width = x.shape[-1]
        kv = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries from x (N, L, W) over the given keys and values; mask is True where a query may look."""
        width = x.shape[-1]
        q = F.linear(x, self.in_proj_weight[:width], self.in_proj_bias[:width])
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class ResidualAttentionBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = LayerNorm(width)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that the positions of x offer to positions behind them."""
        return self.attn.keys_values(self.ln_1(x))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        past: tuple[Tensor, Tensor] | None = None,
        at: Tensor | int | None = None,
        adapt: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Transform x (N, L, W).

        Args:
            mask: bool, broadcast to (N, heads, L, past + L), True where a position may look; None: everywhere.
            past: keys and values, (N, heads, P, W/heads), of positions before x.
            at: compute only this position of each row, an index or (N,) indices; the result is then (N, 1, W).
            adapt: token-wise; what it makes of ln_1(x) is added to the result.
        """
        h = self.ln_1(x)
        k, v = self.attn.keys_values(h)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        if at is not None:
            x, h = pick(x, at), pick(h, at)
        x = x + self.attn(h, k, v, mask)
        x = x + self.mlp(self.ln_2(x))
        return x if adapt is None else x + adapt(h)


def pick(x: Tensor, at: Tensor | int) -> Tensor:
    """One position of each row: (N, L, W), index or (N,) indices -> (N, 1, W)."""
    if isinstance(at, int):
        return x[:, at : at + 1]
    return x[torch.arange(len(x), device=x.device), at].unsqueeze(1)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """(L, L) bool: each position sees itself and what is before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


class Transformer(nn.Module):
    """A stack of blocks. Called as a module it takes and gives (L, N, W), as code written for OpenAI's expects."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool = False):
        super().__init__()
        self.width, self.layers, self.causal = width, layers, causal
        self.resblocks = nn.Sequential(*[ResidualAttentionBlock(width, heads) for _ in range(layers)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        mask = causal_mask(x.shape[1], x.device) if self.causal else None
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class VisionTransformer(nn.Module):
    """CLIP's image tower."""

    def __init__(self, input_resolution: int, patch_size: int, width: int, layers: int, heads: int, output_dim: int):
        super().__init__()
        self.input_resolution, self.output_dim = input_resolution, output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((input_resolution // patch_size) ** 2 + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def forward(
        self,
        image: Tensor,
        prompts: Tensor | None = None,
        deep: Mapping[int, Tensor] = NO_DEEP,
        adapt: Adapt | None = None,
    ) -> Tensor:
        """Image features, not normalised.

        Args:
            image: (B, 3, R, R), normalised pixels, of the weights' type.
            prompts: (1 or B, N, W) vectors appended after the patches, without position and before ln_pre (MaPLe).
            deep: {block: (1 or B, N, W)} replaces the last N tokens at that block's input.
            adapt: added to the output of every block.

        Returns: (B, D).
        """
        x = self.conv1(image).flatten(2).transpose(1, 2)
        cls = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype)
        if prompts is not None:
            x = torch.cat([x, prompts.to(x.dtype).expand(len(x), -1, -1)], dim=1)
        x = self.ln_pre(x)
        for i, block in enumerate(self.transformer.resblocks):
            if i in deep:
                vectors = deep[i].to(x.dtype).expand(len(x), -1, -1)
                x = torch.cat([x[:, : -vectors.shape[1]], vectors], dim=1)
            # Only the class token is read in the end, so the last block computes nothing else.
            at = 0 if i == self.transformer.layers - 1 else None
            x = block(x, at=at, adapt=at_block(adapt, i))
        return self.ln_post(x[:, 0]) @ self.proj


def at_block(adapt: Adapt | None, i: int) -> Callable[[Tensor], Tensor] | None:
    return None if adapt is None else lambda h: adapt(i, h)


class CLIP(nn.Module):
    """The two towers and the temperature. Arguments are named as in OpenAI's code; head width is 64 in both towers.

    Four numbers of vision_layers make the image tower a ResNet (vision_patch_size is None then).
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
                image_resolution, vision_patch_size, vision_width, vision_layers, vision_width // 64, embed_dim
            )
        else:
            with torch.device("cpu"):  # whatever the device CLIP is built on, open_clip is imported as usual
                from .resnet import ResNet  # only now, since importing open_clip takes seconds
            self.visual = ResNet(vision_layers, embed_dim, vision_width * 32 // 64, image_resolution, vision_width)
        self.transformer = Transformer(transformer_width, transformer_layers, transformer_heads, causal=True)
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
        deep: Mapping[int, Tensor] = NO_DEEP,
        adapt: Adapt | None = None,
    ) -> Tensor:
        """(B, 3, R, R) -> (B, D), not normalised; the arguments are VisionTransformer.forward's."""
        return self.visual(image.type(self.dtype), prompts, deep, adapt)

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids (N, L up to context_length), as `tokenize` makes them -> (N, D), not normalised."""
        x = self.token_embedding(text).type(self.dtype) + self.positional_embedding[: text.shape[1]].type(self.dtype)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)
        # EOT has the highest id of all tokens.
        x = pick(x, text.argmax(dim=-1)).squeeze(1)
        return self.ln_final(x) @ self.text_projection

    def encode_prompts(
        self,
        prefix: Tensor,
        suffix: Tensor,
        eot: Tensor,
        deep: Mapping[int, tuple[slice, Tensor]] = NO_DEEP,
        adapt: Adapt | None = None,
    ) -> Tensor:
        """Text features of C classes whose prompts begin alike.

        Attention is causal, so what the prefix becomes in each block does not depend on the class behind it: it is run
        once, and each class's suffix attends to the prefix's keys and values. The result is that of running every class
        whole (up to rounding), at the cost of the suffixes.

        Args:
            prefix: (G, P, W) embeddings before positions are added, SOS first; G prefixes, each with every class.
            suffix: (C, S, W) embeddings of the rest of each class's prompt; what is behind its EOT is not read.
            eot: (C,) index of EOT within the suffix.
            deep: {block: (positions of the prefix, (1 or G, 1, N, W))} replaces them at that block's input.
            adapt: added to the output of every block.

        Returns: (G, C, D), not normalised.
        """
        (groups, p, _), (classes, s, _) = prefix.shape, suffix.shape
        if p + s > self.context_length:
            raise ValueError(f"prompts of {p + s} tokens; the text tower takes {self.context_length}")
        position = self.positional_embedding.type(self.dtype)
        prefix = prefix.type(self.dtype) + position[:p]
        x = (suffix.type(self.dtype) + position[p : p + s]).repeat(groups, 1, 1)
        eot = eot.repeat(groups)
        mask = causal_mask(p + s, x.device)
        prefix_mask, suffix_mask = mask[:p, :p], mask[p:]
        for i, block in enumerate(self.transformer.resblocks):
            if i in deep:
                where, vectors = deep[i]
                vectors = vectors.squeeze(1).to(prefix.dtype).expand(groups, -1, -1)
                prefix = torch.cat([prefix[:, : where.start], vectors, prefix[:, where.stop :]], dim=1)
            past = [t.repeat_interleave(classes, dim=0) for t in block.keys_values(prefix)]
            adapt_i = at_block(adapt, i)
            if i < self.transformer.layers - 1:
                prefix = block(prefix, prefix_mask, adapt=adapt_i)
                x = block(x, suffix_mask, past, adapt=adapt_i)
            else:  # only the EOT of each class is read in the end
                x = block(x, suffix_mask[eot][:, None, None], past, at=eot, adapt=adapt_i)
        return (self.ln_final(x[:, 0]) @ self.text_projection).unflatten(0, (groups, classes))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosines of images and texts: (B, N) and its transpose."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        return logits, logits.t()


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Cast what OpenAI keeps in half precision: convolutions, linear layers, attention and the two projections.

    Layer norms, embeddings and the temperature become float32.
    """
    model.float()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, Attention)):
            module.to(dtype)
    for owner, name in ((model, "text_projection"), (getattr(model, "visual", model), "proj")):
        weight = getattr(owner, name, None)
        if isinstance(weight, nn.Parameter):
            weight.data = weight.data.to(dtype)


def build_model(state_dict: Mapping[str, Tensor]) -> CLIP:
    """The CLIP whose weights these are, in eval mode, sizes read from the weights.

    It computes in the type of `visual.conv1.weight`: half for OpenAI's archives, float32 for a float32 state dict.
    The tensors are used as they are where the type is right, not copied.

    Raises: Failure for weights that make no CLIP.
    """

    def count(prefix: str) -> int:
        return len({k.removeprefix(prefix).split(".")[0] for k in state_dict if k.startswith(prefix)})

    try:
        conv1 = state_dict["visual.conv1.weight"]
        if "visual.proj" in state_dict:
            grid = math.isqrt(state_dict["visual.positional_embedding"].shape[0] - 1)
            vision = {
                "image_resolution": grid * conv1.shape[-1],
                "vision_layers": count("visual.transformer.resblocks."),
                "vision_width": conv1.shape[0],
                "vision_patch_size": conv1.shape[-1],
            }
        else:
            grid = math.isqrt(state_dict["visual.attnpool.positional_embedding"].shape[0] - 1)
            vision = {
                "image_resolution": grid * 32,
                "vision_layers": tuple(count(f"visual.layer{i}.") for i in (1, 2, 3, 4)),
                "vision_width": state_dict["visual.layer1.0.conv1.weight"].shape[0],
                "vision_patch_size": None,
            }
        transformer_width = state_dict["ln_final.weight"].shape[0]
        with torch.device("meta"):
            model = CLIP(
                embed_dim=state_dict["text_projection"].shape[1],
                **vision,
                context_length=state_dict["positional_embedding"].shape[0],
                vocab_size=state_dict["token_embedding.weight"].shape[0],
                transformer_width=transformer_width,
                transformer_heads=transformer_width // 64,
                transformer_layers=count("transformer.resblocks."),
            )
        # OpenAI's archives carry these three numbers beside the weights.
        about = {"input_resolution", "context_length", "vocab_size"}
        model.load_state_dict({k: v for k, v in state_dict.items() if k not in about}, assign=True)
    except KeyError as e:
        raise Failure(f"these weights make no CLIP: there is no {e.args[0]}") from e
    except RuntimeError as e:
        raise Failure(f"these weights make no CLIP: {' '.join(str(e).split())[:300]}") from e
    convert_weights(model, conv1.dtype)
    return model.eval()
