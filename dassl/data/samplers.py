"""The order in which items are drawn, and what makes it repeatable."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from dassl.thirdparty.samplers import RandomClassSampler, RandomDomainSampler, SeqDomainSampler
from dassl.utils import check_availability, seeded

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
    """An index with the seed of its item's transforms; to other datasets an int."""

    def __new__(cls, index: int, seed: int):
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.seed


class SeededSampler(Sampler):
    """Makes a pass over `sampler`, and its items' transforms, follow from one number.

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
