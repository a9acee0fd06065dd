"""A tiny benchmark of generated images and a tiny trainer on it, as a third party would write
them."""

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, TrainerXU, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed


@DATASET_REGISTRY.register()
class Noise(DatasetBase):
    """24 images of noise in 3 classes and 2 domains."""

    def __init__(self, cfg):
        root = cfg.DATASET.ROOT
        items = [Datum(f"{root}/{i}.png", i % 3, i % 2, "abc"[i % 3]) for i in range(24)]
        super().__init__(train_x=items[:18], train_u=items[12:], val=items[18:], test=items[12:])


@TRAINER_REGISTRY.register()
class Linear(TrainerX):
    """Dropout and a linear layer. At (epoch, batch) `fail_at` comes Ctrl-C, at `nan_at` the loss is
    NaN."""

    fail_at = nan_at = None

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(3 * 8 * 8, 3)).to(
            self.device
        )
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)
        self.seen = []

    def forward_backward(self, batch):
        here = (self.epoch, self.batch_idx)
        if here == self.fail_at:
            raise KeyboardInterrupt
        image, label, _ = self.parse_batch_train(batch)
        self.seen.append((here, batch["impath"], image.clone()))
        loss = F.cross_entropy(self.model(image), label)
        if here == self.nan_at:
            loss = loss * float("nan")
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss}


@TRAINER_REGISTRY.register()
class LinearXU(TrainerXU):
    build_model = Linear.build_model

    def forward_backward(self, batch_x, batch_u):
        image, label, image_u = self.parse_batch_train(batch_x, batch_u)
        self.seen.append((image, label, image_u))
        loss = F.cross_entropy(self.model(image), label) + self.model(image_u).square().mean()
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss}


@pytest.fixture(scope="session")
def image_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return root


@pytest.fixture
def cfg(image_root, tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.SEED = 1
    cfg.VERBOSE = False
    cfg.DATASET.ROOT = str(image_root)
    cfg.DATASET.NAME = "Noise"
    cfg.TRAINER.NAME = "Linear"
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    cfg.OPTIM.NAME = "sgd"
    cfg.OPTIM.LR = 0.0035
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OPTIM.MAX_EPOCH = 5
    cfg.OPTIM.WARMUP_EPOCH = 1
    cfg.OPTIM.WARMUP_TYPE = "constant"
    cfg.TRAIN.PRINT_FREQ = 2
    return cfg


@pytest.fixture
def make(cfg):
    """make(key, value, …) -> trainer under that config, seeded as train.py does."""

    def make(*changes):
        changed = cfg.clone()
        changed.merge_from_list(list(changes))
        set_random_seed(1)
        return build_trainer(changed)

    return make
