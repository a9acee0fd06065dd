"""The features of a run's test images and classes, for inference.gap.

A method whose model has a `forward` of its own gets a line in PAIRS.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TrainerBase
from dassl.utils import UsageError
from trainers.base import CLIPTrainer, CustomCLIP
from trainers.bpl import BayesianCLIP
from trainers.cocoop import CoCoOpCLIP
from trainers.draws import MOST_PROMPTS, ConditionalCLIP, in_parts
from trainers.empl import EMPLCLIP
from trainers.ensemble import Ensemble
from trainers.features import KeptFeatures, says
from trainers.mmrl import MMRLCLIP
from trainers.prompt_text import hand_crafted_features, zero_shot_template
from trainers.vamp import VaMPCLIP
from trainers.zsclip import SEVEN, ZeroshotCLIP

from .gap_numbers import Features

# Image features (B, D) and text features (C, D), or (B, C, D) where each image has its own; all of
# unit length. A method's pairs have names: "" if there is only one, else for example "one draw" and
# "mean of 8 draws".
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
    below = model.learner.image_below(model.clip, image)
    return beside(both(model, below), {"": model.text_features()})


def both(model: MMRLCLIP, below: Tensor) -> dict[str, Tensor]:
    """MMRL's two features of an image, of what reaches the first block with tokens."""
    names = "class token", "representation tokens"
    return dict(zip(names, model.both_features(below), strict=True))


def bayesian(model: BayesianCLIP, image: Tensor) -> Pairs:
    """Draws for each image, or for all of them."""
    features, learner = model.image_features(image), model.learner
    if learner.conditional:
        r = learner.draws(*learner.posterior(features))  # (B, L, W)
        texts = (own_texts(model, draw) for draw in r.unbind(1))
    else:
        texts = model.text_features()  # (L, C, D)
    return beside({"": features}, one_and_mean(texts, "draw"))


def variational(model: VaMPCLIP, image: Tensor) -> Pairs:
    """Draws for each image, which on MMRL's places has two features."""
    below, frozen = model.frozen_pass(image)
    z = model.learner.text_prompts.of_test(model.seen(frozen))  # (B, S, L, M, W)
    on_mmrl = isinstance(model, MMRLCLIP)
    features = both(model, below) if on_mmrl else {"": model.image_features(below)}
    texts = (own_texts(model, draw) for draw in z.unbind(1))
    return beside(features, one_and_mean(texts, "draw"))


def langevin(model: EMPLCLIP, image: Tensor) -> Pairs:
    """Chains for each image, or for all of a batch."""
    features = model.image_features(image)
    text = model.own_texts(model.groups(features))  # (groups, M, C, D)
    texts = text.unbind(1) if model.node.PER == "image" else text[0]
    return beside({"": features}, one_and_mean(texts, "chain"))


def one_and_mean(texts: Iterable[Tensor], what: str) -> dict[str, Tensor]:
    """The first draw's texts and the mean of all draws', (…, C, D) of unit length, by names."""
    texts, n = iter(texts), 1
    first = total = next(texts)
    for text in texts:
        n, total = n + 1, total + text
    if n == 1:
        return {"": first}
    return {f"one {what}": first, f"mean of {n} {what}s": F.normalize(total, dim=-1)}


def of_samples(each: Sequence[Pairs]) -> Pairs:
    """The last sample's features, and the mean features of all samples."""
    if len(each) == 1:
        return each[0]
    found = {}
    means = f"mean of {len(each)} samples' image features and text features"
    for name in each[0]:
        several = zip(*(pairs[name] for pairs in each), strict=True)
        image, text = (F.normalize(sum(features), dim=-1) for features in several)
        found[joined(name, "last sample")] = each[-1][name]
        found[joined(name, means)] = image, text
    return found


def beside(images: Mapping[str, Tensor], texts: Mapping[str, Tensor]) -> Pairs:
    """Each of the image features with each of the text features."""
    return {joined(i, t): (image, text) for i, image in images.items() for t, text in texts.items()}


def joined(*names: str) -> str:
    """Of those that are not empty."""
    return ", ".join(filter(None, names))


class Unknown(UsageError):
    """A method's features are not known here."""


# A model's forward -> what gives the pairs whose cosines it compares.
PAIRS: dict[Callable, Callable[[CustomCLIP, Tensor], Pairs]] = {
    CustomCLIP.forward: shared,
    CoCoOpCLIP.forward: conditional,
    MMRLCLIP.forward: two_of_an_image,
    BayesianCLIP.forward: bayesian,
    VaMPCLIP.forward: variational,
    EMPLCLIP.forward: langevin,
}


def check(trainer: TrainerBase) -> None:
    """Raises Unknown for a trainer whose features are not known here."""
    known = isinstance(trainer, CLIPTrainer) and type(trainer.model).forward in PAIRS
    if not known and not isinstance(trainer, ZeroshotCLIP):
        line = f"{type(trainer).__name__}: its features are not in inference/gap_features.py, PAIRS"
        raise Unknown(line)


def pairs_of(trainer: KeptFeatures, image: Tensor) -> Pairs:
    """The pairs of a method, given images (B, 3, R, R) or CLIP's features (B, D) of them."""
    if isinstance(trainer, Ensemble) and trainer.samples:
        return of_samples([pairs_of_model(sample, image) for sample in trainer.samples])
    if isinstance(trainer, CLIPTrainer):
        return pairs_of_model(trainer.model, image)
    return {"": (F.normalize(encoded(trainer, image).float(), dim=-1), trainer.text_features)}


def pairs_of_model(model: CustomCLIP, image: Tensor) -> Pairs:
    return PAIRS[type(model).forward](model, image)


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
