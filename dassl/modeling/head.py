"""Dassl's name for these."""

from dassl.thirdparty.modeling import HEAD_REGISTRY, build_head

__all__ = ["HEAD_REGISTRY", "build_head"]
