"""Datasets by name."""

from yacs.config import CfgNode

from dassl.utils import Registry

from .base_dataset import DatasetBase

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> DatasetBase:
    """The dataset cfg.DATASET.NAME names; raises UsageError if there is none."""
    return DATASET_REGISTRY.build(cfg, cfg.DATASET.NAME)
