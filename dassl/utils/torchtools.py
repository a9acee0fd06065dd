"""Small helpers on modules."""

from torch import nn

from .checkpoint import load_checkpoint
from .errors import Failure
from .tools import tolist_if_not


def count_num_param(model: nn.Module | list | None = None, params: list | None = None) -> int:
    """Number of parameters of a model, or of a list of parameters or optimizer groups."""
    params = model.parameters() if params is None else params
    return sum(count_num_param(params=p["params"]) if isinstance(p, dict) else p.numel() for p in params)


def open_all_layers(model: nn.Module) -> None:
    """Train mode and gradients for every parameter."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Train mode and gradients for the named children, eval mode and none for the others. Raises KeyError."""
    model = model.module if isinstance(model, nn.DataParallel) else model
    children, opened = dict(model.named_children()), tolist_if_not(open_layers)
    if unknown := set(opened) - set(children):
        raise KeyError(f"the model has no layer {sorted(unknown)}")
    for name, child in children.items():
        child.train(name in opened)
        child.requires_grad_(name in opened)


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Loads those weights of a file whose name and shape fit the model; raises Failure if none does."""
    checkpoint = load_checkpoint(weight_path)
    weights = {k.removeprefix("module."): v for k, v in checkpoint.get("state_dict", checkpoint).items()}
    own = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise Failure(f"No weight in {weight_path} fits the model by name and shape")
    model.load_state_dict(fitting, strict=False)
    print(f"Loaded pretrained weights from {weight_path}")
    if left_out := sorted(weights.keys() - fitting.keys()):
        print(f"Left out, as the model has no such name or another shape: {left_out}")


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialises convolutions and linear layers (normal, xavier, kaiming or orthogonal), resets norms."""
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
