"""Random weights under the keys of OpenAI's CLIP checkpoints, and the archives these come in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

CONTEXT_LENGTH = 77
VOCAB_SIZE = 49408


@dataclass(frozen=True)
class Arch:
    """Sizes of a CLIP with a ViT."""

    embed_dim: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int


ARCHS = {
    "ViT-B/32": Arch(512, 224, 32, 768, 12, 512, 12),
    "ViT-B/16": Arch(512, 224, 16, 768, 12, 512, 12),
    "ViT-L/14": Arch(768, 224, 14, 1024, 24, 768, 12),
    "tiny": Arch(64, 32, 8, 128, 3, 64, 3),
}


def openai_state_dict(
    arch: str, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random weights of `arch` (a key of ARCHS) under OpenAI's names; a seed fixes the values.

    No bias is zero, no LayerNorm gain is one, exp(logit_scale) is not 100: a forgotten one shows.
    Tensors are `dtype`, except that torch.float16 gives the mixture of OpenAI's archives: matrix
    products in half; LayerNorms, embeddings and logit_scale in float32.
    """
    a = ARCHS[arch]
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=rng) * std + mean

    weights: dict[str, Tensor] = {}

    def layer_norm(name: str, width: int) -> None:
        weights[f"{name}.weight"] = normal(width, std=0.2, mean=1.0)
        weights[f"{name}.bias"] = normal(width, std=0.1)

    def linear(name: str, n_in: int, n_out: int, gain: float = 1.0) -> None:
        weights[f"{name}.weight"] = normal(n_out, n_in, std=gain / math.sqrt(n_in))
        weights[f"{name}.bias"] = normal(n_out, std=0.1)

    def transformer(name: str, width: int, layers: int) -> None:
        into_residual = 1 / math.sqrt(2 * layers)  # of as many additions, so their sum stays O(1)
        for i in range(layers):
            block = f"{name}.resblocks.{i}"
            in_proj = normal(3 * width, width, std=1 / math.sqrt(width))
            # Queries and keys: attention that picks, so that texts and images differ.
            in_proj[: 2 * width] *= 1.5
            weights[f"{block}.attn.in_proj_weight"] = in_proj
            weights[f"{block}.attn.in_proj_bias"] = normal(3 * width, std=0.1)
            linear(f"{block}.attn.out_proj", width, width, into_residual)
            layer_norm(f"{block}.ln_1", width)
            linear(f"{block}.mlp.c_fc", width, 4 * width)
            linear(f"{block}.mlp.c_proj", 4 * width, width, 1.5 * into_residual)
            layer_norm(f"{block}.ln_2", width)

    n_patches = (a.image_size // a.patch_size) ** 2
    patch_inputs = 3 * a.patch_size**2

    # Vision tower
    weights["visual.class_embedding"] = normal(a.vision_width, std=0.5)
    weights["visual.positional_embedding"] = normal(n_patches + 1, a.vision_width, std=0.5)
    weights["visual.proj"] = normal(a.vision_width, a.embed_dim, std=1 / math.sqrt(a.vision_width))
    weights["visual.conv1.weight"] = normal(
        a.vision_width, 3, a.patch_size, a.patch_size, std=1 / math.sqrt(patch_inputs)
    )
    layer_norm("visual.ln_pre", a.vision_width)
    transformer("visual.transformer", a.vision_width, a.vision_layers)
    layer_norm("visual.ln_post", a.vision_width)

    # Text tower. Embeddings are as small as CLIP's, so that prompts of std 0.02 are like them.
    weights["positional_embedding"] = normal(CONTEXT_LENGTH, a.text_width, std=0.01)
    weights["text_projection"] = normal(a.text_width, a.embed_dim, std=1 / math.sqrt(a.text_width))
    transformer("transformer", a.text_width, a.text_layers)
    weights["token_embedding.weight"] = normal(VOCAB_SIZE, a.text_width, std=0.02)
    layer_norm("ln_final", a.text_width)

    weights["logit_scale"] = torch.tensor(4.0)  # exp(4) = 54.6; OpenAI's trained models have 100

    cast = {key: w.to(dtype) for key, w in weights.items()}
    weights = in_half(weights) if dtype == torch.float16 else cast

    weights["input_resolution"] = torch.tensor(a.image_size)
    weights["context_length"] = torch.tensor(CONTEXT_LENGTH)
    weights["vocab_size"] = torch.tensor(VOCAB_SIZE)
    return weights


def in_half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ViT's weights in the types of OpenAI's archives: its matrix products in half."""

    def is_half(key: str) -> bool:
        in_block = ".attn." in key or ".mlp." in key
        return in_block or key in ("visual.conv1.weight", "visual.proj", "text_projection")

    return {key: w.half() if is_half(key) else w for key, w in weights.items()}


def save_torchscript(state_dict: dict[str, Tensor], path: str | Path) -> None:
    """Write a TorchScript archive that torch.jit.load reads as these keys and values.

    The order of the keys may differ (a module lists its own tensors before its children's).
    """
    root = _Root()
    for key, value in state_dict.items():
        *parents, name = key.split(".")
        module: nn.Module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, _Node())
            module = module._modules[parent]
        value = value.detach().clone()
        if value.is_floating_point():
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, but OpenAI's format
        torch.jit.script(root).save(str(path))


class _Node(nn.Module):
    pass


class _Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x
