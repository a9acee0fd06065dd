"""Dassl's name for these."""
# ruff: noqa: I001  the names stand in tables, not one a line
# fmt: off

from dassl.thirdparty.modeling import (BACKBONE_REGISTRY, HEAD_REGISTRY, NETWORK_REGISTRY, Backbone,
                                       build_backbone, build_head, build_network)

__all__ = ["BACKBONE_REGISTRY", "HEAD_REGISTRY", "NETWORK_REGISTRY", "Backbone", "build_backbone",
           "build_head", "build_network"]
