"""Trainers by name."""

from yacs.config import CfgNode

from dassl.utils import Registry

from .trainer import TrainerBase

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> TrainerBase:
    """The trainer cfg.TRAINER.NAME names; raises UsageError if there is none."""
    return TRAINER_REGISTRY.build(cfg, cfg.TRAINER.NAME)
