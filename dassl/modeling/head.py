from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from dassl.utils import Registry, check_availability

HEAD_REGISTRY = Registry("HEAD")
_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Sequential):
    """Linear layers, each followed by batch norm, activation and dropout."""

    def __init__(
        self,
        in_features: int,
        hidden_layers: Sequence[int],
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ):
        check_availability(activation, _ACTIVATIONS, "activation")
        layers = []
        for width_in, width in pairwise([in_features, *hidden_layers]):
            layers += [nn.Linear(width_in, width), nn.BatchNorm1d(width) if bn else nn.Identity()]
            layers += [_ACTIVATIONS[activation](), nn.Dropout(dropout)]
        super().__init__(*layers)
        self.out_features = hidden_layers[-1]


@HEAD_REGISTRY.register()
def mlp(**kwargs) -> MLP:
    return MLP(**kwargs)


def build_head(name: str, verbose: bool = True, **kwargs) -> nn.Module:
    """The registered head of that name; raises UsageError if there is none."""
    head = HEAD_REGISTRY.get(name)
    if verbose:
        print(f"Head: {name}")
    return head(**kwargs)
