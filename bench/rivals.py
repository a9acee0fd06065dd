"""The plain sides of the cloud's rivals: by reference/, loops over images and over draws.

What their authors' code keeps is kept: all classes of a draw are one batch of sentences, an image
is encoded once for all its draws, frozen texts once for all steps. Only in single precision:
reference/ knows no other for these.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TrainerX
from reference import (
    bpl_plain,
    empl_plain,
    maple_plain,
    mmrl_plain,
    rebapl_plain,
    vamp_mmrl_plain,
    vamp_plain,
)
from reference.maple_plain import as_leaves
from trainers import draws

from .cases import Batch, Case, Step
from .side import Side


class Rival(Side):
    """A side whose draws are ours: drawing is no part of the comparison."""

    def context(self) -> AbstractContextManager:
        """On a GPU the references make their tensors there."""
        device = self.case.device
        return nullcontext() if device == "cpu" else torch.device(device)

    def noise(self, rows: Tensor, *shape: int) -> Tensor:
        """What our training step draws (B, *shape) after the same `torch.manual_seed`."""
        return draws.normal(rows, *shape)

    def test_noise(self, *shape: int) -> Tensor:
        """What our test draws, the same for all images."""
        with torch.device("cpu"):  # where its generator is
            return draws.normal(self.first, *shape, seed=self.cfg.SEED)[0]

    @property
    def first(self) -> Tensor:
        """A row on the device."""
        return next(iter(self.prompts.values())).detach()[:1]


class BPL(Rival):
    """Both forms."""

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        shape = self.case.draws, self.prompts["ctx"].shape[1]
        one_for_all = "mean_posterior" in self.prompts
        noise = self.noise(self.first, *shape)[0] if one_for_all else self.noise(image, *shape)
        weight = self.cfg.TRAINER.VPT.KL_WEIGHT
        return bpl_plain.loss(self.clip, self.prompts, self.names, image, label, noise, weight)

    def logits(self, image: Tensor) -> Tensor:
        noise = self.test_noise(self.case.draws, self.prompts["ctx"].shape[1])
        return bpl_plain.logits(self.clip, self.prompts, self.names, image, noise)


class MMRL(Rival):
    def __init__(self, *args):
        super().__init__(*args)
        self.node = self.cfg.TRAINER.MMRL
        with self.context():
            self.teacher = mmrl_plain.teacher_features(self.clip, self.names)

    def features(self, image: Tensor) -> mmrl_plain.Features:
        layers = self.node.REP_LAYERS
        return mmrl_plain.features(self.clip, self.prompts, self.names, image, layers)

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        options = {"alpha": self.node.ALPHA, "reg_weight": self.node.REG_WEIGHT}
        given = self.clip, self.features(image), self.names, image, label
        return mmrl_plain.loss_of(*given, **options, teacher=self.teacher)

    def logits(self, image: Tensor) -> Tensor:
        of_class, of_rep = mmrl_plain.both_logits(self.clip, self.features(image))
        return self.node.ALPHA * of_class + (1 - self.node.ALPHA) * of_rep


class VaMP(Rival):
    @staticmethod
    def prepare(case: Case, trainer: TrainerX) -> None:
        """Prototypes."""
        generator, dim = torch.Generator().manual_seed(2), trainer.model.clip.visual.output_dim
        prototypes = torch.randn(case.classes, dim, generator=generator)
        trainer.prototypes = F.normalize(prototypes, dim=-1).to(case.device)

    def __init__(self, case: Case, weights, trainer: TrainerX):
        super().__init__(case, weights, trainer)
        self.prototypes, nets = trainer.prototypes, trainer.model.learner.text_prompts.posterior
        self.shape = case.draws, len(nets), *nets.outputs[1:]
        with self.context():
            self.host_loss, self.host_logits = self.host()

    def host(self) -> tuple:
        """vamp_plain's own."""
        return None, None

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        given = self.clip, self.prompts, self.names, image, label, self.noise(image, *self.shape)
        weight = self.cfg.TRAINER.VAMP.KL_WEIGHT
        return vamp_plain.loss(*given, self.prototypes, weight, host_loss=self.host_loss)

    def logits(self, image: Tensor) -> Tensor:
        given = self.clip, self.prompts, self.names, image, self.test_noise(*self.shape)
        return vamp_plain.log_probabilities(*given, host_logits=self.host_logits)


class VaMPOnMMRL(VaMP):
    def host(self) -> tuple:
        node = self.cfg.TRAINER.MMRL
        given = self.clip, self.prompts, self.names, node.REP_LAYERS, node.ALPHA
        loss = vamp_mmrl_plain.host_loss(*given, node.REG_WEIGHT)
        return loss, vamp_mmrl_plain.host_logits(*given)


class EMPL(Rival):
    def __init__(self, *args):
        super().__init__(*args)
        node = self.cfg.TRAINER.EMPL
        self.shape = self.case.draws, 1 + node.STEPS, *self.prompts["ctx"].shape
        self.settings = empl_plain.Settings(
            energy=node.ENERGY,
            temperature=node.TEMPERATURE,
            prior_std=node.PRIOR_STD,
            step=node.STEP,
            normalize=node.NORMALIZE,
            noise=node.NOISE,
            init_noise=node.INIT_NOISE,
        )

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        noise = self.noise(image, *self.shape)
        given = self.clip, self.prompts, self.names, image, label, noise
        return empl_plain.loss(*given, self.settings)

    def logits(self, image: Tensor) -> Tensor:
        noise = self.test_noise(*self.shape).expand(len(image), *self.shape)
        return empl_plain.logits(self.clip, self.prompts, self.names, image, noise, self.settings)


class ReBaPL(Rival):
    """On MaPLe. A step is of the second cycle: it is repelled from the sample of the first."""

    @staticmethod
    def prepare(case: Case, trainer: TrainerX) -> None:
        """Reference images, and where the first cycle ended; or for a test samples."""
        generator = torch.Generator().manual_seed(2)
        shaken = [shaken_copy(trainer, generator) for _ in range(case.draws)]
        if case.evaluates:
            trainer.samples = shaken
            return
        size = trainer.cfg.INPUT.SIZE
        trainer.references = torch.randn(case.draws, 3, *size, generator=generator).to(case.device)
        with torch.no_grad():
            trainer.present = [trainer.representation(shaken[0], trainer.all_rows())]
        trainer.epoch = trainer.cfg.OPTIM.CYCLE_EPOCHS
        trainer.before_epoch()

    def __init__(self, case: Case, weights, trainer: TrainerX):
        super().__init__(case, weights, trainer)
        self.samples = [as_leaves(dict(s.learner.named_parameters())) for s in trainer.samples]
        if not case.evaluates:
            self.references, [self.before] = trainer.references, trainer.before

    @staticmethod
    def our_step(trainer: TrainerX, batch: Batch) -> Step:
        """Its loss and the potential, whose gradient is the force."""
        repulsion = trainer.repulsion

        def step() -> Tensor:
            log = trainer.forward_backward(batch)
            return log["loss"] + repulsion.STRENGTH / (log["distance"] + repulsion.EPS)

        return step

    def host_logits(self, prompts: dict[str, Tensor], image: Tensor) -> Tensor:
        given = self.clip, prompts, self.names, image
        return maple_plain.maple_forward(*given, frozen_words="of a").logits

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        repulsion = self.cfg.TRAINER.REBAPL.REPULSION
        features = maple_plain.image_features(self.clip, self.prompts, self.references)
        features = features / features.norm(dim=-1, keepdim=True)
        given = features, [self.before], rebapl_plain.mmd, repulsion.STRENGTH, repulsion.EPS
        host = F.cross_entropy(self.host_logits(self.prompts, image), label)
        return host + rebapl_plain.potential(*given)

    def logits(self, image: Tensor) -> Tensor:
        of_each = [self.host_logits(sample, image) for sample in self.samples]
        return rebapl_plain.mean_probability(of_each).log()


def shaken_copy(trainer: TrainerX, generator: torch.Generator) -> torch.nn.Module:
    """A sample: the model as it is, moved far enough for float32 to tell the two apart."""
    sample = trainer.frozen_copy()
    for p in sample.learner.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator).to(p)
    return sample


SIDES: dict[str, type[Side]] = {
    "BayesianPrompt": BPL,
    "unconditional BayesianPrompt": BPL,
    "MMRL": MMRL,
    "VaMP": VaMP,
    "VaMP_MMRL": VaMPOnMMRL,
    "EMPL": EMPL,
    "ReBaPL_MaPLe": ReBaPL,
}
