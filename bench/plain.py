"""The plain side: what upstream computes, by reference/, and whether ours is equal to it."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TrainerX
from dassl.utils import Failure
from reference import cocoop_plain, maple_plain, p2c_plain
from reference.maple_plain import class_prompt, tokenise
from trainers.atprompt import attribute_words

from .cases import Case, Step, make_batch
from .ours import our_evaluation, our_trainer, without_noise
from .rivals import SIDES
from .side import Side
from .timing import seconds_of

# What stays, frozen, between context and name: MaPLe learns two vectors of "a photo of a".
FROZEN_WORDS = {"MaPLe": "of a", "P2C": "", "CoCoOp": ""}
# Relative difference of the two losses. Half precision rounds the features to three digits,
# and the logits amplify that.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.05, "amp": 0.05}


class Plain(Side):
    """MaPLe, P2C and CoCoOp, whose sentences are embedded once."""

    def __init__(self, case: Case, weights: Mapping[str, Tensor], trainer: TrainerX):
        super().__init__(case, weights, trainer)
        self.write_sentences(attribute_words(trainer.cfg))

    def write_sentences(self, attributes: Sequence[str]) -> None:
        """All classes' sentences, once as upstream does, and where the learned vectors go."""
        frozen = FROZEN_WORDS[self.case.method]
        with torch.device(self.case.device):
            sentences = [
                class_prompt(self.clip, self.prompts, name, attributes, frozen)
                for name in self.names
            ]
            # (C, 77, W), (C,)
            self.embeddings = torch.stack([s.embeddings for s in sentences]).detach()
            self.eot = torch.tensor([s.eot for s in sentences])
        self.where = {}  # name of a vector -> its first position
        at = 1
        for k, attribute in enumerate(attributes, start=1):
            self.where[f"ctx_att{k}"] = at
            at += len(self.prompts[f"ctx_att{k}"]) + len(tokenise(attribute))
        self.where["ctx"] = at
        self.prefix = at + len(self.prompts["ctx"]) + len(tokenise(frozen))
        self.suffixes = [s.eot + 1 - self.prefix for s in sentences]

    def text_features(
        self, vectors: Mapping[str, Tensor], deep: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """(C, D), not normalised, of the sentences with these vectors (N, W) in them."""
        pieces, at = [], 0
        for name, start in self.where.items():
            own = vectors[name].to(self.clip.dtype).expand(len(self.embeddings), -1, -1)
            pieces += [self.embeddings[:, at:start], own]
            at = start + own.shape[1]
        sentences = torch.cat([*pieces, self.embeddings[:, at:]], dim=1)  # (C, 77, W)
        deep = {block: (self.where["ctx"], p) for block, p in (deep or {}).items()}
        return self.clip.text_tower(sentences, self.eot, deep)

    def logits(self, image: Tensor, vectors: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, C) of MaPLe and P2C, with the learned text prompts or with `vectors`."""
        deep = maple_plain.deep_text_prompts(self.prompts)
        text = self.text_features(vectors or self.prompts, deep)
        features = maple_plain.image_features(self.clip, self.prompts, image)
        return self.clip.logits(features, text).float()

    def conditional_logits(self, image: Tensor) -> Tensor:
        """(1, C) of CoCoOp."""
        feature = self.clip.encode_image(image)[0]
        shift = cocoop_plain.bias(self.prompts, (feature / feature.norm()).float())
        text = self.text_features({"ctx": self.prompts["ctx"] + shift})
        return self.clip.logits(feature[None], text).float()

    def noisy_vectors(self) -> Mapping[str, Tensor]:
        """P2C's text prompts, by our code: drawing noise is no part of the comparison."""
        dpd = self.cfg.TRAINER.P2C.DPD
        if not dpd.ENABLED:
            return self.prompts
        sigma = p2c_plain.sigma_at_epoch(
            dpd.SCHEDULE, epoch=0, max_epoch=self.cfg.OPTIM.MAX_EPOCH, sigma_max=dpd.SIGMA_MAX
        )
        clean = {name: self.prompts[name] for name in self.where}
        return {name: p + sigma * self.learner.noise(p) for name, p in clean.items()}

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        """The method's loss of images (B, 3, R, R), of which CoCoOp takes one."""
        if self.case.method == "CoCoOp":
            return F.cross_entropy(self.conditional_logits(image), label)
        if self.case.method == "MaPLe":
            return F.cross_entropy(self.logits(image), label)
        loss = F.cross_entropy(self.logits(image, self.noisy_vectors()), label)
        aux = self.cfg.TRAINER.P2C.AUX
        if aux.ENABLED:
            eta = aux.SIGMA * torch.randn_like(self.prompts["ctx"])
            loss = loss + aux.LAMBDA * p2c_plain.auxiliary_loss(self.prompts, eta)
        return loss

    @property
    def parts(self) -> int:
        """One image after the other for CoCoOp."""
        return self.case.batch if self.case.method == "CoCoOp" else 1


def pair(case: Case, weights: Mapping[str, Tensor]) -> tuple[Side, TrainerX, tuple[Step, Step]]:
    """Both sides of a case, and what each computes of it: a step or an evaluation."""
    side = SIDES.get(case.method, Plain)
    trainer = our_trainer(case, weights)
    side.prepare(case, trainer)
    plain = side(case, weights, trainer)
    batch = make_batch(case)
    if case.evaluates:
        return plain, trainer, (plain.evaluation(batch), our_evaluation(trainer, batch))
    return plain, trainer, (plain.step(batch), side.our_step(trainer, batch))


def check(case: Case, trainer: TrainerX, steps: tuple[Step, Step]) -> tuple[float, float]:
    """The first round, with the same draws: seconds of both.

    Raises: Failure if their losses differ.
    """
    losses: list[Tensor] = []
    seconds = []
    with without_noise(trainer) if case.method == "P2C" else nullcontext():
        for step in steps:
            torch.manual_seed(1)
            seconds.append(seconds_of(lambda s=step: losses.append(s()), case.device))
    expected, loss = map(float, losses)
    if not abs(loss - expected) <= TOLERANCE[case.prec] * abs(expected):
        both = f"the plain path's loss is {expected:.6f}, ours {loss:.6f}"
        raise Failure(f"{case}: {both}: they differ")
    return seconds[0], seconds[1]
