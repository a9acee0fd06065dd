from typing import Any

from . import trainer
from .build import TRAINER_REGISTRY, build_trainer
from .trainer import SimpleTrainer, TrainerBase, TrainerX

__all__ = ["TRAINER_REGISTRY", "SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU",
           "build_trainer"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """TrainerXU and SimpleNet, loaded only for third-party files."""
    return trainer.__getattr__(name)
