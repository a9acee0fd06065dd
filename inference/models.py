"""A trained model as predict asks it: pixels in, logits out, by PyTorch or by ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dassl.utils import Failure

if TYPE_CHECKING:
    from dassl.engine import TrainerBase


class Model(Protocol):
    """What is common to a run's model and an exported one."""

    classnames: list[str]
    about: dict[str, Any]  # the self-description, with `preprocessing`
    device: str

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) float32, as `inference.pixels` makes them -> (B, C) float32."""


class TorchModel:
    """A run's trainer, as `inference.load.load_model` gives it."""

    def __init__(self, trainer: "TrainerBase"):
        from dassl.engine.record import device_name

        self.trainer = trainer
        self.about = trainer.describe()
        self.classnames = self.about["classnames"]
        self.device = device_name(trainer.device)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) -> (B, C). Raises: Failure if the memory does not hold the batch."""
        import torch

        from dassl.utils.errors import MEMORY_FULL, known

        image = torch.from_numpy(pixels).to(self.trainer.device)
        try:
            with torch.no_grad():
                return self.trainer.model_inference(image).float().cpu().numpy()
        except RuntimeError as error:
            if known(error) != MEMORY_FULL:
                raise
            line = f"{self.device} has no memory for a batch of {len(pixels)} images"
            raise Failure(f"{line}: lower --batch-size, or take --cpu") from error


def open_model(
    run: Path,
    classnames: Sequence[str] | None = None,
    *,
    weights: str = "",
    use_cuda: bool = True,
    any_clip: bool = False,
) -> Model:
    """The model of an output folder, a checkpoint file or an exported folder.

    An export with a model.onnx is run by ONNX Runtime, and PyTorch is not imported, unless other
    class names or another CLIP are wanted. The arguments are those of `inference.load.load_model`.

    Raises: Failure or UsageError in one line.
    """
    # preprocess.json is there where model.onnx was, so one that is lost is said
    exported = any((run / name).exists() for name in ("model.onnx", "preprocess.json"))
    if classnames is None and not weights and exported:
        from .onnx_model import OnnxModel

        return OnnxModel(run)
    from .load import load_model

    return TorchModel(
        load_model(run, classnames, weights=weights, use_cuda=use_cuda, any_clip=any_clip)
    )
