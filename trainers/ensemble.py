"""A trainer that keeps several states of its learner, the samples; a test averages over them."""

from copy import deepcopy

import torch
from torch import Tensor

from dassl.utils.checkpoint import load_weights, weights_of

from .base import CLIPTrainer, CustomCLIP
from .draws import log_mean_probability


class Ensemble(CLIPTrainer):
    """A checkpoint has the present state and the samples. Without samples the state is tested.

    Each sample is a model of its own in eval mode, so its text features are computed once.
    """

    samples: list[CustomCLIP]

    def build_model(self) -> None:
        super().build_model()
        self.samples = []

    def frozen_copy(self) -> CustomCLIP:
        """The model as it is now; CLIP and all that is not learned are shared."""
        shared = {id(buffer): buffer for buffer in self.model.learner.buffers()}
        learner = deepcopy(self.model.learner, shared).requires_grad_(False)
        return self.model_class(self.model.clip, learner).eval()

    def average(self, logits: Tensor) -> Tensor:
        """Samples' logits (B, S, C) -> (B, C): here their mean probability's logarithm."""
        return log_mean_probability(logits)

    def model_inference(self, input: Tensor) -> Tensor:
        if not self.samples:
            return super().model_inference(input)
        return self.average(self.samples_logits(input))

    def samples_logits(self, input: Tensor) -> Tensor:
        """(B, 3, R, R), or kept features -> (B, S, C)."""
        live, logits = self.model, []
        # Settings such as MMRL's `fused`, which is set only after the samples are loaded.
        settings = {k: v for k, v in vars(live).items() if k != "training" and k[0] != "_"}
        for sample in self.samples:
            vars(sample).update(settings)
            self.model = sample
            logits.append(super().model_inference(input))
        self.model = live
        return torch.stack(logits, dim=-2)

    def test(self, split: str | None = None) -> float:
        if self.samples:
            print(f"Samples averaged: {len(self.samples)}")
        return super().test(split)

    def more_to_save(self) -> dict:
        return {"samples": [sample.learner.state_dict() for sample in self.samples]}

    def load_more(self, checkpoint: dict, source: str) -> None:
        """Loads the samples; a file of the host's own trainer has none."""
        super().load_more(checkpoint, source)
        states = checkpoint.get("samples", [])
        self.samples = [self.frozen_copy() for _ in states]
        for i, (sample, state) in enumerate(zip(self.samples, states, strict=True), start=1):
            what, learner = f"sample {i} in {source}", sample.learner
            weights = weights_of({"state_dict": state}, what)
            state = self.rows_of_own_classes(weights, self.trained, what)
            load_weights(learner, state, learner.state_dict(), what)
