"""Small helpers of Dassl's on outputs, modules and optimizers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@torch.no_grad()
def compute_accuracy(
    output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)
) -> list[Tensor]:
    """Top-k accuracies in percent, one 0-dim tensor on output's device per k.

    output: (B, C) scores, or a sequence that starts with them; target: (B,) labels.
    """
    scores = output[0] if isinstance(output, (tuple, list)) else output
    hits = scores.topk(max(topk), dim=1).indices == target[:, None]
    return [100 * hits[:, :k].any(dim=1).float().mean() for k in topk]


def count_num_param(model: nn.Module | list | None = None, params: list | None = None) -> int:
    """Number of parameters of a model, or of parameters or optimizer groups."""
    params = model.parameters() if params is None else params
    groups = [p["params"] if isinstance(p, dict) else [p] for p in params]
    return sum(p.numel() for group in groups for p in group)


def open_all_layers(model: nn.Module) -> None:
    """Train mode and gradients for every parameter."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Train mode and gradients for the named children only; raises KeyError."""
    model = model.module if isinstance(model, nn.DataParallel) else model
    children = dict(model.named_children())
    opened = [open_layers] if isinstance(open_layers, str) else open_layers
    if unknown := set(opened) - set(children):
        raise KeyError(f"the model has no layer {sorted(unknown)}")
    for name, child in children.items():
        child.train(name in opened)
        child.requires_grad_(name in opened)


def set_bn_to_eval(module: nn.Module) -> None:
    """For `Module.apply`: batch norms keep their statistics; scale and shift still learn."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.eval()


def adjust_learning_rate(
    optimizer: Optimizer, base_lr: float, epoch: int, stepsize: int = 20, gamma: float = 0.1,
    linear_decay: bool = False, final_lr: float = 0, max_epoch: int = 100,
) -> None:  # fmt: skip
    """Sets an epoch's rate: in steps by `gamma`, or linearly to `final_lr`."""
    linear = base_lr + epoch / max_epoch * (final_lr - base_lr)
    lr = linear if linear_decay else base_lr * gamma ** (epoch // stepsize)
    for group in optimizer.param_groups:
        group["lr"] = lr


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialises linear layers and convolutions, resets batch norms.

    init_type: normal, xavier, kaiming or orthogonal.
    """
    init = {
        "normal": lambda w: nn.init.normal_(w, 0.0, gain),
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=gain),
    }[init_type]
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            init(module.weight)
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
