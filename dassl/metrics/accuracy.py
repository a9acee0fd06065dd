"""Dassl's name for this."""

from dassl.thirdparty.tools import compute_accuracy

__all__ = ["compute_accuracy"]
