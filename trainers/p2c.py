"""P2C, Points to Clouds (Li et al., 2025, arXiv 2511.22897): MaPLe trained on a cloud of prompts.

It adds noise to the learned text prompts while training (DPD, eq. 1 and 2), and its mapper F from
text to image prompts (`proj`) is an MLP that also learns to undo noise (L_aux, eq. 3 to 6). Its
configs switch ATPrompt's attributes on. The README says what was chosen where the paper is silent.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .maple import MaPLe, MultiModalPromptLearner


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.P2C = CfgNode()
    node.N_CTX = 2
    node.CTX_INIT = ""  # "": random
    node.PROMPT_DEPTH = 9
    node.PREC = "fp16"  # fp16, bf16, fp32, tf32, amp
    mapper = node.MAPPER = CfgNode()
    mapper.MLP = True  # False: MaPLe's single Linear
    mapper.HIDDEN_SCALE = 2  # s_H: hidden width / text width
    dpd = node.DPD = CfgNode()
    dpd.ENABLED = True
    dpd.NOISE = "gmm"  # gaussian, gmm
    dpd.SIGMA_MAX = 0.015
    dpd.SCHEDULE = "sigmoid"  # a key of SCHEDULES; sigmoid_rising: the authors' published fragment
    dpd.SIGMOID_K = 10.0
    dpd.WARMUP_EPOCHS = 0  # epochs at SIGMA_MAX before the schedule begins
    dpd.GMM_MEANS = (-1.0, 0.0, 1.0)
    dpd.GMM_STDS = (0.5, 0.5, 0.5)
    dpd.GMM_WEIGHTS = (1.0, 1.0, 1.0)
    dpd.GMM_STANDARDIZE = True  # to mean 0 and variance 1: SIGMA_MAX is then as with gaussian
    aux = node.AUX = CfgNode()
    aux.ENABLED = True
    aux.SIGMA = 0.01
    aux.LAMBDA = 0.1
    aux.PROMPTS = "ctx"  # that L_aux puts through F: ctx, or all (eq. 3 to 5: ctx_att1…3 too)
    aux.STOP_GRADIENT = True  # on the clean side; False: eq. 6 as it stands


def falling_sigmoid(p: float, k: float) -> float:
    """1 / (1 + e^(k (p - ½))), rescaled to be 1 at p = 0 and 0 at p = 1."""
    at_p, first, last = (1 / (1 + math.exp(k * (x - 0.5))) for x in (p, 0, 1))
    return (at_p - last) / (first - last)


# S(p) of eq. 2: p is 0 in the schedule's first epoch, and would be 1 in the one after its last.
SCHEDULES = {
    "constant": lambda p, k: 1.0,
    "linear": lambda p, k: 1 - p,
    "cosine": lambda p, k: (1 + math.cos(math.pi * p)) / 2,
    "sigmoid": falling_sigmoid,
    "sigmoid_rising": lambda p, k: 1 - falling_sigmoid(p, k),
}


def sigma_at(dpd: CfgNode, epoch: int, max_epoch: int) -> float:
    """σ_t of eq. 2 for an epoch, counted from 0; dpd is TRAINER.P2C.DPD."""
    if epoch < dpd.WARMUP_EPOCHS:
        return dpd.SIGMA_MAX
    p = (epoch - dpd.WARMUP_EPOCHS) / (max_epoch - dpd.WARMUP_EPOCHS)
    return dpd.SIGMA_MAX * SCHEDULES[dpd.SCHEDULE](p, dpd.SIGMOID_K)


class MixtureNoise(nn.Module):
    """Element-wise draws from a mixture of Gaussians (§3.3.1)."""

    def __init__(self, means: tuple, stds: tuple, weights: tuple, standardize: bool):
        super().__init__()
        means, stds, weights = (
            torch.tensor(t, dtype=torch.float32) for t in (means, stds, weights)
        )
        weights = weights / weights.sum()
        if standardize:
            mean = (weights * means).sum()
            std = (weights * (stds**2 + (means - mean) ** 2)).sum().sqrt()
            means, stds = (means - mean) / std, stds / std
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("stds", stds, persistent=False)
        self.register_buffer("edges", weights.cumsum(0)[:-1], persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        """A new draw for each element of `like`, in its type and on its device."""
        component = torch.bucketize(torch.rand_like(like), self.edges)
        return self.means[component] + self.stds[component] * torch.randn_like(like)


class P2CPromptLearner(MultiModalPromptLearner):
    """MaPLe's prompt learner with noisy text prompts in training, and the mapper F as an MLP."""

    def __init__(self, node: CfgNode, *args, **kwargs):
        super().__init__(node, *args, **kwargs)
        dpd = node.DPD
        mixture = dpd.GMM_MEANS, dpd.GMM_STDS, dpd.GMM_WEIGHTS, dpd.GMM_STANDARDIZE
        self.noise = MixtureNoise(*mixture) if dpd.NOISE == "gmm" else torch.randn_like
        # σ_t, set in before_epoch. A tensor, so that a replayed CUDA graph sees it change.
        self.register_buffer("sigma", torch.zeros((), dtype=torch.float64), persistent=False)

    def build_mapper(self, width: int, vision_width: int) -> nn.Module:
        if not self.node.MAPPER.MLP:
            return super().build_mapper(width, vision_width)
        hidden = self.node.MAPPER.HIDDEN_SCALE * width
        first, second = nn.Linear(width, hidden), nn.Linear(hidden, vision_width)
        return nn.Sequential(OrderedDict(fc1=first, act=nn.GELU(), fc2=second))

    def vectors(self) -> dict[str, Tensor]:
        """P + ε (eq. 1) in training: a draw of ε for each tensor, the same for all classes.

        Without noise are the deep prompts and the image prompts F(ctx): they do not come from here.
        """
        clean = super().vectors()
        if not (self.training and self.node.DPD.ENABLED):
            return clean
        return {name: p + self.sigma * self.noise(p) for name, p in clean.items()}

    def aux_loss(self) -> Tensor:
        """L_aux = MSE(F(P + η), F(P)) of eq. 6; P: ctx, or all learned inputs of the text tower."""
        aux = self.node.AUX
        prompts = torch.cat([*super().vectors().values()]) if aux.PROMPTS == "all" else self.ctx
        noisy = prompts + aux.SIGMA * torch.randn_like(prompts)
        # amp would round the difference away
        with torch.autocast(noisy.device.type, enabled=False):
            clean = self.proj(prompts)
            return F.mse_loss(self.proj(noisy), clean.detach() if aux.STOP_GRADIENT else clean)


@TRAINER_REGISTRY.register()
class P2C(MaPLe):
    node_name = "P2C"
    graphed = divisible = takes_attributes = True
    learner_class = P2CPromptLearner

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, epochs = cfg.TRAINER.P2C, cfg.OPTIM.MAX_EPOCH
        dpd, aux, scale = node.DPD, node.AUX, node.MAPPER.HIDDEN_SCALE
        k, warmup, of_each = dpd.SIGMOID_K, dpd.WARMUP_EPOCHS, "GMM_MEANS, GMM_STDS and GMM_WEIGHTS"
        means, stds, weights = dpd.GMM_MEANS, dpd.GMM_STDS, dpd.GMM_WEIGHTS
        if not all(isinstance(number, int | float) for number in [*means, *stds, *weights]):
            raise UsageError(f"TRAINER.P2C.DPD.{of_each} must be numbers")
        schedules, most = ", ".join(SCHEDULES), f"less than OPTIM.MAX_EPOCH {epochs}"
        sizes = {len(means), len(stds), len(weights)}
        must = {
            f"MAPPER.HIDDEN_SCALE {scale}: must be 1 or more": scale >= 1,
            f"DPD.SCHEDULE {dpd.SCHEDULE!r}: choose from {schedules}": dpd.SCHEDULE in SCHEDULES,
            f"DPD.NOISE {dpd.NOISE!r}: choose from gaussian, gmm": dpd.NOISE in ("gaussian", "gmm"),
            f"AUX.PROMPTS {aux.PROMPTS!r}: choose from ctx, all": aux.PROMPTS in ("ctx", "all"),
            "DPD.SIGMA_MAX and AUX.SIGMA: must be 0 or more": min(dpd.SIGMA_MAX, aux.SIGMA) >= 0,
            # Far above, exp overflows; below, all is rounding. 100 is a step already, 0.1 linear.
            f"DPD.SIGMOID_K {k}: must be from 0.001 to 1000": 0.001 <= k <= 1000,
            f"DPD.WARMUP_EPOCHS {warmup}: must be 0 or more and {most}": 0 <= warmup < epochs,
            f"DPD.{of_each} need one value for each component": len(sizes) == 1,
            "DPD.GMM_STDS and GMM_WEIGHTS must be positive": min([*stds, *weights], default=0) > 0,
        }
        for message, fine in must.items():
            if not fine:
                raise UsageError(f"TRAINER.P2C.{message}")

    def before_epoch(self) -> None:
        super().before_epoch()
        dpd = self.node.DPD
        sigma = sigma_at(dpd, self.epoch, self.max_epoch) if dpd.ENABLED else 0.0
        self.model.learner.sigma.fill_(sigma)

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_cls + λ L_aux (eq. 8)."""
        loss, log = super().loss(image, label)
        if not self.node.AUX.ENABLED:
            return loss, log
        aux = self.model.learner.aux_loss()
        return loss + self.node.AUX.LAMBDA * aux, log | {"aux": aux.detach()}
