"""ReBaPL (Bendou et al., CVPR 2026, arXiv 2511.17339): a test averages over samples of a host's
prompts, drawn by cyclical SGHMC, in which each cycle is repelled from samples of the one before.

A host is any method of CLIPTrainer's: learner, loss, config node and PREC stay its own. In
dassl/optim are the rate's cycles (OPTIM.LR_SCHEDULER cyclic_cosine) and the optimizer (OPTIM.NAME
sghmc), which with EXPLORE adamw takes AdamW's steps until a cycle's sampling stage.
docs/METHODS.md says where the paper and its published code differ.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.config import allow
from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler
from dassl.utils.errors import UsageError

from .coop import CoOp
from .ensemble import Ensemble
from .features import says
from .maple import MaPLe
from .mmrl import MMRL
from .p2c import P2C
from .repulsion import DISTANCES, Repelled


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.REBAPL = CfgNode()
    node.NOISE_EPOCHS = 3  # the last of a cycle's OPTIM.CYCLE_EPOCHS: its sampling stage
    node.EXPLORE = "sghmc"  # steps before that stage: sghmc (without noise) or adamw
    node.SAMPLES_PER_CYCLE = 1  # evenly spaced in the sampling stage, the last at its end
    node.NOISE = "code"  # code, paper: see noise_std
    node.TEMPERATURE = 100.0  # of NOISE code
    node.FRICTION = 0.1  # η of NOISE paper; the momentum is 1 - η then
    node.CHAINS = "sequential"  # parallel: each cycle starts from new random weights
    node.AVERAGE = "probabilities"  # probabilities, logits
    repulsion = node.REPULSION = CfgNode()
    repulsion.STRENGTH = 0.001  # ξ of the potential ξ / (d² + EPS); 0: none
    repulsion.DISTANCE = "mmd"  # mmd, wasserstein, mse
    repulsion.FEATURES = "image"  # image, text, both
    repulsion.IMAGES = 128  # reference images, of the training set
    repulsion.ROWS = 32  # how many features each step draws and compares; -1: all
    repulsion.AGAINST = "last"  # last sample of the cycle before, or all of that cycle's
    repulsion.ADD_TO = "gradient"  # gradient; parameters: without momentum and rate (eq. 16)
    repulsion.BANDWIDTH = 1.0  # of mmd's kernel
    repulsion.EPS = 1e-6
    repulsion.MAX_FORCE = 0.0  # a longer one is shortened to this length; 0: no limit


allow("sghmc or adamw", lambda v: v in ("sghmc", "adamw"), "REBAPL.EXPLORE")
allow("code or paper", lambda v: v in ("code", "paper"), "REBAPL.NOISE")
allow("sequential or parallel", lambda v: v in ("sequential", "parallel"), "REBAPL.CHAINS")
allow("probabilities or logits", lambda v: v in ("probabilities", "logits"), "REBAPL.AVERAGE")
allow(", ".join(DISTANCES), lambda v: v in DISTANCES, "REPULSION.DISTANCE")
allow("image, text or both", lambda v: v in ("image", "text", "both"), "REPULSION.FEATURES")
allow("last or all", lambda v: v in ("last", "all"), "REPULSION.AGAINST")
allow("gradient or parameters", lambda v: v in ("gradient", "parameters"), "REPULSION.ADD_TO")
allow("from 0 to 1", lambda v: 0 <= v <= 1, "REBAPL.FRICTION")
allow("0 or more", lambda v: v >= 0, "REBAPL.TEMPERATURE REPULSION.STRENGTH MAX_FORCE")
allow("above 0", lambda v: v > 0, "REPULSION.BANDWIDTH REPULSION.EPS")
allow("1 or more", lambda v: v >= 1, "SAMPLES_PER_CYCLE REPULSION.IMAGES")
allow("1 or more, or -1 for all", lambda v: v >= 1 or v == -1, "REPULSION.ROWS")


def noise_std(node: CfgNode, lr: float, momentum: float, n_images: int) -> float:
    """The factor of ε ~ N(0, I) in SGHMC's velocity v; θ moves by -lr v.

    code: T √(2 lr μ) / N, as published. paper: √(2 η α) / lr, eq. 17 with r = -lr v, γ̂ = 0, and
    α = lr / N, as the loss is a mean and Ũ the sum over all N images.
    """
    if node.NOISE == "code":
        return node.TEMPERATURE * math.sqrt(2 * lr * momentum) / n_images
    return math.sqrt(2 * node.FRICTION * lr / n_images) / lr if lr else 0.0


def ends_part(step: int, steps: int, parts: int) -> bool:
    """Whether `step`, from 1, is the last of a part, if `steps` are cut in `parts` even parts."""
    return step > 0 and step * parts // steps > (step - 1) * parts // steps


class ReBaPL(Ensemble, Repelled):
    """Goes before a host in a class's bases: `class ReBaPL_MaPLe(ReBaPL, MaPLe)`.

    Attributes:
        present: representations of this cycle's samples; `before`: of those of the cycle before.
    """

    more_config = ("REBAPL",)

    # -- config and model

    @property
    def sampler(self) -> CfgNode:
        """TRAINER.REBAPL; `node` is the host's."""
        return self.cfg.TRAINER.REBAPL

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, optim, name = cfg.TRAINER.REBAPL, cfg.OPTIM, type(self).__name__
        cycle = f"OPTIM.CYCLE_EPOCHS {optim.CYCLE_EPOCHS}"
        of_images = node.REPULSION.STRENGTH and node.REPULSION.FEATURES == "image"
        wrong = {
            f"OPTIM.MAX_EPOCH {optim.MAX_EPOCH}: {name} needs whole cycles of {cycle}": (
                optim.MAX_EPOCH % optim.CYCLE_EPOCHS
            ),
            f"OPTIM.NAME {optim.NAME}: {name} needs sghmc, SGD with noise": optim.NAME != "sghmc",
            f"TRAINER.REBAPL.NOISE_EPOCHS {node.NOISE_EPOCHS}: must be from 0 to {cycle}": (
                not 0 <= node.NOISE_EPOCHS <= optim.CYCLE_EPOCHS
            ),
            "MODEL.INIT_WEIGHTS: each chain of TRAINER.REBAPL.CHAINS parallel has random weights": (
                node.CHAINS == "parallel" and cfg.MODEL.INIT_WEIGHTS
            ),
            f"OPTIM.WARMUP_EPOCH {optim.WARMUP_EPOCH}: a chain of CHAINS parallel has {cycle}": (
                node.CHAINS == "parallel" and optim.WARMUP_EPOCH >= optim.CYCLE_EPOCHS
            ),
            f"TRAINER.REBAPL.REPULSION.FEATURES image: {name} learns nothing of images; set text": (
                of_images and says(self, "frozen_image_tower")
            ),
        }
        for line, so in wrong.items():
            if so:
                raise UsageError(line)

    def build_model(self) -> None:
        super().build_model()
        self.before, self.present, self.reference_seed = [], [], self.seed

    # -- training

    def before_train(self) -> None:
        steps, k = self.sampling_steps(len(self.train_loader_x)), self.sampler.SAMPLES_PER_CYCLE
        if k > steps:
            line = f"TRAINER.REBAPL.SAMPLES_PER_CYCLE {k}: the sampling stage of a cycle has"
            raise UsageError(f"{line} {steps} steps")
        super().before_train()

    def before_epoch(self) -> None:
        """Begins a cycle if it is time, and sets the epoch's kind of steps and their noise."""
        super().before_epoch()
        node, cycle = self.sampler, self.cfg.OPTIM.CYCLE_EPOCHS
        if self.epoch % cycle == 0:
            self.before, self.present = self.present, []
            if self.epoch and node.CHAINS == "parallel":
                self.new_chain()
        noisy = self.epoch % cycle >= cycle - node.NOISE_EPOCHS
        self.optim.adamw = node.EXPLORE == "adamw" and not noisy
        n_images = len(self.train_loader_x.dataset)
        for group in self.optim.param_groups:
            if node.NOISE == "paper":
                group["momentum"] = 1 - node.FRICTION
            std = noise_std(node, group["lr"], group["momentum"], n_images)
            group["noise"] = std if noisy else 0.0

    def new_chain(self) -> None:
        """New random weights, no momentum, the schedule from its beginning."""
        fresh = self.build_learner(self.model.clip, self.classnames)
        self.model.learner.load_state_dict(fresh.state_dict())
        self.optim.state.clear()
        for group in self.optim.param_groups:
            group["lr"] = group["initial_lr"]
        self.sched = self._scheds[self.model_name] = build_lr_scheduler(self.optim, self.cfg.OPTIM)

    def forward_backward(self, batch: dict) -> dict[str, Tensor]:
        log = super().forward_backward(batch)
        return log | ({"distance": self.distance} if self.before else {})

    def step(self) -> None:
        """The host's step with the force, then a sample if one is due."""
        force = self.force() if self.before else {}
        if self.repulsion.ADD_TO == "gradient":
            scale = self.scaled(torch.ones((), device=self.device))  # amp's, of p.grad
            for p, f in force.items():
                p.grad = -scale * f if p.grad is None else p.grad - scale * f
        super().step()
        if self.repulsion.ADD_TO == "parameters":
            with torch.no_grad():
                for p, f in force.items():
                    p += f.nan_to_num(0.0, 0.0, 0.0)  # amp's scaler sees gradients alone overflow
        stage = self.sampling_steps(self.num_batches)
        before_stage = self.cfg.OPTIM.CYCLE_EPOCHS * self.num_batches - stage
        done = self.epoch % self.cfg.OPTIM.CYCLE_EPOCHS * self.num_batches + self.batch_idx + 1
        if ends_part(done - before_stage, stage, self.sampler.SAMPLES_PER_CYCLE):
            self.keep_sample()

    def sampling_steps(self, steps_of_epoch: int) -> int:
        """Steps of a cycle's sampling stage; without noise it is the last epoch."""
        return max(1, self.sampler.NOISE_EPOCHS) * steps_of_epoch

    def keep_sample(self) -> None:
        """The present state is a sample from now on."""
        self.samples.append(self.frozen_copy())
        print(f"{self.position()} sample {len(self.samples)}")
        if self.repulsion.STRENGTH:
            with torch.no_grad():
                self.present.append(self.representation(self.samples[-1], self.all_rows()))

    # -- tests and checkpoints

    def average(self, logits: Tensor) -> Tensor:
        """Samples' logits (B, S, C) -> (B, C)."""
        return logits.mean(dim=-2) if self.sampler.AVERAGE == "logits" else super().average(logits)

    def state_to_resume(self) -> dict:
        repelled = {"before": self.before, "present": self.present}
        return super().state_to_resume() | repelled | {"reference_seed": self.reference_seed}

    def resume_state(self, state: Mapping) -> None:
        super().resume_state(state)
        self.before = [features.to(self.device) for features in state["before"]]
        self.present = [features.to(self.device) for features in state["present"]]
        self.reference_seed = state["reference_seed"]


@TRAINER_REGISTRY.register()
class ReBaPL_MaPLe(ReBaPL, MaPLe):
    """On MaPLe, as published."""

    graphed = divisible = takes_attributes = True


@TRAINER_REGISTRY.register()
class ReBaPL_MMRL(ReBaPL, MMRL):
    """On MMRL. The force compares class tokens' features alone, since every test reads these.

    So it does not act on the second projection, nor on the maps to the text tower.
    """

    graphed = divisible = True


@TRAINER_REGISTRY.register()
class ReBaPL_CoOp(ReBaPL, CoOp):
    """On CoOp, whose image tower is frozen: REPULSION.FEATURES is text."""

    frozen_image_tower = graphed = divisible = takes_attributes = takes_csc = True


@TRAINER_REGISTRY.register()
class ReBaPL_P2C(ReBaPL, P2C):
    """On P2C, whose own noise stays on in training."""

    graphed = divisible = takes_attributes = True
