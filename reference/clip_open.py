"""open_clip's model on weights in OpenAI's layout: the second, wholly foreign oracle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from open_clip.model import build_model_from_openai_state_dict
from torch import Tensor, nn


def build_open_clip(
    state_dict: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> nn.Module:
    """encode_text(tokens), encode_image(image), logit_scale; frozen, in `dtype`.

    open_clip rounds the weights to half on the way, so they are loaded once more after going to
    `dtype`.
    """
    model = build_model_from_openai_state_dict(dict(state_dict), cast_dtype=dtype).to(dtype)
    scalars = ("input_resolution", "context_length", "vocab_size")
    model.load_state_dict({key: w for key, w in state_dict.items() if key not in scalars})
    return model.requires_grad_(False).eval()
