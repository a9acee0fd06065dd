"""Dassl's name for this."""

from torch.optim import RAdam

__all__ = ["RAdam"]
