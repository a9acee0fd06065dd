import pytest
import torch
from torch import nn

from dassl.engine import SimpleNet
from dassl.modeling import NETWORK_REGISTRY, build_backbone, build_network
from dassl.utils import (
    UsageError,
    count_num_param,
    init_network_weights,
    open_all_layers,
    open_specified_layers,
)


def test_simple_net(cfg):
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = "resnet18", False
    cfg.MODEL.HEAD.NAME, cfg.MODEL.HEAD.HIDDEN_LAYERS = "mlp", (7,)
    net = SimpleNet(cfg, cfg.MODEL, 3).eval()
    logits, features = net(torch.zeros(2, 3, 32, 32), return_feature=True)
    assert logits.shape == (2, 3) and features.shape == (2, 7) and net.fdim == 7


def test_by_name():
    NETWORK_REGISTRY.register(nn.Identity)
    assert isinstance(build_network("Identity", verbose=False), nn.Identity)
    with pytest.raises(UsageError, match="did you mean resnet50?"):
        build_backbone("resnet-50")


def test_opening_layers():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    open_specified_layers(net, "1")
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert (net[0].training, net[1].training) == (False, True)
    open_all_layers(net)
    assert all(p.requires_grad for p in net.parameters()) and net[0].training
    with pytest.raises(KeyError):
        open_specified_layers(net, ["2"])
    assert (
        count_num_param(net)
        == 9 + 6
        == count_num_param(params=[{"params": list(net.parameters())}])
    )


def test_initialising():
    net = nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.LayerNorm(4))
    with torch.no_grad():
        net[1].weight.fill_(3)
    init_network_weights(net, "normal", gain=0.5)
    assert net[0].weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert net[0].bias.eq(0).all() and net[1].weight.eq(1).all()
