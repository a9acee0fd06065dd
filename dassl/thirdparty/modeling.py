"""Models by name: a backbone, perhaps a head, a linear classifier."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import Registry, check_availability, load_pretrained_weights, ranks

from .tools import count_num_param

if TYPE_CHECKING:
    from dassl.engine import SimpleTrainer

BACKBONE_REGISTRY = Registry("BACKBONE")
HEAD_REGISTRY = Registry("HEAD")
NETWORK_REGISTRY = Registry("NETWORK")
_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


def build_backbone(name: str, verbose: bool = True, **kwargs) -> "Backbone":
    """The registered backbone of that name; raises UsageError if there is none."""
    return _build(BACKBONE_REGISTRY, "Backbone", name, verbose, kwargs)


def build_head(name: str, verbose: bool = True, **kwargs) -> nn.Module:
    """The registered head of that name; raises UsageError if there is none."""
    return _build(HEAD_REGISTRY, "Head", name, verbose, kwargs)


def build_network(name: str, verbose: bool = True, **kwargs) -> nn.Module:
    """The registered network of that name; raises UsageError if there is none."""
    return _build(NETWORK_REGISTRY, "Network", name, verbose, kwargs)


def _build(registry: Registry, kind: str, name: str, verbose: bool, kwargs: dict) -> nn.Module:
    build = registry.get(name)
    if verbose:
        print(f"{kind}: {name}")
    return build(**kwargs)


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

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def _register(name: str) -> None:
    def build(pretrained: bool = True, **kwargs) -> Backbone:
        return _ResNet(name, pretrained)

    build.__name__ = name
    BACKBONE_REGISTRY.register(build)


for _name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
    _register(_name)


class MLP(nn.Sequential):
    """Linear layers, each followed by batch norm, activation and dropout."""

    def __init__(
        self, in_features: int, hidden_layers: Sequence[int], activation: str = "relu",
        bn: bool = True, dropout: float = 0.0,
    ):  # fmt: skip
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


class SimpleNet(nn.Module):
    """Backbone, optional head, linear classifier (if num_classes > 0)."""

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs):
        super().__init__()
        c, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone = build_backbone(c.NAME, cfg.VERBOSE, pretrained=c.PRETRAINED, **kwargs)
        self.fdim = self.backbone.out_features
        self.head = None
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME, cfg.VERBOSE, in_features=self.fdim, hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION, bn=head.BN, dropout=head.DROPOUT, **kwargs,
            )  # fmt: skip
            self.fdim = self.head.out_features
        self.classifier = nn.Linear(self.fdim, num_classes) if num_classes > 0 else None

    def forward(self, x: Tensor, return_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> logits (B, num_classes), or features (B, fdim)."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        logits = self.classifier(features)
        return (logits, features) if return_feature else logits


def build_simple_net(trainer: "SimpleTrainer") -> None:
    """Gives a trainer a SimpleNet as its model, on all GPUs there are."""
    cfg = trainer.cfg
    net = SimpleNet(cfg, cfg.MODEL, trainer.num_classes)
    if cfg.MODEL.INIT_WEIGHTS:
        load_pretrained_weights(net, cfg.MODEL.INIT_WEIGHTS)
    net.to(trainer.device)
    print(f"# params: {count_num_param(net):,}")
    trainer.optim = build_optimizer(net, cfg.OPTIM)
    trainer.sched = build_lr_scheduler(trainer.optim, cfg.OPTIM)
    trainer.register_model("model", net, trainer.optim, trainer.sched)
    gpus = torch.cuda.device_count() if trainer.device.type == "cuda" else 0
    several = gpus > 1 and ranks.count() == 1  # each of several processes has a GPU of its own
    trainer.model = nn.DataParallel(net) if several else net
