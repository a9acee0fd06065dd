from torch import nn

from dassl.utils import Registry

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name: str, verbose: bool = True, **kwargs) -> nn.Module:
    """The registered network of that name; raises UsageError if there is none."""
    network = NETWORK_REGISTRY.get(name)
    if verbose:
        print(f"Network: {name}")
    return network(**kwargs)
