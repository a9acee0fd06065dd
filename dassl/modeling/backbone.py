"""Dassl's name for these."""

from dassl.thirdparty.modeling import BACKBONE_REGISTRY, Backbone, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]
