"""Trainers by name."""

from collections.abc import Sequence

from yacs.config import CfgNode

from dassl.data import NoData
from dassl.utils import Registry

from .trainer import TrainerBase

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode, classnames: Sequence[str] | None = None) -> TrainerBase:
    """The trainer cfg.TRAINER.NAME names; raises UsageError if there is none.

    Args:
        classnames: without any dataset, for a model that shall know these classes.
    """
    method = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    trainer = method.__new__(method)
    if classnames is not None:
        trainer.dm = NoData(classnames)
    trainer.__init__(cfg)
    return trainer
