"""ReBaPL (Bendou et al., CVPR 2026, arXiv 2511.17339): samples of a host's prompts by cyclical
SGHMC, whose chain is repelled from where its last cycle ended, and their mean prediction.

A host is any method of CLIPTrainer's: learner, loss, config node and PREC stay its own. The engine
has the cycles of the rate (OPTIM.LR_SCHEDULER cyclic_cosine) and the optimizer (OPTIM.NAME sghmc).
docs/METHODS.md says where the paper and its published code differ.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from yacs.config import CfgNode

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
    node.NOISE_EPOCHS = 3  # the last of each cycle of OPTIM.CYCLE_EPOCHS: its sampling stage
    node.SAMPLES_PER_CYCLE = 1  # evenly spaced in the sampling stage, the last at its end
    node.NOISE = "code"  # code, paper: see noise_std
    node.TEMPERATURE = 100.0  # of NOISE code
    node.FRICTION = 0.1  # η of NOISE paper, with which the momentum is 1 - η
    node.NOISE_ESTIMATE = 0.0  # γ̂ of NOISE paper
    node.EXPLORE = "sghmc"  # adamw: steps before the sampling stage, each stage anew
    node.CHAINS = "sequential"  # parallel: each cycle starts from new random weights
    node.AVERAGE = "probabilities"  # probabilities, logits
    repulsion = node.REPULSION = CfgNode()
    repulsion.STRENGTH = 0.001  # ξ of the potential ξ / (d² + EPS); 0: none
    repulsion.DISTANCE = "mmd"  # mmd, wasserstein, mse
    repulsion.FEATURES = "image"  # image, text, both
    repulsion.IMAGES = 128  # reference images, of the training set
    repulsion.ROWS = 32  # features compared in a step, drawn in each; -1: all
    repulsion.AGAINST = "last"  # last, all: samples of the cycle before
    repulsion.ADD_TO = "gradient"  # gradient; parameters: past momentum and rate (eq. 16)
    repulsion.BANDWIDTH = 1.0  # of mmd's kernel
    repulsion.EPS = 1e-6
    repulsion.MAX_FORCE = 0.0  # what a longer force is shortened to; 0: none is


CHOICES = {
    "NOISE": ("code", "paper"),
    "EXPLORE": ("sghmc", "adamw"),
    "CHAINS": ("sequential", "parallel"),
    "AVERAGE": ("probabilities", "logits"),
    "DISTANCE": tuple(DISTANCES),
    "FEATURES": ("image", "text", "both"),
    "AGAINST": ("last", "all"),
    "ADD_TO": ("gradient", "parameters"),
}


def noise_std(node: CfgNode, lr: float, momentum: float, n_images: int) -> float:
    """The factor of ε ~ N(0, I) in SGHMC's velocity v; θ moves by -lr v.

    code: T √(2 lr μ) / N, as published. paper: √(2 (η - γ̂) α) / lr, eq. 17 with r = -lr v, and
    α = lr / N, as the loss is a mean and Ũ the sum over all N images.
    """
    if node.NOISE == "code":
        return node.TEMPERATURE * math.sqrt(2 * lr * momentum) / n_images
    return math.sqrt(2 * (node.FRICTION - node.NOISE_ESTIMATE) * lr / n_images) / lr if lr else 0.0


def ends_part(step: int, steps: int, parts: int) -> bool:
    """Whether `step`, from 1, is the last of one of `parts` parts of `steps` steps, evenly long."""
    return step > 0 and step * parts // steps > (step - 1) * parts // steps


class ReBaPL(Ensemble, Repelled):
    """Comes before a host: `class ReBaPL_MaPLe(ReBaPL, MaPLe)`.

    Attributes:
        present: representations of this cycle's samples; `before`: of those of the cycle before.
    """

    # -- config and model

    @property
    def sampler(self) -> CfgNode:
        """TRAINER.REBAPL; `node` is the host's."""
        return self.cfg.TRAINER.REBAPL

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node, cycle, epochs = cfg.TRAINER.REBAPL, cfg.OPTIM.CYCLE_EPOCHS, cfg.OPTIM.MAX_EPOCH
        repulsion, name = node.REPULSION, type(self).__name__
        for key, choices in CHOICES.items():
            section = "" if key in node else "REPULSION."
            if (value := node.get(key, repulsion.get(key))) not in choices:
                line = f"TRAINER.REBAPL.{section}{key} {value!r}: choose from {', '.join(choices)}"
                raise UsageError(line)
        if epochs % cycle:
            line = f"OPTIM.MAX_EPOCH {epochs}: {name} needs whole cycles of OPTIM.CYCLE_EPOCHS"
            raise UsageError(f"{line} {cycle}")
        if cfg.OPTIM.NAME != "sghmc":
            raise UsageError(f"OPTIM.NAME {cfg.OPTIM.NAME}: {name} needs sghmc, SGD with noise")
        if node.CHAINS == "parallel" and cfg.MODEL.INIT_WEIGHTS:
            line = "MODEL.INIT_WEIGHTS: with TRAINER.REBAPL.CHAINS parallel"
            raise UsageError(f"{line} each cycle starts from new random weights")
        still = repulsion.FEATURES == "image" and says(self, "frozen_image_tower")
        must = {
            f"NOISE_EPOCHS {node.NOISE_EPOCHS}: must be from 0 to OPTIM.CYCLE_EPOCHS {cycle}": (
                0 <= node.NOISE_EPOCHS <= cycle
            ),
            "NOISE_ESTIMATE and FRICTION: must be from 0 to 1, the first one not above the other": (
                0 <= node.NOISE_ESTIMATE <= node.FRICTION <= 1
            ),
            f"REPULSION.FEATURES image: {name} leaves the image tower as it is; choose text": (
                not still or not repulsion.STRENGTH
            ),
        }
        for message, fine in must.items():
            if not fine:
                raise UsageError(f"TRAINER.REBAPL.{message}")

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
        """Begins a cycle or its sampling stage if it is time, and sets the epoch's noise."""
        super().before_epoch()
        node, cycle = self.sampler, self.cfg.OPTIM.CYCLE_EPOCHS
        done, quiet = self.epoch % cycle, cycle - node.NOISE_EPOCHS
        if done == 0:
            self.before, self.present = self.present, []
            if node.EXPLORE == "adamw":
                self.optim.state.clear()
            if self.epoch and node.CHAINS == "parallel":
                self.new_chain()
        n_images = len(self.train_loader_x.dataset)
        for group in self.optim.param_groups:
            group["adam"] = node.EXPLORE == "adamw" and done < quiet
            if node.NOISE == "paper":
                group["momentum"] = 1 - node.FRICTION
            std = noise_std(node, group["lr"], group["momentum"], n_images)
            group["noise"] = std if done >= quiet else 0.0

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
                    p += f
        epochs_left = self.cfg.OPTIM.CYCLE_EPOCHS - 1 - self.epoch % self.cfg.OPTIM.CYCLE_EPOCHS
        steps_left = (epochs_left + 1) * self.num_batches - self.batch_idx - 1
        stage = self.sampling_steps(self.num_batches)
        if ends_part(stage - steps_left, stage, self.sampler.SAMPLES_PER_CYCLE):
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

    graphed = takes_attributes = True


@TRAINER_REGISTRY.register()
class ReBaPL_CoOp(ReBaPL, CoOp):
    """On CoOp, whose image tower is frozen: REPULSION.FEATURES is text."""

    frozen_image_tower = graphed = takes_attributes = takes_csc = True


@TRAINER_REGISTRY.register()
class ReBaPL_P2C(ReBaPL, P2C):
    """On P2C, whose own noise goes on."""

    graphed = takes_attributes = True


@TRAINER_REGISTRY.register()
class ReBaPL_MMRL(ReBaPL, MMRL):
    """On MMRL. The images' features that are compared are the class token's."""

    graphed = True

    def model_inference(self, input: Tensor) -> Tensor:
        for sample in self.samples:  # the rule of FUSE, known when a model is loaded
            sample.fused = self.model.fused
        return super().model_inference(input)
