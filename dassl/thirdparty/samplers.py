"""Batches with as many images of each of some domains or classes."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler

from dassl.utils import UsageError, seeded


def _group(data_source: Sequence, key: Callable[[Any], int]) -> dict[int, list[int]]:
    indices = defaultdict(list)
    for index, item in enumerate(data_source):
        indices[key(item)].append(index)
    return indices


class _PassSampler(Sampler):
    """Passes over the images, which differ in length, as epochs of one: loaders count once."""

    def set_length(self) -> None:
        with seeded(0):
            self.length = len(self.one_pass())

    def one_pass(self) -> list[int]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        order: list[int] = []
        while len(order) < self.length:
            order += self.one_pass()
        return iter(order[: self.length])

    def __len__(self) -> int:
        return self.length


class RandomDomainSampler(_PassSampler):
    """Batches of images from `n_domain` random domains (below 1: all), as many from each.

    A pass ends when a domain of the batch just drawn has too few images left for another. Raises
    UsageError if batch_size is no multiple of n_domain, or a domain too small.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_domain: int):
        self.indices = _group(data_source, lambda item: item.domain)
        self.n_domain = n_domain if n_domain and n_domain > 0 else len(self.indices)
        if self.n_domain > len(self.indices):
            line = f"A batch of {self.n_domain} domains: the images have {len(self.indices)}"
            raise UsageError(line)
        self.n_img_per_domain, rest = divmod(batch_size, self.n_domain)
        if rest:
            line = f"The batch size {batch_size} is no multiple of the {self.n_domain} domains"
            raise UsageError(f"{line} in a batch")
        if min(map(len, self.indices.values())) < self.n_img_per_domain:
            line = f"A domain has fewer than the {self.n_img_per_domain} images it gives to a batch"
            raise UsageError(line)
        self.set_length()

    def pick_domains(self) -> list[int]:
        return random.sample(list(self.indices), self.n_domain)

    def one_pass(self) -> list[int]:
        left = {d: random.sample(indices, len(indices)) for d, indices in self.indices.items()}
        order, n = [], self.n_img_per_domain
        while True:
            domains = self.pick_domains()
            for domain in domains:
                order += left[domain][:n]
                del left[domain][:n]
            if any(len(left[domain]) < n for domain in domains):
                return order


class SeqDomainSampler(RandomDomainSampler):
    """Batches of images from all domains, in the domains' order."""

    def __init__(self, data_source: Sequence, batch_size: int):
        super().__init__(data_source, batch_size, n_domain=0)

    def pick_domains(self) -> list[int]:
        return sorted(self.indices)


class RandomClassSampler(_PassSampler):
    """Batches of `n_ins` images from each of batch_size // n_ins random classes.

    A class with fewer images gives some several times. A pass ends when too few classes have images
    left. Raises UsageError if a batch has too few classes, or a part of one.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_ins: int):
        self.indices = _group(data_source, lambda item: item.label)
        self.n_ins = n_ins
        self.n_classes, rest = divmod(batch_size, n_ins)
        if rest:
            raise UsageError(f"A batch of {batch_size} is no multiple of {n_ins} images per class")
        if not 1 <= self.n_classes <= len(self.indices):
            line = f"A batch of {batch_size} with {n_ins} images per class has {self.n_classes}"
            raise UsageError(f"{line} classes; it must have between 1 and {len(self.indices)}")
        self.set_length()

    def one_pass(self) -> list[int]:
        groups = {label: self._groups(indices) for label, indices in self.indices.items()}
        order = []
        while len(groups) >= self.n_classes:
            for label in random.sample(list(groups), self.n_classes):
                order += groups[label].pop()
                if not groups[label]:
                    del groups[label]
        return order

    def _groups(self, indices: list[int]) -> list[list[int]]:
        n = self.n_ins
        enough = len(indices) >= n
        shuffled = random.sample(indices, len(indices)) if enough else random.choices(indices, k=n)
        return [shuffled[i : i + n] for i in range(0, len(shuffled) - n + 1, n)]
