"""Dassl's name for these."""

from dassl.thirdparty.modeling import NETWORK_REGISTRY, build_network

__all__ = ["NETWORK_REGISTRY", "build_network"]
