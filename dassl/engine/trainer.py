"""The training loop, from TrainerBase.train down; trainers may replace any step."""

import datetime
import math
import os
import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.config import plain_config
from dassl.data import DataManager, Loader, NoData, in_turns
from dassl.data.kept_images import kept_images
from dassl.data.transforms import preprocessing_of
from dassl.evaluation import build_evaluator
from dassl.files import BEST
from dassl.utils import check_availability, mix_seed, mkdir_if_missing, ranks, set_random_seed
from dassl.utils.errors import Failure
from dassl.utils.meters import AverageMeter, MetricMeter
from dassl.utils.progress import bar, bar_or_lines

from .checkpoints import NOT_FINITE, Checkpoints, Names
from .loggers import ScalarLogger, open_loggers
from .record import Recorder, device_name

ABOUT_FORMAT = 1  # of `describe`

# What third-party files import from here, loaded only for them.
_THIRD_PARTY = {"SimpleNet": "dassl.thirdparty.modeling", "TrainerXU": "dassl.thirdparty.trainers",
                "SummaryWriter": "torch.utils.tensorboard"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _THIRD_PARTY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_THIRD_PARTY[name]), name)


class TrainerBase(Checkpoints):
    """The order of a training, and its named models with their optimizers and schedulers.

    A trainer gives build_data_loader(), build_model(), run_epoch(), parse_batch_train(batch),
    forward_backward(batch), which takes one optimization step and returns {name: loss or another
    number or tensor to log}, parse_batch_test(batch), model_inference(input) and test().
    """

    note = ""  # what the log of its runs begins with

    def __init__(self):
        super().__init__()
        self._writer: ScalarLogger | None = None  # tensorboard's, also for third-party trainers
        self._loggers: list[ScalarLogger] = []  # the others
        self.recorder = Recorder(self)

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """train, or eval (also called test)."""
        check_availability(mode, ["train", "eval", "test"], "mode")
        for model in self._chosen(self._models, names):
            model.train(mode == "train")

    def about(self) -> dict[str, Any]:
        """What `describe` says besides, and so results.json: names and plain data."""
        return {}

    @classmethod
    def config_names(cls) -> Collection[str] | None:
        """What of cfg.TRAINER, or at cfg's top, this method reads; None: it does not say.

        The log shows no other methods' settings then.
        """
        return None

    # -- TRAIN.LOGGER

    def init_writer(self, log_dir: str) -> None:
        """Opens the loggers, tensorboard in log_dir; raises Failure if one cannot be opened."""
        if not self._open_loggers() and ranks.first():
            self._writer, self._loggers = open_loggers(self, log_dir)

    def close_writer(self) -> None:
        """Closes the loggers that are open."""
        for logger in self._open_loggers():
            logger.close()
        self._writer, self._loggers = None, []

    def _open_loggers(self) -> list[ScalarLogger]:
        return [logger for logger in (self._writer, *self._loggers) if logger is not None]

    def write_scalar(
        self, tag: str, scalar_value: float | Tensor, global_step: int | None = None
    ) -> None:
        """Gives a number to the loggers that are open."""
        for logger in self._open_loggers():
            logger.add_scalar(tag, scalar_value, global_step)

    # -- training

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """The whole training; `before_train` may move `start_epoch` to resume."""
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        try:
            self.before_train()
            self.recorder.training_begins(self.start_epoch)
            for epoch in range(self.start_epoch, self.max_epoch):
                self.epoch = epoch
                self.seed_epoch()
                self.before_epoch()
                self.recorder.epoch_begins()
                self.run_epoch()
                self.recorder.epoch_ends()
                self.after_epoch()
            self.recorder.training_ends()
            self.after_train()
        finally:
            self.close_writer()

    def seed_epoch(self) -> None:
        """Called first in each epoch, to make its random numbers follow from it."""

    def before_train(self) -> None:
        """Called before the first epoch."""

    def after_train(self) -> None:
        """Called after the last epoch."""

    def before_epoch(self) -> None:
        """Called before each epoch's first batch."""

    def after_epoch(self) -> None:
        """Called after each epoch's last batch."""

    # -- one step of the optimizers and schedulers

    def model_zero_grad(self, names: Names = None) -> None:
        """Drops the parameters' gradients."""
        for optim in self._chosen(self._optims, names):
            optim.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients; the loss is checked when it is logged."""
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        """One step of the optimizers."""
        for optim in self._chosen(self._optims, names):
            optim.step()

    def model_backward_and_update(self, loss: Tensor, names: Names = None) -> None:
        """One step down the loss."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def update_lr(self, names: Names = None) -> None:
        """One step of the schedulers: to be called after an epoch's last batch."""
        for sched in self._chosen(self._scheds, names):
            sched.step()

    def _chosen(self, of: Mapping[str, Any], names: Names) -> list[Any]:
        names = list(of) if names is None else self.get_model_names(names)
        return [of[name] for name in names if of[name] is not None]

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raises Failure if the loss is NaN or infinite. Waits for the device."""
        if not torch.isfinite(loss).all():
            raise Failure(f"The loss is NaN or infinite at {self.position()}. {NOT_FINITE}")

    def position(self) -> str:
        """Where the training is, as a log line begins."""
        epoch, batch = self.epoch + 1, self.batch_idx + 1
        return f"epoch [{epoch}/{self.max_epoch}] batch [{batch}/{self.num_batches}]"


class SimpleTrainer(TrainerBase):
    """Builds data, model and evaluator from a config, saves, tests and logs."""

    dm: DataManager | NoData | None = None  # given before __init__ where there is no dataset

    def __init__(self, cfg: CfgNode):
        super().__init__()
        check_availability(cfg.TEST.SPLIT, ["test", "val"], "TEST.SPLIT")
        check_availability(cfg.TEST.FINAL_MODEL, ["last_step", "best_val"], "TEST.FINAL_MODEL")
        lengths = ["train_x", "train_u", "smaller_one"]
        check_availability(cfg.TRAIN.COUNT_ITER, lengths, "TRAIN.COUNT_ITER")
        self.check_cfg(cfg)
        self.cfg = cfg
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        ranks.choose_gpu(self.device)
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.seed = cfg.SEED
        if self.seed < 0:
            ranks.refuse(f"SEED {self.seed}: they need one seed; give --seed")
            self.seed = random.SystemRandom().randrange(2**31)
            print(f"SEED is negative: drew {self.seed}")
        if cfg.VERBOSE:
            device = f"cuda:{torch.cuda.current_device()}" if self.device.type == "cuda" else "cpu"
            print(f"Device: {device} ({device_name(self.device)})")
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.evaluator.when_done = self.recorder.tested
        self.best_result = -math.inf

    def check_cfg(self, cfg: CfgNode) -> None:
        """For a trainer to refuse a config it cannot work with."""

    def build_data_loader(self) -> None:
        """Sets the loaders, num_classes and lab2cname."""
        self.dm = self.dm or DataManager(self.cfg)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def describe(self) -> dict[str, Any]:
        """What a checkpoint, results.json and an exported model say of the model: plain data."""
        return {
            "format": ABOUT_FORMAT,
            "trainer": self.cfg.TRAINER.NAME,
            "config": plain_config(self.cfg),
            "classnames": [name for _, name in sorted(self.lab2cname.items())],
            "bound_to_classes": None if self.class_rows is None else bool(self.class_rows),
            "preprocessing": preprocessing_of(self.cfg),
        } | self.about()

    def build_model(self) -> None:
        """Builds and registers the model; here a SimpleNet."""
        from dassl.thirdparty.modeling import build_simple_net

        build_simple_net(self)

    def train(self) -> None:
        if not vars(type(self)).get("divisible"):
            ranks.refuse(f"{self.cfg.TRAINER.NAME} does not say (divisible) that they may share it")
        super().train(self.start_epoch, self.max_epoch)
        # not in a `finally`: after a Ctrl-C the process's end is faster
        for loader in (self.train_loader_x, self.train_loader_u):
            if isinstance(loader, Loader):
                loader.close()

    def seed_epoch(self) -> None:
        """Seeds by seed and epoch, so that a resumed run goes on as if never stopped."""
        set_random_seed(mix_seed(self.seed, self.epoch))

    def before_train(self) -> None:
        """Resumes from the output folder or cfg.RESUME, and opens the loggers."""
        self._resume()
        mkdir_if_missing(self.output_dir)
        self.init_writer(os.path.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()

    def after_train(self) -> None:
        """Tests the last or the best model."""
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                ranks.wait()  # until the first has saved it
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")

    def after_epoch(self) -> None:
        """Evaluates if the best model is wanted, and saves."""
        val_result = None
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            val_result = self.test(split="val")
            if val_result > self.best_result:
                self.best_result = val_result
                self.save_model(self.epoch, self.output_dir, val_result=val_result, model_name=BEST)
        self.save_model(self.epoch, self.output_dir, val_result=val_result)
        self._remove_rolling()

    # -- one epoch

    def run_batches(self, batches: Iterable[tuple]) -> None:
        """Calls forward_backward(*batch) for self.num_batches batches and logs.

        Losses are read, which waits for the device, only when a line is printed and at the end. A
        line's `time` and `data` are seconds per batch since the last line (epoch's mean so far).
        """
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        print_freq = self.cfg.TRAIN.PRINT_FREQ
        # since the last line: its time, seconds waited for data, batches
        start, waited, since = time.time(), 0.0, 0
        end = start
        progress = bar(batches, f"epoch {self.epoch + 1}", self.num_batches)
        for self.batch_idx, batch in enumerate(progress):
            waited, since = waited + time.time() - end, since + 1
            losses.update(self.forward_backward(*batch))
            self.recorder.count(batch)
            done = self.batch_idx + 1
            printed = done % print_freq == 0 or self.num_batches < print_freq
            if printed:
                if self.device.type == "cuda":  # where steps are only queued so far
                    torch.cuda.synchronize(self.device)
                batch_time.update((time.time() - start) / since, since)
                data_time.update(waited / since, since)
                tqdm.write(self._log_line(losses, batch_time, data_time))
                start, waited, since = time.time(), 0.0, 0
            if printed or done == self.num_batches:
                self._record(losses)
            end = time.time()

    def _log_line(self, losses: MetricMeter, times: AverageMeter, waits: AverageMeter) -> str:
        left = (self.max_epoch - self.epoch) * self.num_batches - self.batch_idx - 1
        eta = datetime.timedelta(seconds=int(times.avg * left))
        timed = f"time {times.val:.3f} ({times.avg:.3f}) data {waits.val:.3f} ({waits.avg:.3f})"
        return f"{self.position()} {timed} {losses} lr {self.get_current_lr():.4e} eta {eta}"

    def _record(self, losses: MetricMeter) -> None:
        step = self.epoch * self.num_batches + self.batch_idx
        for name, meter in losses.meters.items():
            mean = meter.avg  # as good as the value: once NaN or infinite it stays so
            if "loss" in name and not math.isfinite(mean):
                raise Failure(f"The {name} is NaN or infinite by {self.position()}. {NOT_FINITE}")
            self.write_scalar(f"train/{name}", mean, step)
            if name == "loss":
                self.recorder.loss = mean
        self.write_scalar("train/lr", self.get_current_lr(), step)

    def get_current_lr(self, names: Names = None) -> float:
        """The first model's rate."""
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    # -- the test

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluates on a split, by default cfg.TEST.SPLIT; returns the first result."""
        self.set_model_mode("eval")
        self.evaluator.reset()
        self.recorder.test_from = "images"
        split = split or self.cfg.TEST.SPLIT
        if split == "val" and self.val_loader is None:
            line = "WARNING: there are no validation images, the test set takes their place"
            if self.recorder.in_training and self.cfg.TEST.FINAL_MODEL == "best_val":
                line += ": the best model is CHOSEN ON THE TEST SET, so its result is not that of "
                line += "unseen images"
            print(line)
            split = "test"
        loader = self.val_loader if split == "val" else self.test_loader
        print(f"Evaluate on the *{split}* set")
        for batch in self.test_batches(loader, split):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        if ranks.count() > 1:
            self.evaluator.add_ranks(self.device)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def test_batches(self, loader: DataLoader, split: str) -> Iterator[dict]:
        """This process's batches of the loader, or the same of kept images (TEST_CACHE)."""
        batches = None
        if self.cfg.DATALOADER.TEST_CACHE:
            batches, found = kept_images(loader, split, self.device)
            self.recorder.test_from = "crops" if found else "images"
        loader = in_turns(loader)
        yield from bar_or_lines(loader if batches is None else batches, split, len(loader))

    def model_inference(self, input: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C)."""
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images and labels, on the device."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))


class TrainerX(SimpleTrainer):
    """Trains on labeled data."""

    def run_epoch(self) -> None:
        self.num_batches = len(self.train_loader_x)
        self.run_batches((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and domains, on the device."""
        keys = ("img", "label", "domain")
        return tuple(batch[key].to(self.device, non_blocking=True) for key in keys)
