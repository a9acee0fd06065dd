"""VaMP (Cheng and Han, NeurIPS 2025, arXiv 2511.22664): each image has text prompts of its own,
drawn from Gaussians.

For every layer a net makes a Gaussian of text prompts z of the image's frozen feature: the
posterior (eq. 13, 14). In training it is held near the Gaussian that a second net makes of the
prototype of the image's class: the class-aware prior (eq. 18, 19). The image tower's prompts are
ordinary ones. Here all prompts are in MaPLe's places, in vamp_mmrl.py in MMRL's. There is no public
code; docs/METHODS.md says what was chosen where the paper is silent.

Shapes: B images, S draws for each, L layers with M prompts of width W (Wv in the image tower).
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.clip import _tokenizer
from clip.model import CLIP
from dassl.data.data_manager import build_data_loader
from dassl.engine import TRAINER_REGISTRY
from dassl.utils.errors import UsageError

from .base import CLIPTrainer
from .draws import ConditionalCLIP, kl_normal, log_mean_probability, normal
from .frozen_clip import check_depth
from .prompt_text import Gap, PromptText, check_length, zero_shot_template


def add_config(cfg: CfgNode) -> None:
    node = cfg.TRAINER.VAMP = CfgNode()
    node.N_CTX = 2  # M
    node.PROMPT_DEPTH = 9  # L, blocks that get prompts in both towers
    node.HIDDEN = 32  # width between the two linear layers of a net
    node.INIT_STD = 0.02  # σ that the Gaussians begin with
    node.SAMPLE_SPECIFIC = True  # False: learned text prompts, the same for all images
    node.VARIATIONAL = True  # False: z is what the net makes of the image; nothing is drawn, no KL
    node.PRIOR = "class"  # class, normal: N(0, I)
    node.TRAIN_SAMPLES = 1
    node.TEST_SAMPLES = 10  # S; 0: the posterior's mean takes the draws' place
    node.KL_WEIGHT = 1.0
    node.KL_REDUCTION = "mean"  # over a layer's M·W elements: mean, sum (the ELBO as it stands)
    node.FEATURE_NORM = True  # the frozen feature has unit length before a net sees it
    node.PROTOTYPE_NORM = True  # the prototype too
    node.PREC = "amp"  # fp16, bf16, fp32, tf32, amp


class Gaussians(nn.ModuleList):
    """L nets, none shared: (B, D) -> means of z and, with `std`, log-variances, each (B, L, M, W).

    They begin near N(m, std²), m random vectors as prompts begin with.
    """

    def __init__(self, dim: int, hidden: int, shape: tuple[int, int, int], std: float | None):
        super().__init__()
        layers, *tokens = shape
        self.outputs = (1 if std is None else 2, *tokens)  # means, log-variances
        for _ in range(layers):
            bias = torch.empty(self.outputs).normal_(std=0.02)
            if std is not None:
                bias[1] = torch.tensor(std).log() * 2
            first, second = nn.Linear(dim, hidden), nn.Linear(hidden, bias.numel())
            second.bias = nn.Parameter(bias.flatten())
            self.append(nn.Sequential(OrderedDict(fc1=first, act=nn.GELU(), fc2=second)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        # amp would round variances and means to half precision
        with torch.autocast(x.device.type, enabled=False):
            made = torch.stack([net(x) for net in self], dim=1)
        return made.unflatten(-1, self.outputs).unbind(2)


class VariationalLearner(nn.Module):
    """The text prompts, without their places in the towers.

    Args:
        node: TRAINER.VAMP.
        shape: L, M, W.
    """

    def __init__(self, node: CfgNode, clip_model: CLIP, shape: tuple[int, int, int]):
        super().__init__()
        self.node, dim = node, clip_model.visual.output_dim
        std = node.INIT_STD if node.VARIATIONAL else None
        if node.SAMPLE_SPECIFIC:
            self.posterior = Gaussians(dim, node.HIDDEN, shape, std)
        else:
            self.prompts = nn.Parameter(torch.empty(shape).normal_(std=0.02))
        if node.VARIATIONAL and node.PRIOR == "class":
            self.prior = Gaussians(dim, node.HIDDEN, shape, std)

    def text_features(self, clip_model: CLIP) -> Tensor:
        """(C, D), not normalised, of prompts that are the same for all images."""
        return self.conditional_text_features(clip_model, self.prompts[None])[0]

    def draws(self, mean: Tensor, log_var: Tensor, n: int, seed: int | None = None) -> Tensor:
        """n draws for each image, (B, n, L, M, W), with gradients to mean and log-variance."""
        noise = normal(mean, n, *mean.shape[1:], seed=seed)
        return mean[:, None] + (0.5 * log_var).exp()[:, None] * noise

    def test_prompts(self, features: Tensor, seed: int) -> Tensor:
        """Frozen image features (B, D) -> (B, S, L, M, W)."""
        mean, *log_var = self.posterior(features)
        samples = self.node.TEST_SAMPLES if log_var else 0
        return self.draws(mean, *log_var, samples, seed) if samples else mean[:, None]

    def kl(self, mean: Tensor, log_var: Tensor, prototypes: Tensor | None) -> Tensor:
        """Σ over layers of KL(q ‖ p), mean over images (eq. 20).

        prototypes: (B, D), those of the images' classes; None: p is N(0, I).
        """
        prior = () if prototypes is None else self.prior(prototypes)
        kl = kl_normal(mean, log_var, *prior).flatten(2)  # (B, L, M·W)
        of_layers = kl.mean(dim=2) if self.node.KL_REDUCTION == "mean" else kl.sum(dim=2)
        return of_layers.sum(dim=1).mean()


class VaMPLearner(VariationalLearner):
    """z in front of the template's words and in the next blocks; learned vectors behind the
    patches."""

    def __init__(self, node: CfgNode, clip_model: CLIP, classnames: list[str], template: str):
        text, vision = clip_model.transformer, clip_model.visual.transformer
        check_length(node.N_CTX, ())
        check_depth("TRAINER.VAMP.PROMPT_DEPTH", node.PROMPT_DEPTH, text, vision)
        depth, n_ctx = node.PROMPT_DEPTH, node.N_CTX
        super().__init__(node, clip_model, (depth, n_ctx, text.width))
        vision_prompts = torch.empty(depth, n_ctx, vision.width).normal_(std=0.02)
        self.vision_prompts = nn.Parameter(vision_prompts)  # (L, M, Wv)
        before, ending = template.split("{}")
        words = [Gap("z", n_ctx), _tokenizer.encode(before)]
        self.text = PromptText(clip_model, classnames, words, ending=ending)

    def conditional_text_features(self, clip_model: CLIP, z: Tensor) -> Tensor:
        """(G, L, M, W) -> (G, C, D), not normalised."""
        first, *others = z[:, None].unbind(2)  # each (G, 1, M, W)
        deep = {block: (self.text.where["z"], z) for block, z in enumerate(others, start=1)}
        return self.text.encode(clip_model, {"z": first[:, 0]}, deep)

    def image_features(self, clip_model: CLIP, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D), not normalised."""
        first, *others = self.vision_prompts[:, None]  # each (1, M, Wv)
        return clip_model.encode_image(image, first, dict(enumerate(others, start=1)))


class VaMPCLIP(ConditionalCLIP):
    seed: int  # of the draws of tests

    def condition(self, image: Tensor) -> Tensor:
        """What the posterior sees of an image: (B, 3, R, R) -> (B, D), of CLIP as it is."""
        if self.learner.node.FEATURE_NORM:
            return self.frozen_image_features(image)
        with torch.no_grad():
            return self.clip.encode_image(image).to(self.clip.logit_scale.dtype)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> the log of the probabilities' mean over the draws (eq. 21), (B, C)."""
        if not self.learner.node.SAMPLE_SPECIFIC:
            return super().forward(image)
        z = self.learner.test_prompts(self.condition(image), self.seed)
        return log_mean_probability(self.draws_logits(self.image_features(image), z))


@TRAINER_REGISTRY.register()
class VaMP(CLIPTrainer):
    node_name = "VAMP"
    model_name = "VariationalPromptLearner"
    model_class = VaMPCLIP
    graphed = True

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node = cfg.TRAINER.VAMP
        drawn, fixed = node.VARIATIONAL, not node.SAMPLE_SPECIFIC
        why = "prompts that are the same for all images are not drawn; set it to False"
        train, test = node.TRAIN_SAMPLES, node.TEST_SAMPLES
        kinds, ways = ("class", "normal"), ("mean", "sum")
        must = {
            f"HIDDEN {node.HIDDEN}: must be from 1 to 10000": 1 <= node.HIDDEN <= 10000,
            f"INIT_STD {node.INIT_STD}: must be above 0": node.INIT_STD > 0,
            f"VARIATIONAL True with SAMPLE_SPECIFIC False: {why}": not (drawn and fixed),
            f"PRIOR {node.PRIOR!r}: choose from {', '.join(kinds)}": node.PRIOR in kinds,
            f"TRAIN_SAMPLES {train}: must be from 1 to 1000": 1 <= train <= 1000,
            f"TEST_SAMPLES {test}: must be from 0 to 1000": 0 <= test <= 1000,
            f"KL_WEIGHT {node.KL_WEIGHT}: must be 0 or more": node.KL_WEIGHT >= 0,
            f"KL_REDUCTION {node.KL_REDUCTION!r}: choose from {', '.join(ways)}": (
                node.KL_REDUCTION in ways
            ),
        }
        for message, fine in must.items():
            if not fine:
                raise UsageError(f"TRAINER.VAMP.{message}")

    def build_learner(self, clip_model: CLIP, classnames: list[str]) -> nn.Module:
        return VaMPLearner(self.node, clip_model, classnames, zero_shot_template(self.cfg))

    def build_model(self) -> None:
        super().build_model()
        self.model.seed = self.seed

    # -- prototypes, which only the prior's net sees, and only in training

    @cached_property
    def prototypes(self) -> Tensor:
        """(C, D): of each class the mean feature of its training images, not augmented (eq. 18)."""
        tfm, size = self.test_loader.dataset.transform, self.cfg.DATALOADER.TEST.BATCH_SIZE
        items = self.dm.dataset.train_x
        loader = build_data_loader(
            self.cfg, data_source=items, batch_size=size, tfm=tfm, is_train=False
        )
        with self.autocast():
            features = [self.model.condition(self.parse_batch_test(batch)[0]) for batch in loader]
        features, labels = torch.cat(features), [item.label for item in items]
        own = [[i for i, label in enumerate(labels) if label == c] for c in range(self.num_classes)]
        means = torch.stack([features[of_class].mean(dim=0) for of_class in own])
        print(f"Prototypes: {len(own)} classes, {len(items)} training images")
        return F.normalize(means, dim=-1) if self.node.PROTOTYPE_NORM else means

    @property
    def class_aware(self) -> bool:
        return self.node.VARIATIONAL and self.node.PRIOR == "class"

    def before_train(self) -> None:
        super().before_train()  # which takes them from a checkpoint it goes on from
        if self.class_aware:
            _ = self.prototypes

    def state_to_resume(self) -> dict:
        prototypes = {"prototypes": self.prototypes} if self.class_aware else {}
        return super().state_to_resume() | prototypes

    def resume_state(self, state: Mapping) -> None:
        super().resume_state(state)
        if self.class_aware:
            self.prototypes = state["prototypes"].to(self.device)

    # -- a training step

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """E_q[−log p(y | x, z)] + weight · Σ KL(q(z | x) ‖ p(z | o_y)) (eq. 20)."""
        node, learner = self.node, self.model.learner
        if not node.VARIATIONAL:
            return super().loss(image, label)
        mean, log_var = learner.posterior(self.model.condition(image))
        z = learner.draws(mean, log_var, node.TRAIN_SAMPLES)  # (B, S, L, M, W)
        likelihood = self.likelihood(image, label, z)
        kl = learner.kl(mean, log_var, self.prototypes[label] if self.class_aware else None)
        return likelihood + node.KL_WEIGHT * kl, {"kl": kl.detach()}

    def likelihood(self, image: Tensor, label: Tensor, z: Tensor) -> Tensor:
        """The cross-entropy of each draw (B, S, L, M, W), their mean."""
        logits = self.model.draws_logits(self.model.image_features(image), z)  # (B, S, C)
        label = label.repeat_interleave(logits.shape[1])
        return F.cross_entropy(logits.flatten(0, 1), label)
