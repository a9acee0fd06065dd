"""The frozen CLIP that a config names: its weights, and the precision in which it computes."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from clip.download import sha256_of
from clip.huggingface import ACTIVATIONS, QUICK_GELU, activation_of
from clip.model import CLIP, Transformer
from clip.weights import build_model, convert_weights, find_weights, read_state_dict, source_of
from dassl.config.check import allow
from dassl.utils.errors import UsageError

# PREC -> the type of the frozen CLIP's large weights. tf32 is float32 whose products a GPU may
# round to TF32's 10 bits; amp computes in float16 what autocast allows.
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "amp": torch.float32,
}

allow(
    f'{" or ".join(ACTIVATIONS)}, or "" for what the config.json beside the weights says',
    lambda v: v in ("", *ACTIVATIONS),
    "BACKBONE.ACTIVATION",
)


def add_config(cfg: CfgNode) -> None:
    """Adds where the weights come from, if not from OpenAI, and what they do not tell."""
    node = cfg.MODEL.BACKBONE
    node.WEIGHTS = ""  # a file or address instead of OpenAI's; or the environment's CLIP_WEIGHTS
    node.MIRROR = ""  # an address with copies of OpenAI's files; or CLIP_MIRROR
    node.ACTIVATION = ""  # quick_gelu or gelu; else as the config.json beside it says, or QuickGELU


def check_clip(cfg: CfgNode) -> None:
    """Checks MODEL as far as that is possible before data and weights are read.

    Raises: UsageError for a head, which no CLIP has, and for a name or path that has no weights;
    Failure for a config.json of another model.
    """
    backbone, head = cfg.MODEL.BACKBONE, cfg.MODEL.HEAD.NAME
    if head:
        why = "has no effect, as there is no head on a CLIP"
        raise UsageError(f"MODEL.HEAD.NAME {head} (--head): {why}")
    if not (backbone.NAME or backbone.WEIGHTS):
        folder = f"configs/trainers/{cfg.TRAINER.NAME}"
        raise UsageError(f"no CLIP is named: give --config-file, one of {folder}, or --backbone")
    source = source_of(backbone.NAME, backbone.WEIGHTS)
    if isinstance(source, Path):  # it is there already
        activation_of(source, backbone.ACTIVATION)


def load_clip(cfg: CfgNode, dtype: torch.dtype, device: torch.device) -> CLIP:
    """The CLIP that MODEL.BACKBONE names, frozen, its large weights in dtype, on the device.

    Its `source` has name, file and SHA-256, for results.json and checkpoints: a name alone does not
    tell files apart. It has the activation too, if that is not QuickGELU.
    """
    backbone = cfg.MODEL.BACKBONE
    file = find_weights(backbone.NAME, backbone.WEIGHTS, backbone.MIRROR)
    activation = activation_of(file, backbone.ACTIVATION)
    other = {} if activation == QUICK_GELU else {"activation": activation}
    if cfg.VERBOSE:
        print(f"CLIP weights: {file}" + (f" (activation: {activation})" if other else ""))
    model = build_model(read_state_dict(file), activation)
    model.source = {"name": backbone.NAME, "file": str(file), "sha256": sha256_of(file), **other}
    convert_weights(model, dtype)
    given, size = tuple(cfg.INPUT.SIZE), model.visual.input_resolution
    if given != (size, size):
        raise UsageError(f"INPUT.SIZE {given}: {file} takes images of ({size}, {size})")
    return model.requires_grad_(False).to(device)


def other_clip(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """That two CLIPs are not the same, in words; "" if they are, or one does not say.

    Args:
        theirs: `source` of the CLIP that a model was trained on; ours: of the present one.
    """
    if theirs.get("sha256") is None:
        return ""
    if theirs["sha256"] != ours.get("sha256"):
        was = f"{theirs.get('name')}, {theirs.get('file')}, SHA-256 {theirs['sha256'][:12]}…"
        return f"trained on another CLIP ({was}) than {ours['file']} ({ours['sha256'][:12]}…)"
    was, now = (source.get("activation", QUICK_GELU) for source in (theirs, ours))
    if was != now:
        why = "by the config.json beside it, or MODEL.BACKBONE.ACTIVATION"
        return f"trained with activation {was}, and {ours['file']} has {now} ({why})"
    return ""


def choose_precision(prec: str, device: torch.device, fixed: bool = False) -> str:
    """PREC, one of PRECISIONS, as the device has it: a CPU computes fp16, amp and tf32 in fp32.

    On a CPU the log says so, and whether bf16 would be faster.

    Args:
        fixed: the method has no PREC that a user could change.
    """
    if device.type != "cpu":
        return prec
    fast = multiplies_in_bf16()
    if prec == "bf16":
        slow = "this CPU has no products in it that PyTorch knows of, fp32 is faster"
        print("Precision: bf16" + ("" if fast else f"; {slow}"))
        return prec
    why = f", since a CPU does not gain from {prec}" if prec != "fp32" else ""
    hint = "this CPU multiplies in bf16 too: PREC bf16 is faster for a large CLIP, and less exact"
    print(f"Precision: fp32{why}" + (f"; {hint}" if fast and not fixed else ""))
    return "fp32"


def autocast_of(prec: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Makes the context in which a precision computes: amp's, of the others none."""
    return partial(torch.autocast, device.type, torch.float16) if prec == "amp" else nullcontext


def multiplies_in_bf16() -> bool:
    """Whether PyTorch can tell that the CPU has instructions for products in bfloat16."""
    names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"  # older PyTorch has neither
    return any(getattr(torch.cpu, name, bool)() for name in names)


def allow_tf32(allowed: bool) -> None:
    """Whether a GPU may round float32 products to TF32; PyTorch's default does in convolutions."""
    # Not torch.backends.fp32_precision, new in 2.9: reading one kind of name is an error where the
    # other was set.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def check_depth(key: str, depth: int, *towers: Transformer, first: int = 1) -> None:
    """Raises UsageError if a tower has no block `depth`, counted from `first`."""
    last = min(tower.layers for tower in towers) - 1 + first
    if not first <= depth <= last:
        raise UsageError(f"{key} {depth}: this CLIP's towers allow {first} to {last}")
