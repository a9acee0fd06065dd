from torch import nn

from dassl.utils import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module):
    """Images (B, 3, H, W) -> features (B, out_features). A subclass sets _out_features."""

    @property
    def out_features(self) -> int:
        return self._out_features


class _ResNet(Backbone):
    def __init__(self, name: str, pretrained: bool):
        super().__init__()
        from torchvision.models import get_model

        self.net = get_model(name, weights="DEFAULT" if pretrained else None)
        self._out_features = self.net.fc.in_features
        self.net.fc = nn.Identity()

    def forward(self, x):
        return self.net(x)


def _register(name: str) -> None:
    def build(pretrained: bool = True, **kwargs) -> Backbone:
        return _ResNet(name, pretrained)

    build.__name__ = name
    BACKBONE_REGISTRY.register(build)


for _name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
    _register(_name)


def build_backbone(name: str, verbose: bool = True, **kwargs) -> Backbone:
    """The registered backbone of that name; raises UsageError if there is none."""
    backbone = BACKBONE_REGISTRY.get(name)
    if verbose:
        print(f"Backbone: {name}")
    return backbone(**kwargs)
