"""What inference.cloud measures: accuracy with prompts moved by noise, or drawn by the method."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import TrainerBase
from dassl.utils import UsageError, mix_seed, seeded
from trainers.base import CLIPTrainer, CustomCLIP
from trainers.bpl import BayesianCLIP
from trainers.cocoop import CoCoOpCLIP
from trainers.coop import PromptLearner
from trainers.draws import Noise
from trainers.empl import EMPLCLIP
from trainers.ensemble import Ensemble
from trainers.p2c import MixtureNoise

from .gap_features import encoded

Draw = Callable[[Tensor], Tensor]  # fresh noise of a tensor's shape
# Whose texts are made of what the PromptLearner's `vectors` gives.
FROM_VECTORS = tuple(c.forward for c in (CustomCLIP, CoCoOpCLIP, BayesianCLIP, EMPLCLIP))


class Cloud(NamedTuple):
    """Accuracies on the test set in percent."""

    sigmas: Sequence[float]
    accuracy: list[list[float]]  # for each σ a value for each draw; for σ 0 one
    average: float | None = None  # of the draws' averaged prediction, at σ 1 of a posterior
    as_tested: float | None = None  # of these the one that the run's own test should have had

    def at(self, sigma: float) -> list[float]:
        """Of each draw; empty for a σ that was not measured."""
        return dict(zip(self.sigmas, self.accuracy, strict=True)).get(sigma, [])


# -- learned vectors, moved by noise


def models_of(trainer: CLIPTrainer) -> list[CustomCLIP]:
    """What is tested: ReBaPL's samples, else the model."""
    return getattr(trainer, "samples", None) or [trainer.model]


def learner_of(model: CustomCLIP) -> PromptLearner | None:
    """The part of the model that has the vectors of the text prompts, if they are learned ones."""
    learners = (m for m in model.learner.modules() if isinstance(m, PromptLearner))
    return next(learners, None) if type(model).forward in FROM_VECTORS else None


def has_vectors(trainer: TrainerBase) -> bool:
    """Whether the method learns vectors that can be moved."""
    return isinstance(trainer, CLIPTrainer) and learner_of(trainer.model) is not None


def check_vectors(trainer: TrainerBase) -> None:
    """Raises UsageError for a method that learns no vectors to be moved."""
    if not has_vectors(trainer):
        line = f"{type(trainer).__name__} learns no vectors that are its text prompts"
        raise UsageError(line + ("; see --noise posterior" if draws_of(trainer) else ""))


def make_noise(kind: str, dpd: CfgNode) -> Draw:
    """N(0, 1), or the mixture of TRAINER.P2C.DPD."""
    if kind == "gaussian":
        return torch.randn_like
    return MixtureNoise(dpd.GMM_MEANS, dpd.GMM_STDS, dpd.GMM_WEIGHTS, dpd.GMM_STANDARDIZE)


@contextmanager
def perturbed(learner: PromptLearner, sigma: float, noise: Draw) -> Iterator[None]:
    """Inside, `learner.vectors()` gives P + σ·n for clean P.

    Drawn on the CPU, n is the same on all devices.
    """
    clean = learner.vectors()
    moved = {name: p + sigma * noise(p.cpu()).to(p.device) for name, p in clean.items()}
    learner.vectors = lambda: moved  # of this instance, in front of its class's
    try:
        yield
    finally:
        del learner.vectors


@contextmanager
def moved(trainer: CLIPTrainer, sigma: float, draw: int, noise: Draw) -> Iterator[None]:
    """Inside, predictions are made with P + σ·n for the learned vectors P.

    A draw n is the same for all samples of a run.
    """
    with ExitStack() as inside:
        for model in models_of(trainer):
            with seeded(mix_seed(draw)):
                inside.callback(model.drop_text_features)
                inside.enter_context(perturbed(learner_of(model), sigma, noise))
            model.drop_text_features()
        yield


@torch.no_grad()
def measure(trainer: CLIPTrainer, sigmas: Sequence[float], draws: int, noise: Draw) -> Cloud:
    """Accuracy on the test set with its prompts `moved`."""
    predict, label = predictor(trainer, batches_of(trainer))
    values = []
    for sigma in sigmas:
        values.append([])
        for draw in range(draws if sigma else 1):
            with moved(trainer, sigma, draw, noise):
                values[-1].append(percent(predict(), label))
    return Cloud(sigmas, values, as_tested=None if sigmas[0] else values[0][0])


def predictor(
    trainer: CLIPTrainer, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Callable[[], Tensor], Tensor]:
    """What gives the logits (N, C) of images by the prompts as they then are; their labels (N,).

    Images are encoded once, here: with clean prompts.

    Args:
        batches: (B, 3, R, R), or kept features, and labels (B,).
    """
    models = models_of(trainer)
    shared = type(trainer.model).forward is CustomCLIP.forward  # all images have the same texts
    inputs, labels = [], []
    for input, label in batches:
        with trainer.autocast():
            if shared:
                inputs.append(torch.stack([model.image_features(input) for model in models]))
            else:  # its image tower is frozen CLIP's
                inputs.append(encoded(trainer, input))
        labels.append(label)

    def predict() -> Tensor:
        if not shared:
            return torch.cat([trainer.model_inference(features) for features in inputs])
        with trainer.autocast():
            of_each = zip(models, torch.cat(inputs, dim=1), strict=True)
            logits = [model.logits(images, model.text_features()) for model, images in of_each]
        several = torch.stack(logits, dim=-2)  # (N, S, C)
        return trainer.average(several) if len(models) > 1 else several[:, 0]

    return predict, torch.cat(labels)


def batches_of(trainer: CLIPTrainer) -> Iterator[tuple[Tensor, Tensor]]:
    """The test set's images, or where they are kept their features; labels."""
    for batch in trainer.test_batches(trainer.test_loader, "test"):
        yield trainer.parse_batch_test(batch)


def percent(logits: Tensor, label: Tensor) -> float:
    """How often the greatest of (N, C) is the label's."""
    return 100 * (logits.argmax(dim=1) == label).sum().item() / len(label)


# -- a posterior, drawn from with another deviation


def draws_of(trainer: TrainerBase) -> Noise | None:
    """What a method with a posterior draws by."""
    model = getattr(trainer, "model", None)
    found = (m for m in model.modules() if isinstance(m, Noise)) if model else iter(())
    return next(found, None)


def check_posterior(trainer: TrainerBase) -> None:
    """Raises UsageError for a method that draws nothing in tests."""
    if not isinstance(trainer, Ensemble) and not draws_of(trainer):
        raise UsageError(f"{type(trainer).__name__} has no posterior to draw prompts from")


@contextmanager
def drawn(noise: Noise, n: int, sigma: float, only: slice = slice(None)) -> Iterator[None]:
    """Inside, tests draw n times with σ times the deviation, and use `only` those."""
    before = noise.n_test, noise.spread, noise.only
    noise.n_test, noise.spread, noise.only = n, sigma, only
    try:
        yield
    finally:
        noise.n_test, noise.spread, noise.only = before


@torch.no_grad()
def measure_posterior(trainer: CLIPTrainer, sigmas: Sequence[float], draws: int | None) -> Cloud:
    """Each draw alone, and at σ 1 the average of all; `draws` None: as many as the run's tests had.

    ReBaPL's draws are its samples: there is σ 1 alone.
    """
    if isinstance(trainer, Ensemble):
        return measure_samples(trainer)
    noise = draws_of(trainer)
    n = draws or noise.n_test
    alone = [(s, slice(i, i + 1)) for s in sigmas for i in range(n if s else 1)]
    right, total = torch.zeros(len(alone) + 1), 0
    for input, label in batches_of(trainer):
        for i, (sigma, only) in enumerate([*alone, (1.0, slice(None))]):
            with drawn(noise, n, sigma, only):
                trainer.model.drop_text_features()
                logits = trainer.model_inference(input)
            right[i] += (logits.argmax(dim=1) == label).sum().cpu()
        total += len(label)
    trainer.model.drop_text_features()
    *each, average = (100 * right.double() / total).tolist()
    values = {s: [a for a, (of, _) in zip(each, alone, strict=True) if of == s] for s in sigmas}
    as_tested = average if (n, 1.0) == (noise.n_test, noise.spread) else None
    return Cloud(sigmas, list(values.values()), average, as_tested)


def measure_samples(trainer: Ensemble) -> Cloud:
    """Raises: UsageError if the model has no samples."""
    if not trainer.samples:
        raise UsageError(f"this {type(trainer).__name__}'s checkpoint has no samples")
    given = [(trainer.samples_logits(input), label) for input, label in batches_of(trainer)]
    logits, label = (torch.cat(parts) for parts in zip(*given, strict=True))  # (N, S, C), (N,)
    each = [percent(of_sample, label) for of_sample in logits.unbind(dim=1)]
    average = percent(trainer.average(logits), label)
    return Cloud([1.0], [each], average, as_tested=average)
