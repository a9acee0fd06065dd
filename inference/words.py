"""The words nearest to learned vectors, by Euclidean distance: python -m inference.words SOURCE
[TOPK].

SOURCE is a run's output folder, or a checkpoint file of this repository or of the family (CoOp's
interpret_prompt.py takes the same two arguments). The nearest word is often far: compare its
distance with the norm of the vector.
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from yacs.config import CfgNode

from clip.clip import _MODELS, _tokenizer, find_weights, read_state_dict
from dassl.commands import OneLineParser, command_line, leave
from dassl.files import BEST, resumable
from dassl.utils import Failure, UsageError, load_checkpoint
from train import parse_args as train_args
from train import setup_cfg
from trainers.atprompt import attribute_words

BUNDLED = "ViT-Tiny/8"
EXAMPLES = """examples:
  python -m inference.words output/base2new/train_base/dtd/shots_16/P2C/vit_b16_ep5_batch4/seed1
  python -m inference.words prompt_learner/model.pth.tar-200 3 --backbone RN50
"""
TEXT_PROMPT = re.compile(r"(?:.*\.)?(ctx(?:_att[123])?)")
DEEP_PROMPT = re.compile(
    r".*(?:compound_prompts_text\.(\d+)|text_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow)"
)


def find_checkpoint(source: Path) -> Path:
    """The file itself, or in an output folder the model that is tested: the best one, else the
    newest.

    Raises: UsageError if there is none.
    """
    if os.path.isfile(source):
        return source
    if not os.path.isdir(source):
        raise UsageError(f"{source}: no such file or folder")
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        if names := [BEST] * (folder / BEST).is_file() or resumable(str(folder)):
            return folder / names[0]
    raise UsageError(f"{source}: no checkpoint in it")


def config_of(checkpoint: Path) -> CfgNode | None:
    """The config recorded in the output folder that the checkpoint lies in; None if there is
    none."""
    file = checkpoint.resolve().parent.parent / "config.yaml"
    return setup_cfg(train_args(["--config-file", str(file)])) if file.is_file() else None


def learned_vectors(
    state: dict[str, Tensor], used: Sequence[str] | None, deep: bool
) -> dict[str, Tensor]:
    """(length, W) or, class-specific, (C, length, W) of each tensor of text prompts.

    Args:
        state: a checkpoint's state_dict.
        used: the attribute words, if known; vectors of further attributes, which files always have,
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
        elif deep and (match := DEEP_PROMPT.fullmatch(key)):
            # MaPLe's first deep prompt is that of block 1, PromptSRC's are named by block
            found[f"block {int(match[1]) + 1 if match[1] else match[2]}"] = value
    return found


def nearest(vectors: Tensor, embedding: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Distances and token ids, (N, topk) each, of the rows of embedding (V, W) nearest to vectors
    (N, W)."""
    distance = torch.cdist(
        vectors.float(), embedding.float(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distance.topk(topk, largest=False)


def trained_rows(name: str) -> set[int] | None:
    """The tokens whose embeddings the bundled CLIP learned; None for other models."""
    if _MODELS.get(name) != _MODELS[BUNDLED]:
        return None
    from safetensors import safe_open

    with safe_open(find_weights(name), "pt") as file:
        return set(file.get_tensor("token_embedding.ids").tolist())


def show(checkpoint: Path, topk: int, backbone: str, deep: bool) -> str:
    """The table of a checkpoint. Raises Failure if it cannot be read or does not fit the CLIP."""
    state = load_checkpoint(str(checkpoint))
    cfg = config_of(checkpoint)
    model = backbone or (cfg.MODEL.BACKBONE.NAME if cfg else "ViT-B/16")
    weights = (
        (cfg.MODEL.BACKBONE.WEIGHTS, cfg.MODEL.BACKBONE.MIRROR) if cfg and not backbone else ()
    )
    state = state.get("state_dict", {}) if isinstance(state, dict) else {}
    used = (
        attribute_words(cfg, always=True)
        if cfg and any("ctx_att" in key for key in state)
        else None
    )
    vectors = learned_vectors(state, used, deep)
    if not vectors:
        raise Failure(f"{checkpoint}: holds no learned vectors of text prompts")
    embedding = read_state_dict(find_weights(model, *weights))["token_embedding.weight"]
    known = trained_rows(model)
    rows = []
    for name, tensor in vectors.items():
        if tensor.shape[-1] != embedding.shape[1]:
            widths = f"{tensor.shape[-1]} numbers, {model}'s words {embedding.shape[1]}"
            raise UsageError(f"{checkpoint}: vectors of {widths}; name its CLIP with --backbone")
        if not 1 <= topk <= len(embedding):
            raise UsageError(f"topk {topk}: must be 1 to {len(embedding)}")
        for place, vector in zip(places(name, tensor), tensor.flatten(0, -2), strict=True):
            distances, ids = nearest(vector[None], embedding, topk)
            words = [
                f"{'*' * bool(known and i in known)}{_tokenizer.decoder[i]}"
                for i in ids[0].tolist()
            ]
            cells = [
                f"{word} {d:.4f}" for word, d in zip(words, distances[0].tolist(), strict=True)
            ]
            rows.append([place, f"{vector.float().norm():.4f}", *cells])
    text = tabulate(rows, ["vector", "norm", *map(str, range(1, topk + 1))], disable_numparse=True)
    text += f"\n\nWords of {model} and their Euclidean distances; {checkpoint}"
    if known:
        text += f"\nOnly {len(known)} of its {len(embedding)} words (*) were trained; the others' embeddings are random."
    return text


def places(name: str, tensor: Tensor) -> list[str]:
    """What each vector of (length, W) or (C, length, W) is called."""
    if tensor.dim() == 2:
        return [f"{name} {i + 1}" for i in range(len(tensor))]
    return [
        f"{name}, class {c}, {i + 1}" for c in range(len(tensor)) for i in range(tensor.shape[1])
    ]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m inference.words", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add(
        "source",
        type=Path,
        metavar="SOURCE",
        help="output folder of a training run, or a checkpoint file",
    )
    add("place", nargs="?", type=int, metavar="TOPK", help="words for each vector; default: 5")
    add("--topk", type=int, default=5, metavar="K", help="the same")
    add("--deep", action="store_true", help="also the deep prompts of the text tower")
    add("--backbone", default="", metavar="CLIP", help="default: the run's, else ViT-B/16")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0; leaves with 1 or 2 and one line if something is wrong."""
    args = parse_args(argv)
    try:
        print(
            show(
                find_checkpoint(args.source),
                args.topk if args.place is None else args.place,
                args.backbone,
                args.deep,
            )
        )
    except Failure as error:
        leave(str(error), error.exit_code)
    return 0


if __name__ == "__main__":
    command_line(main)
