"""Our side: the trainers as train.py makes them, without data."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

import train
import trainers.frozen_clip
from dassl.engine import TRAINER_REGISTRY, TrainerX
from reference.weights import ARCHS

from .cases import EUROSAT, Batch, Case, Step, class_names

CONFIGS = {  # the trainer and its settings
    "MaPLe": "MaPLe/vit_b16_c2_ep5_batch4_2ctx",
    "P2C": "P2C/vit_b16_ep5_batch4",
    "CoCoOp": "CoCoOp/vit_b16_c4_ep10_batch1_ctxv1",
    "BayesianPrompt": "BayesianPrompt/vit_b16",
    "unconditional BayesianPrompt": "BayesianPrompt/vit_b16_unconditional",
    "MMRL": "MMRL/vit_b16",
    "VaMP": "VaMP/vit_b16_c2_ep10_batch4",
    "VaMP_MMRL": "VaMP_MMRL/vit_b16_ep10_batch4",
    "EMPL": "EMPL/vit_b16_ep10_batch1",
    "ReBaPL_MaPLe": "ReBaPL_MaPLe/vit_b16",
}
DRAWS = {  # where a trainer's draws are set, in training and in tests
    "BayesianPrompt": ("TRAINER.VPT.L", "TRAINER.VPT.TEST_L"),
    "VaMP": ("TRAINER.VAMP.TRAIN_SAMPLES", "TRAINER.VAMP.TEST_SAMPLES"),
    "VaMP_MMRL": ("TRAINER.VAMP.TRAIN_SAMPLES", "TRAINER.VAMP.TEST_SAMPLES"),
    "EMPL": ("TRAINER.EMPL.SAMPLES",),
}
WITHOUT_NOISE = ("TRAINER.P2C.DPD.ENABLED", "False", "TRAINER.P2C.AUX.ENABLED", "False")


class NoData:
    """Put before a trainer's class, it gives class names in the place of a dataset."""

    classnames: list[str]

    def build_data_loader(self) -> None:
        """Sets what a trainer sets that reads its data, but no loaders."""
        self.num_classes = len(self.classnames)
        self.lab2cname = dict(enumerate(self.classnames))
        dataset = SimpleNamespace(classnames=self.classnames)
        self.dm = SimpleNamespace(dataset=dataset, num_classes=self.num_classes)
        self.train_loader_u = self.val_loader = self.test_loader = None
        self.train_loader_x = SimpleNamespace(dataset=range(16 * self.num_classes))  # 16 shots


def our_trainer(case: Case, weights: Mapping[str, Tensor], *opts: str) -> TrainerX:
    """The method's trainer as published, ready for a step of its first epoch."""
    arch = ARCHS[case.arch]
    name, config = CONFIGS[case.method].split("/")
    method = TRAINER_REGISTRY.get(name)
    node = f"TRAINER.{method.node_name}"
    of_eurosat = case.classes <= len(EUROSAT) and not case.is_rival
    settings = {
        # Whose attributes are learned; a rival has the same settings for any number of classes.
        "DATASET.NAME": "EuroSAT" if of_eurosat else "ImageNet",
        "USE_CUDA": case.device == "cuda",
        "INPUT.SIZE": f"({arch.image_size},{arch.image_size})",
        f"{node}.PREC": case.prec,
        "SEED": 1,
        "VERBOSE": False,
    }
    settings |= dict.fromkeys(DRAWS.get(name, ()), case.draws)
    layers = arch.text_layers
    if node in ("TRAINER.MAPLE", "TRAINER.P2C", "TRAINER.VAMP"):
        settings[f"{node}.PROMPT_DEPTH"] = min(9, layers)
    if node == "TRAINER.MMRL":
        settings[f"{node}.REP_LAYERS"] = [*range((layers + 1) // 2, layers + 1)]  # 6 to 12 of 12
    if name == "EMPL":
        settings["TRAINER.EMPL.STEPS"] = 1
    flags = ["--trainer", name]
    flags += ["--config-file", f"configs/trainers/{name}/{config}.yaml"]
    words = [str(word) for pair in settings.items() for word in pair]
    cfg = train.setup_cfg(train.parse_args([*flags, *words, *opts]))
    # `graphed` counts in a class's own body alone (trainers/features.py).
    own = {"classnames": class_names(case.classes), "graphed": method.graphed}
    without_data = type(name, (NoData, method), own)
    with (
        patch.object(trainers.frozen_clip, "find_weights", lambda *_: Path(__file__)),
        patch.object(trainers.frozen_clip, "read_state_dict", lambda _: dict(weights)),
    ):
        trainer = without_data(cfg)
    trainer.epoch = trainer.batch_idx = 0
    trainer.num_batches = sys.maxsize  # an epoch that does not end
    trainer.before_epoch()
    trainer.set_model_mode("train")
    return trainer


@contextmanager
def without_noise(trainer: TrainerX) -> Iterator[None]:
    """P2C's text prompts are clean, so that its loss can be compared."""
    cfg = trainer.cfg
    cfg.defrost()
    # Not ENABLED False: a CUDA graph captured meanwhile would stay without noise.
    before = cfg.TRAINER.P2C.DPD.SIGMA_MAX
    cfg.TRAINER.P2C.DPD.SIGMA_MAX = 0.0
    trainer.before_epoch()
    yield
    cfg.TRAINER.P2C.DPD.SIGMA_MAX = before
    trainer.before_epoch()


def our_step(trainer: TrainerX, batch: Batch) -> Step:
    """A training step of ours."""
    return lambda: trainer.forward_backward(batch)["loss"]


def our_evaluation(trainer: TrainerX, batch: Batch) -> Step:
    """An evaluation of ours.

    Text features that do not depend on the image are kept from the batch before, here an image.
    """
    trainer.set_model_mode("eval")

    @torch.no_grad()
    def evaluate() -> Tensor:
        return F.cross_entropy(trainer.model_inference(batch["img"]).float(), batch["label"])

    with torch.no_grad():
        trainer.model_inference(batch["img"][:1])
    return evaluate
