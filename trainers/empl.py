"""EMPL: energy-based multi-prompt learning after the abstract of Chen et al. (ICCV 2023).

Only the abstract was available. From it: several prompt embeddings for an image, drawn from an
energy-based distribution that CLIP itself defines. The rest, settings included, is ours
(docs/METHODS.md), so its numbers are not the paper's.

Shapes: B images in groups of b that share M prompts: with PER image each is a group (B groups,
b = 1), with PER batch all are one (1 group, b = B). G = groups · M rows; C classes.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.config import allow
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import ranks

from . import draws
from .base import CustomCLIP
from .coop import CoOp, PromptLearner

WHAT = (
    "EMPL here is energy-based multi-prompt learning after the abstract of Chen et al. (ICCV 2023):"
    " the rest is this project's choice, and its numbers are not the paper's"
)
# Of logits (…, C): low where CLIP finds that prompt and image fit. No label is needed.
ENERGIES = {
    "lse": lambda logits: -logits.logsumexp(dim=-1),
    "entropy": lambda logits: -(logits.softmax(dim=-1) * logits.log_softmax(dim=-1)).sum(dim=-1),
    "max": lambda logits: -logits.amax(dim=-1),
}


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.EMPL = CfgNode()
    node.N_CTX = 4
    node.CTX_INIT = "a photo of a"  # words to start from, which then also set N_CTX; "": random
    node.PREC = "fp32"  # fp16, bf16, fp32, tf32, amp
    node.ENERGY = "lse"  # or entropy, max
    node.TEMPERATURE = 1.0  # T: the energy is T · ENERGY(logits / T)
    node.PRIOR_STD = 0.02  # σ of a Gaussian around ctx, whose energy is added; 0: none
    node.SAMPLES = 4  # M
    node.STEPS = 3  # of a chain
    node.STEP = 0.01  # their size
    node.NORMALIZE = True  # the gradient's root mean square over a prompt becomes 1
    node.NOISE = 0.01  # std of the noise of each step
    node.INIT_NOISE = 0.01  # std of the noise with which a chain starts
    node.COUPLED = False  # Welling and Teh's: STEP / 2, and noise of std √STEP in place of NOISE
    node.META = "first_order"  # gradients take a chain's way as a constant; unrolled: go through it
    node.AVERAGE = "probability"  # what is averaged over the prompts; or logit, feature (of texts)
    node.PER = "image"  # or batch: one set of prompts for all its images, by their mean energy
    node.TEST_SAMPLES = 0  # 0: SAMPLES
    node.TEST_STEPS = 0  # 0: STEPS


allow("lse, entropy or max", lambda v: v in ENERGIES, "EMPL.ENERGY")
allow("first_order or unrolled", lambda v: v in ("first_order", "unrolled"), "EMPL.META")
allow("probability, logit or feature", lambda v: v in ("probability", "logit", "feature"),
      "EMPL.AVERAGE")  # fmt: skip
allow("image or batch", lambda v: v in ("image", "batch"), "EMPL.PER")
allow("above 0", lambda v: v > 0, "EMPL.TEMPERATURE")
allow("1 or more", lambda v: v >= 1, "EMPL.SAMPLES")
allow("0 or more", lambda v: v >= 0, "EMPL.PRIOR_STD EMPL.STEPS EMPL.STEP EMPL.NOISE "
      "EMPL.INIT_NOISE EMPL.TEST_SAMPLES EMPL.TEST_STEPS")  # fmt: skip
allow("at most 1000", lambda v: v <= 1000,
      "EMPL.SAMPLES EMPL.STEPS EMPL.TEST_SAMPLES EMPL.TEST_STEPS")  # fmt: skip


class EMPLCLIP(CustomCLIP):
    """The learner is CoOp's: one ctx (N, W), where the chains start.

    The trainer sets `node`, its settings, and `noise`, that of the chains.
    """

    node: CfgNode
    noise: draws.Noise

    @property
    def ctx(self) -> Tensor:
        """(N, W)."""
        return self.learner.vectors()["ctx"]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> logits (B, C); of averaged probabilities, their logarithms."""
        if not self.steps and not self.node.INIT_NOISE:  # each prompt would be ctx
            return super().forward(image)
        groups = self.groups(self.image_features(image))  # (groups, b, D)
        text = self.own_texts(groups)  # (groups, M, C, D)
        if self.node.AVERAGE == "feature":
            text = self.unit(text.mean(dim=1, keepdim=True))  # M is 1 from here on
        logits = self.row_logits(groups.repeat_interleave(text.shape[1], 0), text.flatten(0, 1))
        logits = logits.unflatten(0, (len(groups), -1)).transpose(1, 2)  # (groups, b, M, C)
        logits = logits.flatten(0, 1)  # (B, M, C)
        if self.node.AVERAGE == "probability":
            return draws.log_mean_probability(logits)
        return logits.mean(dim=1)

    @property
    def steps(self) -> int:
        """Of a chain."""
        return self.node.STEPS if self.training else self.node.TEST_STEPS or self.node.STEPS

    def groups(self, features: Tensor) -> Tensor:
        """Unit-length features (B, D) -> (groups, b, D)."""
        return features[:, None] if self.node.PER == "image" else features[None]

    def own_texts(self, groups: Tensor) -> Tensor:
        """Unit-length image features (groups, b, D) -> (groups, M, C, D), unit length."""
        prompts = self.sample(groups)  # (groups, M, N, W)
        text = draws.in_parts(self.texts, self.most(), prompts.flatten(0, 1))  # (G, C, D)
        return text.unflatten(0, prompts.shape[:2])

    def sample(self, groups: Tensor) -> Tensor:
        """Unit-length image features (groups, b, D) -> M prompts for each group."""
        ctx = self.ctx
        noise = self.noise(groups, 1 + self.steps, *ctx.shape)  # (groups, M, …)
        rows = groups.repeat_interleave(noise.shape[1], dim=0), noise.flatten(0, 1)
        if self.node.META == "unrolled" and torch.is_grad_enabled():
            ends = draws.in_parts(self.chain, self.most(), *rows)
        else:
            with torch.no_grad():
                way = draws.in_parts(self.chain, self.most(), *rows) - ctx
            ends = ctx + way
        return ends.unflatten(0, noise.shape[:2])

    def chain(self, features: Tensor, noise: Tensor) -> Tensor:
        """Langevin chains on E that start at ctx: their ends (G, N, W), float32 whatever PREC is.

        Args:
            features: (G, b, D), unit length, of the images a prompt is for.
            noise: (G, 1 + steps, N, W), standard normal: the start's and each step's.
        """
        node, unrolled, ctx = self.node, torch.is_grad_enabled(), self.ctx
        step, std = node.STEP, node.NOISE
        if node.COUPLED:
            step, std = step / 2, step**0.5
        # Of the attention kernels only this one can be differentiated twice.
        attention = sdpa_kernel(SDPBackend.MATH) if unrolled else nullcontext()
        with torch.enable_grad(), torch.autocast(ctx.device.type, enabled=False), attention:
            h = ctx + node.INIT_NOISE * noise[:, 0]
            for kick in noise[:, 1:].unbind(dim=1):
                h = h if unrolled else h.detach().requires_grad_()
                energy = self.energy(h, features).sum()
                [slope] = torch.autograd.grad(energy, h, create_graph=unrolled)
                if node.NORMALIZE:
                    mean = slope.square().mean(dim=(1, 2), keepdim=True)
                    slope = slope * mean.clamp(min=1e-30).rsqrt()
                h = h - step * slope + std * kick
        return h

    def energy(self, prompts: Tensor, features: Tensor) -> Tensor:
        """E(h; x) of rows: (G, N, W), and the features (G, b, D) of their images -> (G,)."""
        node = self.node
        logits = self.row_logits(features, self.texts(prompts))  # (G, b, C)
        energy = node.TEMPERATURE * ENERGIES[node.ENERGY](logits / node.TEMPERATURE).mean(dim=1)
        if node.PRIOR_STD:
            away = (prompts - self.ctx).square().sum(dim=(1, 2))
            energy = energy + away / (2 * node.PRIOR_STD**2)
        return energy

    def texts(self, prompts: Tensor) -> Tensor:
        """(G, N, W) -> (G, C, D), unit length."""
        return self.unit(self.learner.text.encode(self.clip, {"ctx": prompts}))

    def row_logits(self, features: Tensor, text: Tensor) -> Tensor:
        """Unit length, (G, b, D) and (G, C, D) -> (G, b, C): `logits` of each row."""
        return torch.vmap(self.logits)(features, text)

    def most(self) -> int:
        """Rows at a time."""
        return draws.MOST_PROMPTS // self.learner.text.suffixes.classes


@TRAINER_REGISTRY.register()
class EMPL(CoOp):
    """The loss, cross-entropy of the averaged prediction, is CLIPTrainer's."""

    frozen_image_tower = graphed = divisible = True
    note = WHAT
    no_graph = "a test of EMPL takes gradients, by which its prompts are drawn for each image"
    node_name = "EMPL"
    model_class = EMPLCLIP

    def build_model(self) -> None:
        super().build_model()
        node = self.model.node = self.node
        n_test = node.TEST_SAMPLES or node.SAMPLES
        self.model.noise = draws.Noise(node.SAMPLES, n_test, self.seed)
        if self.node.PER == "batch":
            size = f"DATALOADER.TEST.BATCH_SIZE {self.cfg.DATALOADER.TEST.BATCH_SIZE}"
            print(f"TRAINER.EMPL.PER batch: a test's result depends on its batches, here of {size}")

    def before_train(self) -> None:
        if self.node.PER == "batch":
            ranks.refuse("TRAINER.EMPL.PER batch: a batch's prompts are made of all its images")
        super().before_train()

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        return PromptLearner(clip_model, classnames, *self.start())
