"""Small helpers on modules."""

from torch import nn
from torch.optim import Optimizer

from .checkpoint import (
    load_checkpoint,
    load_weights,
    resume_from_checkpoint,
    save_checkpoint,
    weights_of,
)
from .errors import Failure
from .tools import tolist_if_not

__all__ = [
    "adjust_learning_rate",
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "open_all_layers",
    "open_specified_layers",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_bn_to_eval",
]


def count_num_param(model: nn.Module | list | None = None, params: list | None = None) -> int:
    """Number of parameters of a model, or of a list of parameters or optimizer groups."""
    params = model.parameters() if params is None else params
    return sum(
        count_num_param(params=p["params"]) if isinstance(p, dict) else p.numel() for p in params
    )


def open_all_layers(model: nn.Module) -> None:
    """Train mode and gradients for every parameter."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Train mode and gradients for the named children, eval mode and none for the others. Raises
    KeyError."""
    model = model.module if isinstance(model, nn.DataParallel) else model
    children, opened = dict(model.named_children()), tolist_if_not(open_layers)
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
    optimizer: Optimizer,
    base_lr: float,
    epoch: int,
    stepsize: int = 20,
    gamma: float = 0.1,
    linear_decay: bool = False,
    final_lr: float = 0,
    max_epoch: int = 100,
) -> None:
    """Sets the rate of an epoch (from 0): times `gamma` every `stepsize` epochs, or on the line to
    `final_lr`."""
    done = epoch / max_epoch
    lr = (
        base_lr + done * (final_lr - base_lr)
        if linear_decay
        else base_lr * gamma ** (epoch // stepsize)
    )
    for group in optimizer.param_groups:
        group["lr"] = lr


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Loads those weights of a file whose name and shape fit the model; raises Failure if none
    does."""
    checkpoint = load_checkpoint(weight_path)
    weights = weights_of({"state_dict": checkpoint} | checkpoint, weight_path)
    weights = {k.removeprefix("module."): v for k, v in weights.items()}
    own = model.state_dict()
    fitting = {
        k: v for k, v in weights.items() if k in own and own[k].shape == getattr(v, "shape", None)
    }
    if not fitting:
        raise Failure(f"No weight in {weight_path} fits the model by name and shape")
    load_weights(model, fitting, {k: own[k] for k in fitting}, weight_path)
    print(f"Loaded pretrained weights from {weight_path}")
    if left_out := sorted(weights.keys() - fitting.keys()):
        print(f"Left out, as the model has no such name or another shape: {left_out}")


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialises convolutions and linear layers (normal, xavier, kaiming or orthogonal), resets
    norms."""
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
