"""Bayesian Prompt Learning (Derakhshani et al., ICCV 2023): CoOp with a context shifted at random.

One random vector r ~ N(μ, diag σ²) is added to each vector of ctx. μ and σ are made by nets from
the image's feature (conditional), or are parameters, the same for all images (unconditional). A
prediction averages the probabilities of L draws.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from dassl.config import allow
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import ranks
from dassl.utils.errors import UsageError

from .coop import CoOp, PromptLearner
from .draws import MOST_PROMPTS, ConditionalCLIP, Noise, in_parts, kl_normal, log_mean_probability

# The logits (B, L, C) of L draws -> log-probabilities (B, C) for the loss.
LIKELIHOODS = {
    "log_mean": log_mean_probability,
    "mean_log": lambda logits: logits.log_softmax(dim=-1).mean(dim=-2),
}
# The divergence of each dimension (R, W) -> of each posterior (R,).
REDUCTIONS = {"mean": partial(torch.mean, dim=-1), "sum": partial(torch.sum, dim=-1)}
CHOICES = {
    "VPT_TYPE": {  # with each a key that only its checkpoints have
        "cocoopvpt": "meta_net.weight_mean.module.0.weight",
        "coopvpt": "mean_posterior",
    },
    "KL_REDUCTION": REDUCTIONS,
    "LIKELIHOOD": LIKELIHOODS,
}


def add_config(cfg: CfgNode) -> None:
    """Upstream's node and its keys, named after the first version, Variational Prompt Tuning."""
    node = cfg.TRAINER.VPT = CfgNode()
    node.N_CTX = 16
    node.CTX_INIT = None  # words to start from, which then also set N_CTX; none: random
    node.PREC = "fp16"  # fp16, bf16, fp32, tf32, amp
    node.VPT_TYPE = "cocoopvpt"  # a posterior for each image; coopvpt: one for all
    node.L = 10  # draws in a training step
    node.TEST_L = 0  # draws in a test; 0: L
    node.KL_WEIGHT = 0.001
    node.KL_REDUCTION = "mean"  # over the dimensions of r, as upstream; sum: the divergence itself
    node.LIKELIHOOD = "log_mean"  # as upstream: log of the mean probability; mean_log: eq. 1
    node.INIT_LOGVAR = None  # log σ² at the start; None: upstream's random one
    node.HIDDEN = 0  # of the nets that make an image's posterior; 0: half the feature's width


allow("0 or more", lambda v: v >= 0, "VPT.KL_WEIGHT VPT.TEST_L VPT.HIDDEN")
allow("1 or more", lambda v: v >= 1, "VPT.L")
allow("a number from -100 to 20, or None", lambda v: v is None or -100 <= v <= 20, "INIT_LOGVAR")


class PosteriorPromptLearner(PromptLearner):
    """CoOp's ctx, and the posterior of the vector r that is added to each of its vectors.

    A subclass has `posterior(image_features)` -> mean and log σ², each (R, W): R is B if the
    posterior is `conditional` on the image, else 1.

    Args:
        noise: the standard normal noise of its draws.
    """

    conditional: bool

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int,
        words: Sequence[int],
        *,
        noise: Noise,
    ):
        super().__init__(clip_model, classnames, n_ctx, words)
        self.noise = noise

    def draws(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """L draws (R, L, W) of r."""
        noise = self.noise(mean, mean.shape[-1])
        return mean[:, None] + (log_var / 2).exp()[:, None] * noise

    def conditional_text_features(self, clip_model: CLIP, r: Tensor) -> Tensor:
        """(G, W) -> (G, C, D), not normalised."""
        return self.text.encode(clip_model, {"ctx": self.vectors()["ctx"] + r[:, None]})


class UnconditionalLearner(PosteriorPromptLearner):
    conditional = False

    def __init__(self, *args, init_log_var: float | None, **options):
        super().__init__(*args, **options)
        like = self.ctx[:1].detach()  # (1, W)
        fixed = init_log_var is not None
        log_var = torch.full_like(like, init_log_var) if fixed else torch.rand_like(like)
        self.mean_posterior = nn.Parameter(torch.zeros_like(like))
        self.std_posterior = nn.Parameter(log_var)  # upstream's name for log σ²

    def posterior(self, image_features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.mean_posterior, self.std_posterior

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(L, C, D), not normalised."""
        with ranks.alone():  # all images have the same draws, whose process ever they are
            [r] = self.draws(*self.posterior())
        encode = partial(self.conditional_text_features, clip_model)
        return in_parts(encode, MOST_PROMPTS // self.text.suffixes.classes, r)


class ConditionalLearner(PosteriorPromptLearner):
    """`meta_net` has two nets: from an image's feature (D) to the mean, and to log σ²."""

    conditional = True

    def __init__(self, clip_model: CLIP, *args, init_log_var: float | None, hidden: int, **options):
        super().__init__(clip_model, *args, **options)
        dim, width = clip_model.visual.output_dim, clip_model.transformer.width
        sizes = dim, hidden or dim // 2, width
        self.meta_net = nn.ModuleDict({"weight_mean": net(*sizes)})
        self.meta_net["weight_log_variance"] = net(*sizes)
        if init_log_var is not None:
            last = self.meta_net["weight_log_variance"]["module"][-1]
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, init_log_var)

    def posterior(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D), unit length -> each (B, W)."""
        mean = self.meta_net["weight_mean"]["module"](image_features)
        log_var = self.meta_net["weight_log_variance"]["module"](image_features)
        # amp's half precision is too coarse for the divergence
        return mean.to(self.ctx.dtype), log_var.to(self.ctx.dtype)


def net(n_in: int, hidden: int, n_out: int) -> nn.ModuleDict:
    """Three linear layers, with upstream's names."""
    first, second, third = map(nn.Linear, (n_in, hidden, hidden), (hidden, hidden, n_out))
    return nn.ModuleDict({"module": nn.Sequential(first, nn.ELU(), second, nn.ELU(), third)})


class BayesianCLIP(ConditionalCLIP):
    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> the log of the draws' mean probability (B, C), float32."""
        return log_mean_probability(self.draws(image)[0])

    def draws(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, R, R) -> the draws' logits (B, L, C), float32; mean and log σ² of r."""
        features = self.image_features(image)
        mean, log_var = self.learner.posterior(features)
        if self.learner.conditional:
            logits = self.draws_logits(features, self.learner.draws(mean, log_var))
        else:
            text = self.text_features()  # (L, C, D), in a test made once
            logits = self.logits(features, text.flatten(0, 1)).unflatten(1, text.shape[:2])
        return logits, mean, log_var


@TRAINER_REGISTRY.register()
class BayesianPrompt(CoOp):
    node_name = "VPT"
    frozen_image_tower = graphed = divisible = True
    model_class = BayesianCLIP

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        for key, choices in CHOICES.items():
            if (given := cfg.TRAINER.VPT[key]) not in choices:
                raise UsageError(f"TRAINER.VPT.{key} {given!r}: choose from {', '.join(choices)}")

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        node = self.node
        options = {
            "noise": Noise(node.L, node.TEST_L or node.L, self.seed),
            "init_log_var": node.INIT_LOGVAR,
        }
        if node.VPT_TYPE == "coopvpt":
            return UnconditionalLearner(clip_model, classnames, *self.start(), **options)
        options["hidden"] = node.HIDDEN
        return ConditionalLearner(clip_model, classnames, *self.start(), **options)

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative log-likelihood, and KL_WEIGHT times the divergence from N(0, I)."""
        logits, mean, log_var = self.model.draws(image)
        likelihood, reduce = LIKELIHOODS[self.node.LIKELIHOOD], REDUCTIONS[self.node.KL_REDUCTION]
        kl = reduce(kl_normal(mean, log_var)).mean()
        return F.nll_loss(likelihood(logits), label) + self.node.KL_WEIGHT * kl, {"kl": kl.detach()}

    def clean_state_dict(self, name: str, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Unchanged. Raises: UsageError for a file of the other VPT_TYPE."""
        of_file = [form for form, key in CHOICES["VPT_TYPE"].items() if key in state_dict]
        if of_file and self.node.VPT_TYPE not in of_file:
            line = f"the model to load is of TRAINER.VPT.VPT_TYPE {of_file[0]}"
            raise UsageError(f"TRAINER.VPT.VPT_TYPE {self.node.VPT_TYPE}: {line}")
        return super().clean_state_dict(name, state_dict)


@TRAINER_REGISTRY.register()
class VPT(BayesianPrompt):
    """BayesianPrompt by the name that it has in upstream's commands."""

    frozen_image_tower = graphed = divisible = True
