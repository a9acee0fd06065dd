"""Learning rate per epoch: step once after each epoch's last batch."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

from dassl.utils import UsageError, check_availability

AVAI_SCHEDS = ["single_step", "multi_step", "cosine", "cyclic_cosine"]


class CyclicCosine(LRScheduler):
    """lr (1 + cos(π t / T)) / 2 in epoch t, from 0, of each cycle of T epochs.

    Behind a warm-up the first cycle begins when it ends, so every restart is as many epochs late;
    not with WARMUP_RECOUNT False.
    """

    def __init__(self, optimizer: Optimizer, cycle_epochs: int, last_epoch: int = -1):
        self.cycle_epochs = cycle_epochs
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The present epoch's rate of each parameter group."""
        done = self.last_epoch % self.cycle_epochs / self.cycle_epochs
        return [lr * (1 + math.cos(math.pi * done)) / 2 for lr in self.base_lrs]


class _WarmupScheduler(LRScheduler):
    """Own rates for `warmup_epoch` epochs, then `successor`'s; plain state."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, last_epoch: int = -1
    ):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The present epoch's rate of each parameter group."""
        if self.last_epoch < self.warmup_epoch:
            return self.warmup_lr()
        return self.successor.get_last_lr()

    def step(self, epoch: int | None = None) -> None:
        """To be called after each epoch; past the warm-up the successor's step."""
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
        else:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises TypeError if the successor is an object, as in upstream's."""
        state = dict(state_dict)
        successor = state.pop("successor")
        if not isinstance(successor, dict):
            raise TypeError("the successor's state is no plain dict")
        self.successor.load_state_dict(successor)
        super().load_state_dict(state)


class ConstantWarmupScheduler(_WarmupScheduler):
    """`cons_lr` for `warmup_epoch` epochs, then `successor`."""

    def __init__(
        self, optimizer, successor, warmup_epoch: int, cons_lr: float, last_epoch: int = -1
    ):
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[float]:
        return [self.cons_lr for _ in self.base_lrs]


class LinearWarmupScheduler(_WarmupScheduler):
    """`min_lr` in epoch 0, then lr * epoch / `warmup_epoch`, then `successor`."""

    def __init__(
        self, optimizer, successor, warmup_epoch: int, min_lr: float, last_epoch: int = -1
    ):
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return [self.min_lr for _ in self.base_lrs]
        return [lr * self.last_epoch / self.warmup_epoch for lr in self.base_lrs]


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Builds cfg.OPTIM's scheduler, behind a warm-up if WARMUP_EPOCH > 0.

    Raises UsageError for an unknown name or a STEPSIZE that does not fit it.
    """
    c = optim_cfg
    check_availability(c.LR_SCHEDULER, AVAI_SCHEDS, "learning rate scheduler")
    if c.LR_SCHEDULER == "cosine":
        scheduler = CosineAnnealingLR(optimizer, c.MAX_EPOCH)
    elif c.LR_SCHEDULER == "cyclic_cosine":
        scheduler = CyclicCosine(optimizer, c.CYCLE_EPOCHS)
    elif c.LR_SCHEDULER == "multi_step":
        if isinstance(c.STEPSIZE, int):
            line = f"OPTIM.STEPSIZE is {c.STEPSIZE}, but multi_step needs a list of epochs"
            raise UsageError(f"{line}, e.g. (10, 20)")
        scheduler = MultiStepLR(optimizer, c.STEPSIZE, c.GAMMA)
    else:
        step_size = c.STEPSIZE if isinstance(c.STEPSIZE, int) else c.STEPSIZE[-1]
        scheduler = StepLR(optimizer, step_size if step_size > 0 else c.MAX_EPOCH, c.GAMMA)
    return _with_warmup(optimizer, scheduler, c) if c.WARMUP_EPOCH > 0 else scheduler


def _with_warmup(optimizer: Optimizer, scheduler: LRScheduler, c: CfgNode) -> LRScheduler:
    if c.WARMUP_EPOCH >= c.MAX_EPOCH:  # as code written for Dassl may have it; train.py refuses it
        epochs = f"{c.WARMUP_EPOCH} epochs leaves none of {c.MAX_EPOCH}"
        print(f"Note: the warm-up of {epochs} to train in")
    check_availability(c.WARMUP_TYPE, ["constant", "linear"], "OPTIM.WARMUP_TYPE")
    if not c.WARMUP_RECOUNT:
        scheduler.last_epoch = c.WARMUP_EPOCH
        if isinstance(scheduler, CyclicCosine):  # the others have their first rate once, as Dassl's
            scheduler._last_lr = scheduler.get_lr()
    if c.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, c.WARMUP_EPOCH, c.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, scheduler, c.WARMUP_EPOCH, c.WARMUP_MIN_LR)
