"""P2C, Points to Clouds (Li et al., 2025, arXiv 2511.22897): MaPLe and ATPrompt trained on a cloud
of prompts.

What it adds: noise on the learned text prompts while training (DPD, eq. 1 and 2), and a
    text-to-image mapper that is an
MLP trained to undo noise (eq. 3 to 6). The paper leaves much open; the README says what was chosen.
"""

import math
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .multimodal import MultiModalPromptLearner, MultiModalTrainer


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.P2C = CfgNode()
    node.N_CTX = 2
    node.CTX_INIT = ""  # "": random
    node.PROMPT_DEPTH = 9
    node.PREC = "fp16"  # fp16, bf16, fp32, amp
    node.MAPPER = CfgNode()
    node.MAPPER.MLP = True  # False: MaPLe's single Linear
    node.MAPPER.HIDDEN_SCALE = 2  # s_H: hidden width / text width
    node.DPD = CfgNode()
    node.DPD.ENABLED = True
    node.DPD.NOISE = "gmm"  # gaussian, gmm
    node.DPD.SIGMA_MAX = 0.015
    node.DPD.SCHEDULE = "sigmoid"  # constant, linear, cosine, sigmoid, sigmoid_rising (the authors' published fragment)
    node.DPD.SIGMOID_K = 10.0
    node.DPD.WARMUP_EPOCHS = 0  # epochs at SIGMA_MAX before the schedule begins
    node.DPD.GMM_MEANS = (-1.0, 0.0, 1.0)
    node.DPD.GMM_STDS = (0.5, 0.5, 0.5)
    node.DPD.GMM_WEIGHTS = (1.0, 1.0, 1.0)
    node.DPD.GMM_STANDARDIZE = (
        True  # to mean 0 and variance 1, so that SIGMA_MAX means the same for both noises
    )
    node.AUX = CfgNode()
    node.AUX.ENABLED = True
    node.AUX.SIGMA = 0.01
    node.AUX.LAMBDA = 0.1
    node.AUX.PROMPTS = (
        "ctx"  # what F is given in L_aux: ctx, or all (eq. 3 to 5: the attribute vectors too)
    )
    node.AUX.STOP_GRADIENT = True  # on the clean side; False: eq. 6 as it stands


def falling_sigmoid(p: float, k: float) -> float:
    """1 / (1 + e^(k (p - ½))), rescaled to be 1 at p = 0 and 0 at p = 1."""

    def raw(x: float) -> float:
        return 1 / (1 + math.exp(k * (x - 0.5)))

    return (raw(p) - raw(1)) / (raw(0) - raw(1))


# S(p) of eq. 2; p runs from 0 at the schedule's first epoch towards 1 after its last.
SCHEDULES = {
    "constant": lambda p, k: 1.0,
    "linear": lambda p, k: 1 - p,
    "cosine": lambda p, k: (1 + math.cos(math.pi * p)) / 2,
    "sigmoid": falling_sigmoid,
    "sigmoid_rising": lambda p, k: 1 - falling_sigmoid(p, k),
}


def sigma_at(dpd: CfgNode, epoch: int, max_epoch: int) -> float:
    """σ_t of eq. 2 for an epoch, counted from 0."""
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
            std = ((weights * (stds**2 + means**2)).sum() - mean**2).sqrt()
            means, stds = (means - mean) / std, stds / std
        self.register_buffer("means", means, persistent=False)
        self.register_buffer("stds", stds, persistent=False)
        self.register_buffer("edges", weights.cumsum(0)[:-1], persistent=False)

    def forward(self, like: Tensor) -> Tensor:
        """Fresh noise of that shape, type and device."""
        component = torch.bucketize(torch.rand_like(like), self.edges)
        return self.means[component] + self.stds[component] * torch.randn_like(like)


class P2CPromptLearner(MultiModalPromptLearner):
    """MaPLe's prompt learner with noisy text prompts in training, and the mapper F as an MLP."""

    def __init__(self, node: CfgNode, *args, **kwargs):
        self.options = node
        super().__init__(node, *args, **kwargs)
        dpd = node.DPD
        mixture = (dpd.GMM_MEANS, dpd.GMM_STDS, dpd.GMM_WEIGHTS, dpd.GMM_STANDARDIZE)
        self.noise = MixtureNoise(*mixture) if dpd.NOISE == "gmm" else torch.randn_like
        # Set for each epoch. A tensor, for a captured step to see it change.
        self.register_buffer("sigma", torch.zeros((), dtype=torch.float64), persistent=False)

    def build_mapper(self, width: int, vision_width: int) -> nn.Module:
        if not self.options.MAPPER.MLP:
            return super().build_mapper(width, vision_width)
        hidden = self.options.MAPPER.HIDDEN_SCALE * width
        mapper = nn.Sequential()
        mapper.add_module("fc1", nn.Linear(width, hidden))
        mapper.add_module("act", nn.GELU())
        mapper.add_module("fc2", nn.Linear(hidden, vision_width))
        return mapper

    def vectors(self) -> dict[str, Tensor]:
        """P + ε (eq. 1), each tensor with noise of its own, the same for all classes; clean ones
        outside training."""
        clean = super().vectors()
        if not (self.training and self.options.DPD.ENABLED):
            return clean
        return {name: p + self.sigma * self.noise(p) for name, p in clean.items()}

    def aux_loss(self) -> Tensor:
        """L_aux = MSE(F(P + η), F(P)) of eq. 6; P is ctx or all learned vectors of the text
        prompt."""
        aux = self.options.AUX
        prompts = torch.cat([*super().vectors().values()]) if aux.PROMPTS == "all" else self.ctx
        noisy = prompts + aux.SIGMA * torch.randn_like(prompts)
        with torch.autocast(
            noisy.device.type, enabled=False
        ):  # a difference that amp would round away
            clean = self.proj(prompts)
            return F.mse_loss(self.proj(noisy), clean.detach() if aux.STOP_GRADIENT else clean)


@TRAINER_REGISTRY.register()
class P2C(MultiModalTrainer):
    learner = P2CPromptLearner

    @property
    def node(self) -> CfgNode:
        return self.cfg.TRAINER.P2C

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, epochs = cfg.TRAINER.P2C, cfg.OPTIM.MAX_EPOCH
        dpd = node.DPD
        mixture = dpd.GMM_MEANS, dpd.GMM_STDS, dpd.GMM_WEIGHTS
        if not all(isinstance(value, int | float) for value in chain(*mixture)):
            raise UsageError("TRAINER.P2C.DPD.GMM_MEANS, GMM_STDS and GMM_WEIGHTS must be numbers")
        for fine, message in (
            (
                node.MAPPER.HIDDEN_SCALE >= 1,
                f"MAPPER.HIDDEN_SCALE {node.MAPPER.HIDDEN_SCALE}: must be 1 or more",
            ),
            (
                dpd.SCHEDULE in SCHEDULES,
                f"DPD.SCHEDULE {dpd.SCHEDULE!r}: choose from {', '.join(SCHEDULES)}",
            ),
            (
                dpd.NOISE in ("gaussian", "gmm"),
                f"DPD.NOISE {dpd.NOISE!r}: choose from gaussian, gmm",
            ),
            (
                node.AUX.PROMPTS in ("ctx", "all"),
                f"AUX.PROMPTS {node.AUX.PROMPTS!r}: choose from ctx, all",
            ),
            (
                min(dpd.SIGMA_MAX, node.AUX.SIGMA) >= 0,
                "DPD.SIGMA_MAX and AUX.SIGMA: must be 0 or more",
            ),
            # Beyond, e^k is no float any more, or all that is left is rounding; 100 is a step
            # already, 0.1 linear.
            (
                0.001 <= dpd.SIGMOID_K <= 1000,
                f"DPD.SIGMOID_K {dpd.SIGMOID_K}: must be from 0.001 to 1000",
            ),
            (
                0 <= dpd.WARMUP_EPOCHS < epochs,
                f"DPD.WARMUP_EPOCHS {dpd.WARMUP_EPOCHS}: must be 0 or more and less than OPTIM.MAX_EPOCH {epochs}",
            ),
            (
                len({*map(len, mixture)}) == 1,
                "DPD.GMM_MEANS, GMM_STDS and GMM_WEIGHTS need one value for each component",
            ),
            (
                min((*mixture[1], *mixture[2]), default=0) > 0,
                "DPD.GMM_STDS and GMM_WEIGHTS must be positive",
            ),
        ):
            if not fine:
                raise UsageError(f"TRAINER.P2C.{message}")

    def before_epoch(self) -> None:
        super().before_epoch()
        dpd = self.node.DPD
        self.model.prompt_learner.sigma.fill_(
            sigma_at(dpd, self.epoch, self.max_epoch) if dpd.ENABLED else 0.0
        )

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_cls + λ L_aux (eq. 8)."""
        loss, log = super().loss(image, label)
        if not self.node.AUX.ENABLED:
            return loss, log
        aux = self.model.prompt_learner.aux_loss()
        return loss + self.node.AUX.LAMBDA * aux, log | {"aux": aux.detach()}
