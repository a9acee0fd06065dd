"""The words nearest to learned vectors: python -m inference.words SOURCE [TOPK].

SOURCE is a run's output folder, or a checkpoint file of this repository or of the family
(CoOp's interpret_prompt.py takes the same two arguments). Distances are Euclidean. The
nearest word is often far: compare its distance with the norm of the vector.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.download import sha256_of
from clip.weights import SMALL_SHA256, find_weights, read_state_dict
from dassl.commands import OneLineParser, command_line, leave
from dassl.engine.checkpoints import about_of
from dassl.utils import Failure, UsageError, load_checkpoint
from trainers.atprompt import attribute_words
from trainers.frozen_clip import other_clip

from .load import config_of, find_checkpoint

BUNDLED = "ViT-Tiny/8"
EXAMPLES = """examples:
  python -m inference.words output/base2new/train_base/dtd/shots_16/P2C/vit_b16_ep5_batch4/seed1
  python -m inference.words prompt_learner/model.pth.tar-200 3 --backbone RN50
"""
TEXT_PROMPT = re.compile(r"(?:.*\.)?(ctx(?:_att[123])?)")
MAPLE_DEEP = re.compile(r".*compound_prompts_text\.(\d+)")
# What a file has whose text prompts are no learned vectors -> why.
UNNAMED = {
    "text_prompts.posterior.": "VaMP's text prompts are draws from a Gaussian, by default one that"
    " a net makes of each image, so there are no vectors to name",
    "compound_rep_tokens": "MMRL's text tokens appear in an upper block (TRAINER.MMRL.REP_LAYERS),"
    " where they stand among features of words, so no word is near them",
}
PROMPTSRC_DEEP = re.compile(r".*text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow")


def tested_states(checkpoint: Mapping) -> dict[str, Mapping[str, Tensor]]:
    """The state_dict that a test reads, by "", or ReBaPL's samples by their names."""
    samples = enumerate(checkpoint.get("samples", []), start=1)
    named = {f"sample {i}, ": state for i, state in samples}
    return named or {"": checkpoint.get("state_dict", {})}


def learned_vectors(
    state: Mapping[str, Tensor], used: Sequence[str] | None, deep: bool
) -> dict[str, Tensor]:
    """(length, W) or, class-specific, (C, length, W) of each tensor of text prompts.

    Args:
        state: a checkpoint's state_dict.
        used: the attribute words, if known; the vectors of others, which files always have,
            are left out.
        deep: also the deep prompts.
    """
    found = {}
    for key, value in state.items():
        if match := TEXT_PROMPT.fullmatch(key):
            name = match[1]
            if used is not None and name.startswith("ctx_att"):
                place = int(name[-1])
                if place > len(used):
                    continue
                name += f" ({used[place - 1]})"
            found[name] = value
        elif deep and (match := MAPLE_DEEP.fullmatch(key)):  # the first is that of block 1
            found[f"block {int(match[1]) + 1}"] = value
        elif deep and (match := PROMPTSRC_DEEP.fullmatch(key)):
            found[f"block {match[1]}"] = value
    return found


def vectors_of(checkpoint: Path, cfg: CfgNode | None, deep: bool) -> dict[str, Tensor]:
    """`learned_vectors` of what a test reads of a checkpoint. Raises: Failure if it has none."""
    states = tested_states(load_checkpoint(str(checkpoint)))
    keys = [key for state in states.values() for key in state]
    has_attributes = any("ctx_att" in key for key in keys)
    used = attribute_words(cfg, always=True) if cfg and has_attributes else None
    vectors = {
        of + name: tensor
        for of, state in states.items()
        for name, tensor in learned_vectors(state, used, deep).items()
    }
    if not vectors:
        known = (why for part, why in UNNAMED.items() if any(part in key for key in keys))
        raise Failure(f"{checkpoint}: {next(known, 'holds no learned vectors of text prompts')}")
    return vectors


def nearest(vector: Tensor, embedding: Tensor, topk: int) -> list[tuple[int, float]]:
    """Token ids and distances of the `topk` rows of embedding (V, W) nearest to a vector (W,)."""
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(vector[None].float(), embedding.float(), compute_mode=exact)[0]
    least, ids = distance.topk(topk, largest=False)
    return list(zip(ids.tolist(), least.tolist(), strict=True))


def trained_tokens(file: Path) -> set[int]:
    """The tokens whose embeddings the bundled CLIP learned; empty for other files."""
    if sha256_of(file) != SMALL_SHA256:
        return set()
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return set(opened.get_tensor("token_embedding.ids").tolist())


def places(name: str, tensor: Tensor) -> list[str]:
    """What each vector of (length, W) or (C, length, W) is called."""
    if tensor.dim() == 2:
        return [f"{name} {i + 1}" for i in range(len(tensor))]
    classes, length, _ = tensor.shape
    return [f"{name}, class {c}, {i + 1}" for c in range(classes) for i in range(length)]


def weights_of(cfg: CfgNode | None, backbone: str) -> tuple[str, Path]:
    """Name and file of the CLIP: --backbone's, else the run's, else ViT-B/16."""
    if backbone or not cfg:
        name = backbone or "ViT-B/16"
        return name, find_weights(name)
    own = cfg.MODEL.BACKBONE
    return own.NAME, find_weights(own.NAME, own.WEIGHTS, own.MIRROR)


def show(checkpoint: Path, topk: int, backbone: str, deep: bool) -> str:
    """The table of a checkpoint. Raises: Failure if it is unreadable or does not fit the CLIP."""
    cfg = config_of(checkpoint.resolve().parent.parent)
    vectors = vectors_of(checkpoint, cfg, deep)
    model, file = weights_of(cfg, backbone)
    theirs = about_of(load_checkpoint(str(checkpoint))).get("clip") or {}
    ours = theirs | {"file": str(file), "sha256": sha256_of(file)}
    if not backbone and theirs and (line := other_clip(theirs, ours)):
        raise Failure(f"{checkpoint}: {line}; name its CLIP with --backbone")
    embedding = read_state_dict(file)["token_embedding.weight"]
    if not 1 <= topk <= len(embedding):
        raise UsageError(f"topk {topk}: must be 1 to {len(embedding)}")
    known = trained_tokens(file)
    rows = []
    for name, tensor in vectors.items():
        if tensor.shape[-1] != embedding.shape[1]:
            widths = f"{tensor.shape[-1]} numbers, {model}'s words {embedding.shape[1]}"
            raise UsageError(f"{checkpoint}: vectors of {widths}; name its CLIP with --backbone")
        for place, vector in zip(places(name, tensor), tensor.flatten(0, -2), strict=True):
            cells = [
                f"{'*' if i in known else ''}{_tokenizer.decoder[i]} {distance:.4f}"
                for i, distance in nearest(vector, embedding, topk)
            ]
            rows.append([place, f"{vector.float().norm():.4f}", *cells])
    headers = ["vector", "norm", *map(str, range(1, topk + 1))]
    text = tabulate(rows, headers, disable_numparse=True)
    text += f"\n\nWords of {model} and their Euclidean distances; {checkpoint}"
    if known:
        text += f"\nOnly {len(known)} of its {len(embedding)} words (*) were trained"
        text += "; the others' embeddings are random."
    return text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m inference.words", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    source = "output folder of a training run, or a checkpoint file"
    add("source", type=Path, metavar="SOURCE", help=source)
    add("place", nargs="?", type=int, metavar="TOPK", help="words for each vector; default: 5")
    add("--topk", type=int, default=5, metavar="K", help="the same")
    add("--deep", action="store_true", help="also the deep prompts of the text tower")
    add("--backbone", default="", metavar="CLIP", help="default: the run's, else ViT-B/16")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0; leaves with 1 or 2 and one line if something is wrong."""
    args = parse_args(argv)
    topk = args.topk if args.place is None else args.place
    try:
        print(show(find_checkpoint(args.source), topk, args.backbone, args.deep))
    except Failure as error:
        leave(str(error), error.exit_code)
    return 0


if __name__ == "__main__":
    command_line(main)
