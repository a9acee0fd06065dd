"""A trained model as one ONNX graph: what export writes as model.onnx and preprocess.json.

What does not depend on the image is a constant of the graph: text features (of methods whose text
prompts depend on it, the text tower is in the graph instead), and the draws of a test.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dassl.engine import TrainerBase
from dassl.utils import Failure, write_json
from trainers.features import KeptFeatures

from .onnx_model import ABOUT, FORMAT, GRAPH, PREPROCESS, OnnxModel, first_line, sha256_of
from .prompts_file import portable

BATCHES = (1, 5, 16)  # with which the graph is compared with PyTorch
TOLERANCE = 1e-4  # of the largest logit


class NoGraph(Failure):
    """The method's test cannot be a graph; what else is exported can be."""


class Graph(nn.Module):
    """A trainer's test as a module that has all its weights."""

    def __init__(self, trainer: TrainerBase):
        super().__init__()
        self.trainer, self.parts = trainer, modules_of(trainer)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, C)."""
        return self.trainer.model_inference(image)


def modules_of(trainer: TrainerBase) -> nn.ModuleList:
    """CLIP, what is learned, and the samples of an ensemble."""
    clip = [trainer.frozen_clip()] if isinstance(trainer, KeptFeatures) else []
    samples = getattr(trainer, "samples", ())
    return nn.ModuleList([*clip, *trainer._models.values(), *(s.learner for s in samples)])


def in_float32(trainer: TrainerBase) -> None:
    """From now on the trainer computes in float32, with the weights that it has."""
    modules_of(trainer).float()
    trainer.prec = "fp32"


def images(trainer: TrainerBase, n: int) -> Tensor:
    """(n, 3, R, R) random pixels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, *trainer.cfg.INPUT.SIZE, generator=generator)


def write_graph(trainer: TrainerBase, folder: Path) -> float:
    """Writes model.onnx and preprocess.json of a trainer on the CPU, in float32 and eval mode.

    Returns: the largest difference between ONNX Runtime's logits and PyTorch's, relative to the
        largest logit.

    Raises: NoGraph if the method has none; Failure if the graph does not give PyTorch's logits.
    """
    if why := getattr(trainer, "no_graph", ""):
        raise NoGraph(why)
    about = {"format": FORMAT, "input": "image", "output": "logits"}
    about |= portable(trainer.describe())
    program = trace(trainer)
    program.model.metadata_props[ABOUT] = json.dumps(about)
    program.save(str(folder / GRAPH))
    if len(list(folder.glob(f"{GRAPH}*"))) > 1:  # a file of its own for the weights
        raise NoGraph("it is larger than 2 GB, the most that an ONNX file holds")
    write_json(about | {"sha256": sha256_of(folder / GRAPH)}, str(folder / PREPROCESS))
    return check(trainer, OnnxModel(folder))


@torch.no_grad()
def trace(trainer: TrainerBase) -> Any:
    """The test as torch.onnx's program, for any number of images."""
    module, image = Graph(trainer).eval(), images(trainer, 3)
    module(image)  # makes what the graph then has as constants
    try:
        with quiet():
            return torch.onnx.export(
                module,
                (image,),
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            )
    except torch.onnx.OnnxExporterError as error:
        cause = first_line(error.__cause__ or error)
        raise NoGraph(f"torch.onnx cannot trace {type(trainer).__name__}: {cause}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, what libraries print, warn of and log is dropped: pages, beside their errors."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@torch.no_grad()
def check(trainer: TrainerBase, model: OnnxModel) -> float:
    """See `write_graph`."""
    worst, image = 0.0, images(trainer, max(BATCHES))
    for n in BATCHES:
        expected = trainer.model_inference(image[:n]).numpy()
        off = np.abs(model.logits(image[:n].numpy()) - expected).max() / np.abs(expected).max()
        if not off <= TOLERANCE:
            line = f"{GRAPH} differs from PyTorch by {off:.1g} of the largest logit"
            raise Failure(f"{line}, at a batch of {n}; --no-onnx exports the rest")
        worst = max(worst, float(off))
    return worst
