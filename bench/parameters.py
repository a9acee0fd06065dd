"""How many parameters each method learns on ViT-B/16 as published: python -m bench.parameters."""

import argparse
from pathlib import Path

import torch

import train
from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY
from trainers.base import CLIPTrainer

from .record import Record, add_record

CLASSNAMES = ["cat", "dog"]  # no method's number of parameters depends on them, but CoOp's with CSC


def vit_b16() -> CLIP:
    """With random weights: only shapes are counted."""
    torch.manual_seed(0)
    clip_model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    clip_model.initialize_parameters()
    return clip_model.requires_grad_(False).eval()


def count(clip_model: CLIP, config: Path) -> tuple[int, int]:
    """Learned numbers, and the tensors they are in."""
    method = TRAINER_REGISTRY.get(config.parent.name)
    flags = ["--trainer", config.parent.name, "--config-file", str(config)]
    flags += ["--dataset-config-file", "configs/datasets/imagenet.yaml"]
    trainer = method.__new__(method)
    trainer.cfg = train.setup_cfg(train.parse_args(flags))
    trainer.seed = trainer.cfg.SEED
    if not isinstance(trainer, CLIPTrainer):
        return 0, 0
    learned = list(trainer.build_learner(clip_model, CLASSNAMES).parameters())
    return sum(p.numel() for p in learned), len(learned)


def main() -> None:
    """Prints a row for each config of a ViT-B/16."""
    parser = argparse.ArgumentParser("python -m bench.parameters", description=__doc__)
    add_record(parser)
    record = Record(parser.parse_args().record, parser.prog)
    clip_model, rows = vit_b16(), []
    for config in sorted(Path("configs/trainers").glob("*/vit_b16*.yaml")):
        total, tensors = count(clip_model, config)
        row = {"method": config.parent.name, "config": config.stem}
        rows.append(row | {"parameters": f"{total:,}", "tensors": tensors})
    print(record.table("parameters", rows))


if __name__ == "__main__":
    main()
