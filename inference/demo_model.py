"""What the page of inference.demo asks a trained model."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dassl.engine import TrainerBase

from .cloud_measures import has_vectors, make_noise, moved, predictor
from .load import load_model
from .pixels import read_pixels

DRAWS = 20  # of the noise, for a σ above 0
KEPT = 2  # lists of class names whose models are kept


class DemoModel:
    """A run's model, for any class names.

    Args: as of load_model.

    Attributes:
        trainer: with the run's own classes.
        movable: whether its prompts are vectors that σ can move.

    Raises: as load_model.
    """

    def __init__(self, run: Path, weights: str = "", any_clip: bool = False):
        @lru_cache(maxsize=KEPT)
        def load(names: tuple[str, ...] | None) -> TrainerBase:
            return load_model(run, names, weights=weights, any_clip=any_clip)

        self.load = load
        self.trainer = load(None)
        self.movable = has_vectors(self.trainer)
        self.preprocessing = self.trainer.describe()["preprocessing"]

    def of(self, names: Sequence[str]) -> TrainerBase:
        """The model for these classes."""
        own = list(names) == self.trainer.classnames
        return self.trainer if own else self.load(tuple(names))

    @torch.no_grad()
    def probabilities(self, image: str, names: Sequence[str], sigma: float = 0.0) -> np.ndarray:
        """(1, C) as a test would have them, or with a σ above 0 (DRAWS, C): of each draw.

        Args:
            image: a file.
            names: C class names.
            sigma: how far the learned vectors are moved; 0 if they are not `movable`.

        Raises: Failure if the image cannot be read, or the model cannot have these classes.
        """
        trainer = self.of(names)
        pixels = torch.from_numpy(read_pixels(image, self.preprocessing))[None].to(trainer.device)
        if not sigma:
            return softmax(trainer.model_inference(pixels))
        predict, _ = predictor(trainer, [(pixels, torch.zeros(1))])
        noise, draws = make_noise("gaussian", trainer.cfg.TRAINER.P2C.DPD), []
        for draw in range(DRAWS):
            with moved(trainer, sigma, draw, noise):
                draws.append(softmax(predict()))
        return np.concatenate(draws)


def softmax(logits: Tensor) -> np.ndarray:
    """(B, C) -> probabilities (B, C), float64."""
    return logits.double().softmax(dim=-1).cpu().numpy()
