"""The optimizer of cfg.OPTIM."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam, RMSprop
from yacs.config import CfgNode

from dassl.utils import UsageError, check_availability

from .sghmc import SGHMC

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw", "sghmc"]


def build_optimizer(
    model: nn.Module | Iterable,
    optim_cfg: CfgNode,
    param_groups: Iterable | None = None,
    fused: bool = False,
) -> Optimizer:
    """Builds cfg.OPTIM's optimizer over a module, parameters or groups; `param_groups` goes first.

    `fused` takes PyTorch's fused kernels where the optimizer has some; with them a GradScaler's
    step waits for nothing.

    Raises UsageError for an unknown OPTIM.NAME, or for STAGED_LR with anything but a module of
    modules.
    """
    c = optim_cfg
    betas = (c.ADAM_BETA1, c.ADAM_BETA2)
    sgd = {"momentum": c.MOMENTUM, "dampening": c.SGD_DAMPNING, "nesterov": c.SGD_NESTEROV}
    kinds = {
        "adam": (Adam, {"betas": betas}),
        "amsgrad": (Adam, {"betas": betas, "amsgrad": True}),
        "adamw": (AdamW, {"betas": betas}),
        "radam": (RAdam, {"betas": betas}),
        "rmsprop": (RMSprop, {"momentum": c.MOMENTUM, "alpha": c.RMSPROP_ALPHA}),
        "sgd": (SGD, sgd),
        "sghmc": (SGHMC, sgd | {"betas": betas}),
    }
    check_availability(c.NAME, AVAI_OPTIMS, "optimizer")
    if param_groups is None and c.STAGED_LR:
        param_groups = _staged(model, c)
    elif param_groups is None:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    kind, options = kinds[c.NAME]
    # PyTorch does not dampen the first gradient; the momentum of zero that fused SGD starts from
    # here would do so.
    if fused and kind in (SGD, Adam, AdamW) and not options.get("dampening"):
        options["fused"] = True
    optimizer = kind(param_groups, lr=c.LR, weight_decay=c.WEIGHT_DECAY, **options)
    if options.get("fused") and kind is SGD:
        optimizer.register_step_pre_hook(_start_momentum)
    return optimizer


def _start_momentum(optimizer: SGD, *_) -> None:
    """Gives parameters without a momentum one of zero.

    Fused SGD itself would leave it uninitialised memory if a GradScaler skips the first step.
    """
    for group in optimizer.param_groups:
        for p in group["params"] if group["momentum"] else ():
            if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _staged(model: nn.Module, c: CfgNode) -> list[dict]:
    if not isinstance(model, nn.Module):
        line = "OPTIM.STAGED_LR needs a whole model; this trainer optimizes single parameters"
        raise UsageError(line)
    model = model.module if isinstance(model, nn.DataParallel) else model
    if own := [name for name, p in model.named_parameters(recurse=False) if p.requires_grad]:
        line = f"OPTIM.STAGED_LR is for layers, and {', '.join(own)} is in none"
        raise UsageError(f"{line}, so it would not be trained: set STAGED_LR False")
    new_layers = [c.NEW_LAYERS] if isinstance(c.NEW_LAYERS, str) else c.NEW_LAYERS
    base, new = [], []
    for name, child in model.named_children():
        (new if name in new_layers else base).extend(child.parameters())
    return [{"params": base, "lr": c.LR * c.BASE_LR_MULT}, {"params": new}]
