"""The order in which items are drawn, and what makes it repeatable."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from dassl.utils import UsageError, check_availability, seeded

__all__ = [
    "RandomClassSampler",
    "RandomDomainSampler",
    "RandomSampler",
    "SeededSampler",
    "SeqDomainSampler",
    "SequentialSampler",
    "build_sampler",
]


class SeededIndex(int):
    """An index that carries the seed of its item's random transforms; to other datasets it is just
    an int."""

    def __new__(cls, index: int, seed: int):
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.seed


class SeededSampler(Sampler):
    """Makes all a pass over `sampler` draws, and the transforms of its items, follow from one
    number.

    That number is the only one taken from torch's generator. So for a seed the batches are the same
    whatever the number of workers, and the model's own random numbers do not depend on the data's.
    """

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[SeededIndex]:
        with seeded(int(torch.randint(2**32, ()))):
            order = list(self.sampler)
            seeds = torch.randint(2**32, (len(order),)).tolist()
        return map(SeededIndex, order, seeds)

    def __len__(self) -> int:
        return len(self.sampler)


def _group(data_source: Sequence, key: Callable[[Any], int]) -> dict[int, list[int]]:
    indices = defaultdict(list)
    for index, item in enumerate(data_source):
        indices[key(item)].append(index)
    return indices


class RandomDomainSampler(Sampler):
    """Batches of images from `n_domain` random domains (below 1: all), as many from each.

    Ends when a domain of the batch just drawn has too few images left for another. Raises
    UsageError if batch_size is no multiple of n_domain, or a domain too small.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_domain: int):
        self.indices = _group(data_source, lambda item: item.domain)
        self.n_domain = n_domain if n_domain and n_domain > 0 else len(self.indices)
        self.n_img_per_domain, rest = divmod(batch_size, self.n_domain)
        if rest:
            raise UsageError(
                f"The batch size {batch_size} is no multiple of the {self.n_domain} domains in a batch"
            )
        if min(map(len, self.indices.values())) < self.n_img_per_domain:
            raise UsageError(
                f"A domain has fewer than the {self.n_img_per_domain} images it gives to a batch"
            )
        with seeded(0):
            self.length = len(list(iter(self)))

    def pick_domains(self) -> list[int]:
        return random.sample(list(self.indices), self.n_domain)

    def __iter__(self) -> Iterator[int]:
        left = {
            domain: random.sample(indices, len(indices)) for domain, indices in self.indices.items()
        }
        order, n = [], self.n_img_per_domain
        while True:
            domains = self.pick_domains()
            for domain in domains:
                order += left[domain][:n]
                del left[domain][:n]
            if any(len(left[domain]) < n for domain in domains):
                return iter(order)

    def __len__(self) -> int:
        return self.length


class SeqDomainSampler(RandomDomainSampler):
    """Batches of images from all domains, in the domains' order."""

    def __init__(self, data_source: Sequence, batch_size: int):
        super().__init__(data_source, batch_size, n_domain=0)

    def pick_domains(self) -> list[int]:
        return sorted(self.indices)


class RandomClassSampler(Sampler):
    """Batches of `n_ins` images from each of batch_size // n_ins random classes.

    A class with fewer images gives some several times. Raises UsageError if a batch has too few
    classes.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_ins: int):
        self.indices = _group(data_source, lambda item: item.label)
        self.n_ins = n_ins
        self.n_classes = batch_size // n_ins
        if not 1 <= self.n_classes <= len(self.indices):
            line = f"A batch of {batch_size} with {n_ins} images per class has {self.n_classes} classes"
            raise UsageError(f"{line}; it must have between 1 and {len(self.indices)}")
        with seeded(0):
            self.length = len(list(iter(self)))

    def __iter__(self) -> Iterator[int]:
        groups = {label: self._groups(indices) for label, indices in self.indices.items()}
        order = []
        while len(groups) >= self.n_classes:
            for label in random.sample(list(groups), self.n_classes):
                order += groups[label].pop()
                if not groups[label]:
                    del groups[label]
        return iter(order)

    def _groups(self, indices: list[int]) -> list[list[int]]:
        n = self.n_ins
        enough = len(indices) >= n
        shuffled = random.sample(indices, len(indices)) if enough else random.choices(indices, k=n)
        return [shuffled[i : i + n] for i in range(0, len(shuffled) - n + 1, n)]

    def __len__(self) -> int:
        return self.length


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler:
    """The sampler of that name; raises UsageError if there is none."""
    builders = {
        "RandomSampler": lambda: RandomSampler(data_source),
        "SequentialSampler": lambda: SequentialSampler(data_source),
        "RandomDomainSampler": lambda: RandomDomainSampler(data_source, batch_size, n_domain),
        "SeqDomainSampler": lambda: SeqDomainSampler(data_source, batch_size),
        "RandomClassSampler": lambda: RandomClassSampler(data_source, batch_size, n_ins),
    }
    check_availability(sampler_type, builders, "sampler")
    return builders[sampler_type]()
