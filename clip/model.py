"""OpenAI's CLIP (Radford et al., 2021) whose two transformers take prompts as arguments.

The modules, their attributes and the keys of their state dict are OpenAI's, so every checkpoint of
theirs loads. What is added are the arguments of `encode_image` and the method `encode_prompts`:
prompts are tensors here, and no prompt-learning method is known. Shapes: B images, C classes, W
width of a tower, D width of the joint embedding.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.utils.errors import Failure

from .frozen import FrozenMLP, Linear, is_frozen, linear

# Block -> token-wise function: what it makes of ln_1 of that block's input is added to the block's
# output.
Adapt = Mapping[int, Callable[[Tensor], Tensor]]
# Queries, keys and values, each (N, L, heads, W/heads) -> their attention; says who sees whom.
Look = Callable[[Tensor, Tensor, Tensor], Tensor]
NOTHING: Mapping = {}
# Images that a CPU encodes at once where no gradient is asked for: more leave its caches, and the
# allocator maps and clears the memory of tensors above 32 MB anew for each.
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
    """Linear, QuickGELU, linear: (…, W) -> (…, W)."""

    def __init__(self, width: int):
        super().__init__()
        self.add_module("c_fc", nn.Linear(width, 4 * width))
        self.add_module("gelu", QuickGELU())
        self.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias
        return FrozenMLP.apply(x, *weights) if is_frozen(x, *weights) else super().forward(x)


def look_everywhere(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of every position to every position; all (N, L, heads, W/heads)."""
    return _attend(q, k, v)


def look_back(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of each position to itself and what is before it; all (N, L, heads,
    W/heads)."""
    return _attend(q, k, v, is_causal=True)


def _attend(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    dtype = q.dtype
    # A CPU's gradient of attention takes twice as long in half precision as in single, the casts
    # included.
    widened = torch.float32 if q.device.type == "cpu" and dtype.itemsize == 2 else dtype
    q, k, v = (t.transpose(1, 2).to(widened) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).to(dtype)


def pick(x: Tensor, at: slice | Tensor) -> Tensor:
    """Some positions, the same in each row: (N, L, W) -> (N, len(at), W)."""
    return x[:, at] if isinstance(at, slice) else x.index_select(1, at)


class Attention(nn.Module):
    """Multi-head attention under nn.MultiheadAttention's parameter names; who sees whom is the
    caller's to say."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, look: Look, at: slice | Tensor | None = None) -> Tensor:
        """(N, L, W) -> (N, L, W), or the positions `at` of it alone, which are then the only
        queries."""
        if at is None:
            q, k, v = self.project(x, 0, 3)
        else:
            [q], (k, v) = self.project(pick(x, at), 0, 1), self.project(x, 1, 3)
        return self.out_proj(look(q, k, v).flatten(2))

    def project(self, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """Some of queries (0), keys (1) and values (2), each (N, L, heads, W/heads)."""
        rows = slice(first * x.shape[-1], last * x.shape[-1])
        y = linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
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
        look: Look = look_everywhere,
        at: slice | Tensor | None = None,
        adapt: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Transform x (N, L, W).

        Args:
            look: (queries, keys, values) -> their attention, each (N, L, heads, W/heads).
            at: positions, the same in each row; only they are computed, (N, len(at), W).
            adapt: token-wise; what it makes of ln_1(x) is added to the result.
        """
        h = self.ln_1(x)
        y = self.attn(h, look, at)
        if at is not None:
            x, h = pick(x, at), pick(h, at)
        x = x + y
        x = x + self.mlp(self.ln_2(x))
        return x if adapt is None else x + adapt(h)


class Transformer(nn.Module):
    """A stack of blocks. Called as a module it takes and gives (L, N, W), as code written for
    OpenAI's expects."""

    def __init__(self, width: int, layers: int, heads: int, causal: bool = False):
        super().__init__()
        self.width, self.layers, self.look = width, layers, look_back if causal else look_everywhere
        self.resblocks = nn.Sequential(
            *[ResidualAttentionBlock(width, heads) for _ in range(layers)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for block in self.resblocks:
            x = block(x, self.look)
        return x.transpose(0, 1)


class Suffixes(nn.Module):
    """Where the tokens of C suffixes of different lengths are when they stand one behind the other:
    T in all.

    Nothing is padded, so no token is computed that is not read; only the attention needs them as
    rows of one length.

    Attributes:
        longest: S, of the longest suffix.
        offset: (T,) place of each token in its suffix.
        last: (C,) index of each suffix's last token, its EOT.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | None = None):
        super().__init__()
        lengths = torch.tensor(lengths)
        self.classes, self.longest, total = len(lengths), int(lengths.max()), int(lengths.sum())
        inside = torch.arange(self.longest) < lengths[:, None]
        # Behind a suffix's end the rows have its first token again: nobody looks there.
        first = (lengths.cumsum(0) - lengths)[:, None]
        rows = torch.where(inside, first + torch.arange(self.longest), first)
        buffers = {
            "offset": inside.nonzero()[:, 1],
            "last": lengths.cumsum(0) - 1,
            "_inside": inside,
            "_to_rows": rows.flatten(),
            "_from_rows": inside.flatten().nonzero()[:, 0],
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(device), persistent=False)
        self._even = total == len(rows) * self.longest

    def to_rows(self, x: Tensor) -> Tensor:
        """(G, T, …) -> (G, C, S, …)."""
        x = x if self._even else x.index_select(1, self._to_rows)
        return x.unflatten(1, (self.classes, self.longest))

    def from_rows(self, x: Tensor) -> Tensor:
        """(G, C, S, …) -> (G, T, …)."""
        x = x.flatten(1, 2)
        return x if self._even else x.index_select(1, self._from_rows)

    def look(self, copies: int, prefix_length: int, last_only: bool = False) -> Look:
        """The attention of `copies` (1 or C) prefixes of P tokens and the T tokens of the suffixes
        behind them.

        A prefix looks back, and so does a suffix, with the whole prefix before it. With `last_only`
        the queries are the last tokens of the suffixes.
        """
        n, p, c, s = copies * prefix_length, prefix_length, self.classes, self.longest
        see = torch.ones(s, p + s, dtype=torch.bool, device=self.last.device).tril(p)
        see_last = F.pad(self._inside, (p, 0), value=True)[:, None, None]

        def rows(x: Tensor) -> Tensor:
            before = x[:, :n].unflatten(1, (copies, p)).expand(-1, c, -1, -1, -1)
            return torch.cat([before, self.to_rows(x[:, n:])], dim=2).flatten(0, 1)

        def look(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            groups, heads = len(q), q.shape[2:]
            before = look_back(*(t[:, :n].reshape(-1, p, *heads) for t in (q, k, v))).reshape(
                groups, n, *heads
            )
            behind = _attend(self.to_rows(q[:, n:]).flatten(0, 1), rows(k), rows(v), attn_mask=see)
            return torch.cat([before, self.from_rows(behind.unflatten(0, (groups, c)))], dim=1)

        def look_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            last = q.reshape(-1, 1, *q.shape[2:])
            return _attend(
                last, rows(k), rows(v), attn_mask=see_last.repeat(len(q), 1, 1, 1)
            ).view_as(q)

        return look_last if last_only else look


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
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(
            scale * torch.randn((input_resolution // patch_size) ** 2 + 1, width)
        )
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def forward(
        self,
        image: Tensor,
        prompts: Tensor | None = None,
        deep: Mapping[int, Tensor] = NOTHING,
        adapt: Adapt = NOTHING,
    ) -> Tensor:
        """Image features, not normalised.

        Args:
            image: (B, 3, R, R), normalised pixels, of the weights' type.
            prompts: (1 or B, N, W) vectors appended after the patches, without position and before
                ln_pre (MaPLe).
            deep: {block: (1 or B, N, W)} replaces the last N tokens at that block's input.
            adapt: {block: function}, see Adapt.

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
            at = slice(0, 1) if i == self.transformer.layers - 1 else None
            x = block(x, look_everywhere, at, adapt.get(i))
        return self.ln_post(x[:, 0]) @ self.proj


class CLIP(nn.Module):
    """The two towers and the temperature. Arguments are named as in OpenAI's code; head width is 64
    in both towers.

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
                image_resolution,
                vision_patch_size,
                vision_width,
                vision_layers,
                vision_width // 64,
                embed_dim,
            )
        else:
            with torch.device(
                "cpu"
            ):  # whatever the device CLIP is built on, open_clip is imported as usual
                from .resnet import ResNet  # only now, since importing open_clip takes seconds
            self.visual = ResNet(
                vision_layers, embed_dim, vision_width * 32 // 64, image_resolution, vision_width
            )
        self.transformer = Transformer(
            transformer_width, transformer_layers, transformer_heads, causal=True
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
        deep: Mapping[int, Tensor] = NOTHING,
        adapt: Adapt = NOTHING,
    ) -> Tensor:
        """(B, 3, R, R) -> (B, D), not normalised; the arguments are VisionTransformer.forward's."""
        shared = all(len(p) == 1 for p in (*deep.values(), *([] if prompts is None else [prompts])))
        if (
            image.device.type == "cpu"
            and shared
            and not torch.is_grad_enabled()
            and len(image) > FEW
        ):
            return torch.cat(
                [self.encode_image(few, prompts, deep, adapt) for few in image.split(FEW)]
            )
        return self.visual(image.type(self.dtype), prompts, deep, adapt)

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids (N, L up to context_length), as `tokenize` makes them -> (N, D), not
        normalised."""
        x = self.token_embedding(text).type(self.dtype) + self.positional_embedding[
            : text.shape[1]
        ].type(self.dtype)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)
        # EOT has the highest id of all tokens.
        x = x[torch.arange(len(x), device=x.device), text.argmax(dim=-1)]
        return self.ln_final(x) @ self.text_projection

    def encode_prompts(
        self,
        prefix: Tensor,
        suffix: Tensor,
        suffixes: Suffixes,
        deep: Mapping[int, tuple[slice, Tensor]] = NOTHING,
        adapt: Adapt = NOTHING,
    ) -> Tensor:
        """Text features of C classes whose prompts begin alike.

        Attention is causal, so what the prefix becomes in each block does not depend on the class
            behind it: it is run
        once, and each class's suffix attends to the prefix's keys and values. The result is that of
        running every class whole (up to rounding), at the cost of the suffixes.

        Args:
            prefix: (G, P, W) embeddings before positions are added, SOS first; G prefixes, each
                with every class.
            suffix: (T, W) embeddings of the rest of each class's prompt, EOT last, one class behind
                the other.
            suffixes: says which are whose.
            deep: {block: (positions of the prefix, (1 or G, 1 or C, N, W))} replaces them at that
                block's input. From a block on where they are each class's own, every class has a
                prefix of its own.
            adapt: {block: function}, see Adapt.

        Returns: (G, C, D), not normalised.
        """
        groups, p, _ = prefix.shape
        if p + suffixes.longest > self.context_length:
            raise ValueError(
                f"prompts of {p + suffixes.longest} tokens; the text tower takes {self.context_length}"
            )
        position = self.positional_embedding.type(self.dtype)
        suffix = suffix.type(self.dtype) + position[p + suffixes.offset]
        x = torch.cat(
            [prefix.type(self.dtype) + position[:p], suffix.expand(groups, -1, -1)], dim=1
        )
        copies, look = 1, suffixes.look(1, p)
        for i, block in enumerate(self.transformer.resblocks):
            if i in deep:
                where, vectors = deep[i]
                before, behind = x[:, : copies * p].unflatten(1, (copies, p)), x[:, copies * p :]
                if vectors.shape[1] > copies:
                    copies, look = vectors.shape[1], suffixes.look(vectors.shape[1], p)
                before = before.expand(-1, copies, -1, -1)
                vectors = vectors.to(x.dtype).expand(groups, copies, -1, -1)
                before = torch.cat(
                    [before[:, :, : where.start], vectors, before[:, :, where.stop :]], dim=2
                )
                x = torch.cat([before.flatten(1, 2), behind], dim=1)
            # Only the EOT of each class is read in the end, so the last block computes nothing
            # else.
            if i < self.transformer.layers - 1:
                x = block(x, look, None, adapt.get(i))
            else:
                x = block(
                    x,
                    suffixes.look(copies, p, last_only=True),
                    copies * p + suffixes.last,
                    adapt.get(i),
                )
        return self.ln_final(x) @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosines of images and texts: (B, N) and its transpose."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        return logits, logits.t()


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Cast what OpenAI keeps in half precision: convolutions, linear layers, attention and the two
    projections.

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

    It computes in the type of `visual.conv1.weight`: half for OpenAI's archives, float32 for a
    float32 state dict. The tensors are used as they are where the type is right, not copied.

    Raises: Failure for weights that make no CLIP.
    """

    def count(prefix: str) -> int:
        return len(
            {k.removeprefix(prefix).split(".")[0] for k in state_dict if k.startswith(prefix)}
        )

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
        for key, own in model.state_dict().items():
            if (
                own.is_floating_point()
                and key in state_dict
                and not state_dict[key].is_floating_point()
            ):
                raise Failure(f"these weights make no CLIP: {key} has type {state_dict[key].dtype}")
        model.load_state_dict({k: v for k, v in state_dict.items() if k not in about}, assign=True)
    except KeyError as e:
        raise Failure(f"these weights make no CLIP: there is no {e.args[0]}") from e
    except (
        RuntimeError,
        IndexError,
        ArithmeticError,
        ValueError,
    ) as e:  # sizes that no tensors have
        raise Failure(f"these weights make no CLIP: {' '.join(str(e).split())[:300]}") from e
    convert_weights(model, conv1.dtype)
    return model.eval()
