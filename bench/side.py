"""A plain side: a method as upstream computes it, by reference/, from a trainer's start."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainers.frozen_clip
from dassl.engine import TrainerX
from reference.clip_plain import PlainCLIP
from reference.maple_plain import as_leaves

from .cases import Batch, Case, Step, class_names
from .ours import our_step

OPTIONS = ("lr", "momentum", "betas", "weight_decay")


class Side:
    """The parameters and the optimizer of a trainer on PlainCLIP.

    A subclass has `loss` and `logits`, and where more is to be compared than a step's loss, its
    own `our_step`.
    """

    our_step: Callable[[TrainerX, Batch], Step] = staticmethod(our_step)

    @staticmethod
    def prepare(case: Case, trainer: TrainerX) -> None:
        """Gives the trainer what it would have of its data, before a side is made of it."""

    def __init__(self, case: Case, weights: Mapping[str, Tensor], trainer: TrainerX):
        self.case, self.cfg = case, trainer.cfg
        self.learner = trainer.model.learner
        self.names = class_names(case.classes)
        self.clip = PlainCLIP(weights, trainers.frozen_clip.PRECISIONS[case.prec]).to(case.device)
        for module in self.clip.modules():
            # Upstream asks for no attention weights, so torch may take a fused kernel.
            if isinstance(module, nn.MultiheadAttention):
                module.register_forward_pre_hook(
                    lambda _, args, kwargs: (args, kwargs | {"need_weights": False}),
                    with_kwargs=True,
                )
        self.prompts = as_leaves(dict(self.learner.named_parameters()))
        of_ours = trainer.optim.param_groups[0]
        kind = torch.optim.AdamW if "betas" in of_ours else torch.optim.SGD
        options = {key: of_ours[key] for key in OPTIONS if key in of_ours}
        self.optim = kind(self.prompts.values(), **options)
        self.scaler = torch.amp.GradScaler(case.device, enabled=case.prec == "amp")

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        """The method's loss of images (B, 3, R, R)."""
        raise NotImplementedError

    def logits(self, image: Tensor) -> Tensor:
        """What a test gives for them, (B, C)."""
        raise NotImplementedError

    @property
    def parts(self) -> int:
        """How many batches a batch is for a training step, whose gradients are added up."""
        return 1

    def context(self) -> AbstractContextManager:
        """Half precision where amp computes in it."""
        amp = self.case.prec == "amp"
        return torch.autocast(self.case.device, torch.float16, enabled=amp)

    def step(self, batch: Batch) -> Step:
        """A training step."""
        images, labels = batch["img"].chunk(self.parts), batch["label"].chunk(self.parts)

        def step() -> Tensor:
            total = torch.zeros((), device=self.case.device)
            self.optim.zero_grad()
            for image, label in zip(images, labels, strict=True):
                with self.context():
                    loss = self.loss(image, label) / self.parts
                self.scaler.scale(loss).backward()
                total += loss.detach()
            self.scaler.step(self.optim)
            self.scaler.update()
            return total

        return step

    def evaluation(self, batch: Batch) -> Step:
        """An evaluation, text features included."""

        @torch.no_grad()
        def evaluate() -> Tensor:
            with self.context():
                return F.cross_entropy(self.logits(batch["img"]), batch["label"])

        return evaluate
