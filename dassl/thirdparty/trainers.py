"""Training on labeled and unlabeled images."""

from collections.abc import Iterator
from itertools import islice

from torch import Tensor
from torch.utils.data import DataLoader

from dassl.engine.trainer import SimpleTrainer


class TrainerXU(SimpleTrainer):
    """Trains on pairs of a labeled and an unlabeled batch."""

    def run_epoch(self) -> None:
        len_x, len_u = len(self.train_loader_x), len(self.train_loader_u)
        lengths = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        self.num_batches = lengths[self.cfg.TRAIN.COUNT_ITER]
        pairs = zip(_endless(self.train_loader_x), _endless(self.train_loader_u), strict=True)
        self.run_batches(islice(pairs, self.num_batches))

    def parse_batch_train(self, batch_x: dict, batch_u: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Labeled images, their labels, unlabeled images, on the device."""
        tensors = batch_x["img"], batch_x["label"], batch_u["img"]
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)


def _endless(loader: DataLoader) -> Iterator[dict]:
    while True:
        yield from loader
