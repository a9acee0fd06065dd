"""How many parameters each method learns on ViT-B/16 as published: python -m
bench.parameters."""

from pathlib import Path

import torch
from tabulate import tabulate

import train
from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer

CLASSNAMES = ["cat", "dog"]  # no method's number of parameters depends on them, but CoOp's with CSC


def vit_b16() -> CLIP:
    """With random weights: only shapes are counted."""
    torch.manual_seed(0)
    clip_model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    clip_model.initialize_parameters()
    return clip_model.requires_grad_(False).eval()


def count(clip_model: CLIP, config: Path) -> tuple[int, int]:
    """Learned numbers, and the tensors they are in."""
    name = config.parent.name
    flags = [
        "--trainer",
        name,
        "--config-file",
        str(config),
        "--dataset-config-file",
        "configs/datasets/imagenet.yaml",
    ]
    trainer = TRAINER_REGISTRY.get(name).__new__(TRAINER_REGISTRY.get(name))
    trainer.cfg = train.setup_cfg(train.parse_args(flags))
    if not isinstance(trainer, CLIPTrainer):
        return 0, 0
    learned = list(trainer.build_learner(clip_model, CLASSNAMES).parameters())
    return sum(p.numel() for p in learned), len(learned)


def main() -> None:
    clip_model = vit_b16()
    rows = []
    for config in sorted(Path("configs/trainers").glob("*/vit_b16*.yaml")):
        total, tensors = count(clip_model, config)
        rows.append([config.parent.name, config.stem, f"{total:,}", tensors])
    print(
        tabulate(
            rows, ["method", "config", "parameters", "tensors"], "github", disable_numparse=True
        )
    )


if __name__ == "__main__":
    main()
