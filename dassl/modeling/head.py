"""Dassl's name for these."""

from dassl.thirdparty.modeling import HEAD_REGISTRY, MLP, build_head, mlp

__all__ = ["HEAD_REGISTRY", "MLP", "build_head", "mlp"]
