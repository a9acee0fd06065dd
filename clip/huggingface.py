"""CLIPs as Hugging Face's transformers keeps them: folders, config.json, names of the tensors."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dassl.utils import read_json
from dassl.utils.errors import Failure, UsageError

FILES = "model.safetensors", "pytorch_model.bin"  # as transformers looks for them in a folder
SHARD = re.compile(r"-\d{5}-of-\d{5}\.|\.index\.json$")  # a part of a file, the list of its parts
# OpenAI's activation, and the one with which LAION, say, trained.
ACTIVATIONS = QUICK_GELU, GELU = "quick_gelu", "gelu"
HEAD_WIDTH, EPS = 64, 1e-5
# What a config.json need not say. (transformers' defaults, sizes are ViT-B's.)
DEFAULT = {"hidden_act": QUICK_GELU, "layer_norm_eps": EPS}
DEFAULTS = {
    "text": {**DEFAULT, "hidden_size": 512, "num_attention_heads": 8},
    "vision": {**DEFAULT, "hidden_size": 768, "num_attention_heads": 12},
}

# OpenAI's names -> transformers'.
OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # their spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
PROJECTIONS = "visual.proj", "text_projection"  # (W, D); theirs are a linear layer's, (D, W)
TOWERS = {"visual.transformer": "vision_model", "transformer": "text_model"}
# Each name goes on with "weight" and with "bias".
IN_BLOCK = {
    "attn.in_proj_": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "attn.out_proj.": ("self_attn.out_proj.",),
    "ln_1.": ("layer_norm1.",),
    "ln_2.": ("layer_norm2.",),
    "mlp.c_fc.": ("mlp.fc1.",),
    "mlp.c_proj.": ("mlp.fc2.",),
}


def file_of(path: Path) -> Path:
    """The file with the weights in a folder, as a clone from the hub is one; else the path itself.

    Raises: UsageError where the weights are in several files.
    """
    inside = [path / name for name in FILES if (path / name).is_file()]
    if inside:
        return inside[0]
    names = [file.name for file in path.glob("*")] if path.is_dir() else [path.name]
    if parts := sorted(filter(SHARD.search, names)):
        what = f"weights in several files ({parts[0]}); write them as one, with transformers"
        how = "CLIPModel.from_pretrained(FOLDER).save_pretrained(NEW, max_shard_size='99GB')"
        raise UsageError(f"{path}: {what}: {how}")
    return path


def activation_of(file: Path, given: str = "") -> str:
    """What the config.json beside a file of weights says, one of ACTIVATIONS.

    Without a config.json of transformers it is QuickGELU, as in OpenAI's files.

    Args:
        given: to be taken instead.

    Raises: UsageError for another `given`; Failure for a config.json of what `clip.model` does not
    compute.
    """
    if given and given not in ACTIVATIONS:
        raise UsageError(f"activation {given!r}: choose from {', '.join(ACTIVATIONS)}")
    path = file.parent / "config.json"
    config = read_json(str(path)) if path.exists() else None
    if not isinstance(config, dict) or "model_type" not in config:  # another program's
        return given or QUICK_GELU
    try:
        text, vision = _activations(config)
    except TypeError as error:
        raise Failure(f"{path}: not as transformers writes it ({error})") from error
    except Failure as error:
        raise Failure(f"{path}: {error}") from error
    if given or text == vision in ACTIVATIONS:
        return given or text
    what = f"hidden_act is {text} for texts and {vision} for images"
    raise Failure(f"{path}: {what}; both must be {' or both '.join(ACTIVATIONS)}")


def _activations(config: Mapping) -> list[str]:
    """hidden_act of the text and the image tower.

    Raises: Failure for a model that is not computed here, TypeError for odd values.
    """
    if (kind := config["model_type"]) != "clip":
        what = f"model_type is {kind}, and only clip can be computed here"
        raise Failure(f"{what}; if the weights are not of it, give them a folder of their own")
    activations = []
    for tower, default in DEFAULTS.items():
        # Old files have both, of which transformers takes the first.
        given = config.get(f"{tower}_config_dict") or config.get(f"{tower}_config") or {}
        said = default | given
        if said["hidden_size"] != HEAD_WIDTH * said["num_attention_heads"]:
            what = f"{said['hidden_size']} channels in {said['num_attention_heads']} heads"
            line = f"{tower}_config has {what}; only heads of {HEAD_WIDTH} can be computed here"
            raise Failure(line)
        if (eps := said["layer_norm_eps"]) != EPS:
            line = f"{tower}_config has layer_norm_eps {eps}; only {EPS} can be computed here"
            raise Failure(line)
        activations.append(said["hidden_act"])
    return activations


def is_transformers(names: Iterable[str]) -> bool:
    """Whether tensors are named as in transformers' CLIPModel, or one of its towers."""
    stems = "embeddings.token_embedding.weight", "embeddings.patch_embedding.weight"
    return any(name.endswith(stems) for name in names)


def to_openai(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' CLIPModel under OpenAI's names.

    Tensors that are the same in both are not copied.

    Raises: Failure, without the file's name, for those of another model or of part of one.
    """
    if "logit_bias" in weights:
        raise Failure("is a SigLIP (there is a logit_bias), which cannot be computed here")
    for tower, name in (("an image", "vision_model"), ("a text", "text_model")):
        if not any(key.startswith(f"{name}.encoder.layers.") for key in weights):
            raise Failure(f"has no {name}.… of {tower} tower; give the file of a whole CLIPModel")
    names = _names(weights)
    known = [theirs for parts in names.values() for theirs in parts]
    if missing := next((key for key in known if key not in weights), ""):
        raise Failure(f"is no whole CLIPModel of transformers (there is no {missing})")
    # Old files have position_ids too, 0, 1, 2, …
    given = {key for key in weights if not key.endswith(".position_ids")}
    if unknown := sorted(given.difference(known)):
        raise Failure(f"is no CLIPModel of transformers (which has no {unknown[0]})")
    try:
        ours = {name: _joined([weights[key] for key in parts]) for name, parts in names.items()}
        return ours | {name: ours[name].t().contiguous() for name in PROJECTIONS}
    except RuntimeError as error:
        raise Failure(f"has tensors of odd shapes ({error})") from error


def _names(weights: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """OpenAI's name of each tensor -> transformers' names of its parts, one below the other."""
    names = {ours: (theirs,) for ours, theirs in OUTSIDE.items()}
    for ours, theirs in TOWERS.items():
        block = re.compile(rf"{theirs}\.encoder\.layers\.(\d+)\.")
        for i in range(len({found[1] for key in weights if (found := block.match(key))})):
            for name, parts in IN_BLOCK.items():
                for kind in ("weight", "bias"):
                    names[f"{ours}.resblocks.{i}.{name}{kind}"] = tuple(
                        f"{theirs}.encoder.layers.{i}.{part}{kind}" for part in parts
                    )
    return names


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
