"""The features of a run's test images and classes, for inference.gap.

A method whose model has a `forward` of its own gets a line in PAIRS.
"""

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TrainerBase
from dassl.utils import UsageError
from trainers.base import CLIPTrainer, CustomCLIP
from trainers.cocoop import CoCoOpCLIP
from trainers.draws import MOST_PROMPTS, ConditionalCLIP, in_parts
from trainers.features import KeptFeatures, says
from trainers.mmrl import MMRLCLIP
from trainers.prompt_text import hand_crafted_features, zero_shot_template
from trainers.zsclip import SEVEN, ZeroshotCLIP

from .gap_numbers import Features

# Image features (B, D) and text features (C, D), or (B, C, D) where each image has its own; all of
# unit length. Those of a method are by what tells several sets apart: "" if there is one, else as
# "one draw" and "mean of 8 draws".
Pair = tuple[Tensor, Tensor]
Pairs = Mapping[str, Pair]


def shared(model: CustomCLIP, image: Tensor) -> Pairs:
    """All images have the same text features."""
    return {"": (model.image_features(image), model.text_features())}


def conditional(model: CoCoOpCLIP, image: Tensor) -> Pairs:
    """Each image has text features of its own."""
    features = model.image_features(image)
    return {"": (features, own_texts(model, features))}


def own_texts(model: ConditionalCLIP, *given: Tensor) -> Tensor:
    """What the texts are made of, (G, …) -> (G, C, D), unit length."""
    learner = model.learner
    encode = partial(learner.conditional_text_features, model.clip)
    return model.unit(in_parts(encode, MOST_PROMPTS // learner.text.suffixes.classes, *given))


def two_of_an_image(model: MMRLCLIP, image: Tensor) -> Pairs:
    """An image has two features, beside the same text features."""
    features = model.both_features(model.learner.image_below(model.clip, image))
    names = "class token", "representation tokens"
    return {name: (f, model.text_features()) for name, f in zip(names, features, strict=True)}


class Unknown(UsageError):
    """A method's features are not known here."""


# A model's forward -> what gives the pairs whose cosines it compares.
PAIRS: dict[Callable, Callable[[CustomCLIP, Tensor], Pairs]] = {
    CustomCLIP.forward: shared,
    CoCoOpCLIP.forward: conditional,
    MMRLCLIP.forward: two_of_an_image,
}


def check(trainer: TrainerBase) -> None:
    """Raises Unknown for a trainer whose features are not known here."""
    known = isinstance(trainer, CLIPTrainer) and type(trainer.model).forward in PAIRS
    if not known and not isinstance(trainer, ZeroshotCLIP):
        line = f"{type(trainer).__name__}: inference/gap_features.py does not know its features"
        raise Unknown(line)


def pairs_of(trainer: KeptFeatures, image: Tensor) -> Pairs:
    """The pairs of a method, given images (B, 3, R, R) or CLIP's features (B, D) of them."""
    if isinstance(trainer, CLIPTrainer):
        return PAIRS[type(trainer.model).forward](trainer.model, image)
    return {"": (F.normalize(encoded(trainer, image).float(), dim=-1), trainer.text_features)}


def encoded(trainer: KeptFeatures, image: Tensor) -> Tensor:
    """(B, 3, R, R), or kept features (B, D) -> frozen CLIP's features (B, D), not normalised."""
    return image if image.dim() == 2 else trainer.frozen_clip().encode_image(image)


def zero_shot_texts(trainer: KeptFeatures) -> dict[str, Tensor]:
    """{prompts: (C, D)} of frozen CLIP: with the dataset's own, and the mean with seven more."""
    own = zero_shot_template(trainer.cfg)
    names = trainer.dm.dataset.classnames
    sets = {"": [own], f"mean of {len(SEVEN) + 1} prompts": [*SEVEN, own]}
    clip_model = trainer.frozen_clip()
    return {name: hand_crafted_features(clip_model, names, some) for name, some in sets.items()}


class Gathered:
    """One set of features, batch by batch."""

    def __init__(self):
        self.image: list[Tensor] = []
        self.own: list[Tensor] = []
        self.label: list[Tensor] = []
        self.text = torch.zeros((), dtype=torch.float64)  # sum over images
        self.right = 0

    def add(self, image: Tensor, text: Tensor, label: Tensor) -> None:
        """Image features (B, D), text features (C, D) or (B, C, D), and labels (B,)."""
        if text.dim() == 2:
            own, total, cosines = text[label], len(label) * text.double(), image @ text.T
        else:
            own = text[torch.arange(len(label), device=label.device), label]
            total = text.sum(dim=0, dtype=torch.float64)
            cosines = torch.einsum("bd,bcd->bc", image, text)
        self.image.append(image.cpu())
        self.own.append(own.cpu())
        self.label.append(label.cpu())
        self.text = self.text + total.cpu()
        self.right += int((cosines.argmax(dim=1) == label).sum())

    def features(self) -> Features:
        """All of them."""
        image, own, label = (torch.cat(parts) for parts in (self.image, self.own, self.label))
        n = len(label)
        return Features(image, own, self.text / n, label, accuracy=100 * self.right / n)


@torch.no_grad()
def gather(
    trainer: KeptFeatures, zero_shot: bool
) -> tuple[dict[str, Features], dict[str, Features]]:
    """The features of the test set by prompts: the method's, and if asked for zero-shot CLIP's."""
    texts = zero_shot_texts(trainer) if zero_shot else {}
    own: dict[str, Gathered] = {}
    frozen = {name: Gathered() for name in texts}
    with redirect_stdout(io.StringIO()):
        for batch in trainer.test_batches(trainer.test_loader, "test"):
            image, label = trainer.parse_batch_test(batch)
            with trainer.autocast():
                of_clip = encoded(trainer, image) if zero_shot else None
                # where the tower is CLIP's, an image goes through it once
                once = zero_shot and says(trainer, "frozen_image_tower")
                pairs = pairs_of(trainer, of_clip if once else image)
            for name, pair in pairs.items():
                own.setdefault(name, Gathered()).add(*pair, label)
            for name, text in texts.items():
                frozen[name].add(F.normalize(of_clip.float(), dim=-1), text, label)
    own, frozen = ({k: g.features() for k, g in some.items()} for some in (own, frozen))
    return own, frozen
