"""OpenAI's weights under transformers' names: the way back, by other means than clip/'s."""

import re
from collections.abc import Mapping

from torch import Tensor

SIZES = "input_resolution", "context_length", "vocab_size"  # OpenAI's, beside the weights
WORDS = [
    (r"^visual\.(proj)$", "visual_projection.weight"),
    (r"^text_projection$", "text_projection.weight"),
    (r"^visual\.", "vision_model."),
    (r"^(?=transformer|token_|positional_|ln_final)", "text_model."),
    (r"transformer\.resblocks", "encoder.layers"),
    (r"conv1", "embeddings.patch_embedding"),
    (r"class_embedding|token_embedding", r"embeddings.\g<0>"),
    (r"positional_embedding", "embeddings.position_embedding.weight"),
    (r"ln_pre", "pre_layrnorm"),
    (r"ln_post", "post_layernorm"),
    (r"ln_final", "final_layer_norm"),
    (r"ln_(\d)", r"layer_norm\1"),
    (r"\battn\b", "self_attn"),
    (r"c_fc", "fc1"),
    (r"c_proj", "fc2"),
]


def under_their_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' CLIPModel has for these weights."""
    result = {}
    for ours, tensor in weights.items():
        if ours in SIZES:
            continue
        name = ours
        for pattern, word in WORDS:
            name = re.sub(pattern, word, name)
        if "in_proj_" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                result[name.replace("in_proj_", f"{letter}_proj.")] = part.clone()
        else:
            result[name] = (tensor.T if "projection" in name else tensor).contiguous()
    return result
