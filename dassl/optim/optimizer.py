from collections.abc import Iterable

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.utils import UsageError, check_availability

from .radam import RAdam


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: CfgNode, param_groups: Iterable | None = None
) -> torch.optim.Optimizer:
    """Builds cfg.OPTIM's optimizer over a module, parameters or groups of them; `param_groups` goes first.

    Raises UsageError for an unknown OPTIM.NAME, or for STAGED_LR with anything but a module.
    """
    c = optim_cfg
    betas = (c.ADAM_BETA1, c.ADAM_BETA2)
    kinds = {
        "adam": (torch.optim.Adam, {"betas": betas}),
        "amsgrad": (torch.optim.Adam, {"betas": betas, "amsgrad": True}),
        "adamw": (torch.optim.AdamW, {"betas": betas}),
        "radam": (RAdam, {"betas": betas}),
        "rmsprop": (torch.optim.RMSprop, {"momentum": c.MOMENTUM, "alpha": c.RMSPROP_ALPHA}),
        "sgd": (
            torch.optim.SGD,
            {"momentum": c.MOMENTUM, "dampening": c.SGD_DAMPNING, "nesterov": c.SGD_NESTEROV},
        ),
    }
    check_availability(c.NAME, kinds, "optimizer")
    if param_groups is None and c.STAGED_LR:
        param_groups = _staged(model, c)
    elif param_groups is None:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    kind, options = kinds[c.NAME]
    groups = [_whole(group) for group in param_groups]
    if kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        options["fused"] = all(p.is_cuda for group in groups for p in group["params"])
    return kind(groups, lr=c.LR, weight_decay=c.WEIGHT_DECAY, **options)


def _whole(group: dict | Tensor) -> dict:
    """A group of parameters, in a list; they may have come as a generator, or one by itself."""
    group = group if isinstance(group, dict) else {"params": group}
    params = group["params"]
    return {**group, "params": [params] if isinstance(params, Tensor) else list(params)}


def _staged(model: nn.Module, c: CfgNode) -> list[dict]:
    if not isinstance(model, nn.Module):
        raise UsageError("OPTIM.STAGED_LR needs a whole model; this trainer optimizes single parameters")
    model = model.module if isinstance(model, nn.DataParallel) else model
    new_layers = [c.NEW_LAYERS] if isinstance(c.NEW_LAYERS, str) else c.NEW_LAYERS
    base, new = [], []
    for name, child in model.named_children():
        (new if name in new_layers else base).extend(child.parameters())
    return [{"params": base, "lr": c.LR * c.BASE_LR_MULT}, {"params": new}]
