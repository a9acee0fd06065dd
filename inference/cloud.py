"""Accuracy in the cloud: a trained model is tested with its text prompts perturbed by σ·n, for
growing σ.

The paper says that P2C learns a cloud of prompts where others learn a point. If so, its accuracy
should fall later than its baseline's. Perturbed are the vectors learned as input of the text tower
(ctx and attributes), not the deep prompts; each tensor has noise of its own, the same for all
classes, as in training. The image features know no noise. A draw n is scaled to every σ and is the
same for all runs whose vectors have the same shapes, so differences are paired.

The fair baseline is P2C without DPD (configs/trainers/P2C/table4_baseline.yaml): plain MaPLe has no
attribute vectors, and its deep prompts take ctx's place from the second block on, so noise on ctx
hardly reaches its text features.
"""

import argparse
import io
import json
import logging
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from yacs.config import CfgNode

from dassl.commands import OneLineParser, command_line, existing_folder, leave, log_to_stderr, say
from dassl.engine import TrainerBase, build_trainer
from dassl.engine.record import commit
from dassl.files import regular
from dassl.utils import Failure, UsageError, mix_seed, seeded, set_random_seed, write_json
from parse_test_res import show_stat, summarise
from results.figures import CLOUD
from results.records import Result, find_results, name_methods
from train import parse_args as train_args
from train import setup_cfg
from trainers.base import CLIPTrainer, CustomCLIP
from trainers.coop import PromptLearner
from trainers.p2c import MixtureNoise

EXAMPLES = """examples:
  python -m inference.cloud output/shapes_table4
  python -m inference.cloud output --sigmas 0 0.01 0.1 --draws 3 --noise gmm
  python -m results.figures cloud output
"""
FORMAT = 1
SIGMAS = (0.0, 0.005, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5)
Noise = Callable[[Tensor], Tensor]  # fresh noise of a tensor's shape

log = logging.getLogger("cloud")


def load_run(folder: Path, root: str | None) -> CLIPTrainer:
    """The trainer of a run's recorded config, in eval mode, with the model that the run tested.

    Args:
        folder: an output folder, of a training run or of an --eval-only one.
        root: folder of the datasets, if it is not where it was.

    Raises: Failure if there is no config or no model, UsageError for a method without such prompts.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise Failure(f"{folder}: no config.yaml, so no run of this repository")
    cfg = setup_cfg(train_args(["--config-file", str(file), *(["--root", root] if root else [])]))
    with redirect_stdout(io.StringIO()):
        set_random_seed(cfg.SEED % 2**32)
        trainer = build_trainer(cfg)
        learner_of(trainer)
        trainer.load_model(*tested_model(folder, trainer.get_model_names()))
    trainer.set_model_mode("eval")
    return trainer


def tested_model(folder: Path, names: Sequence[str]) -> tuple[str, int | None]:
    """Folder and epoch of the model a run tested: its own, or --model-dir's as it lies seen from
    the run's folder.

    Raises: Failure if neither is there.
    """
    if all((folder / name).is_dir() for name in names):
        return str(folder), None
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--model-dir")
    flags.add_argument("--load-epoch", type=int)
    try:
        record = json.loads(regular(folder / "results.json").read_text(encoding="utf-8"))
        given = flags.parse_known_args(shlex.split(record["command"]))[0]
        # relative to the run's folder it holds also after the whole output was moved
        away = os.path.normpath(
            folder / os.path.relpath(given.model_dir, record["config"]["OUTPUT_DIR"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        away = ""
    if not os.path.isdir(away):
        raise Failure(
            f"{folder}: no checkpoint ({', '.join(names)}), and no results.json that says where it is"
        )
    return away, given.load_epoch


def learner_of(trainer: TrainerBase) -> PromptLearner:
    """The part of the model that has the vectors of the text prompts.

    Raises: UsageError if there is none, or if they are others for each image.
    """
    if isinstance(trainer, CLIPTrainer) and type(trainer.model).forward is CustomCLIP.forward:
        for module in trainer.model.learner.modules():
            if isinstance(module, PromptLearner):
                return module
    raise UsageError(
        f"{type(trainer).__name__} learns no vectors that are its text prompts for all images"
    )


@contextmanager
def perturbed(learner: PromptLearner, sigma: float, noise: Noise) -> Iterator[None]:
    """Inside, `learner.vectors()` gives P + σ·n for clean P. Drawn on the CPU, n is the same on all
    devices."""
    moved = {name: p + sigma * noise(p.cpu()).to(p.device) for name, p in learner.vectors().items()}
    learner.vectors = lambda: moved  # of this instance, in front of its class's
    try:
        yield
    finally:
        del learner.vectors


def make_noise(kind: str, dpd: CfgNode) -> Noise:
    """N(0, 1), or the mixture of TRAINER.P2C.DPD."""
    if kind == "gaussian":
        return torch.randn_like
    return MixtureNoise(dpd.GMM_MEANS, dpd.GMM_STDS, dpd.GMM_WEIGHTS, dpd.GMM_STANDARDIZE)


@torch.no_grad()
def measure(
    trainer: CLIPTrainer, sigmas: Sequence[float], draws: int, noise: Noise
) -> list[list[float]]:
    """Accuracy on the test set in percent: for each σ a value for each draw, for σ 0 one."""
    model, learner = trainer.model, learner_of(trainer)
    features, labels = [], []
    for batch in trainer.test_loader:
        image, label = trainer.parse_batch_test(batch)
        with trainer.autocast():
            features.append(model.image_features(image))
        labels.append(label)
    images, label = torch.cat(features), torch.cat(labels)

    def accuracy(sigma: float, draw: int) -> float:
        with seeded(mix_seed(draw)), perturbed(learner, sigma, noise), trainer.autocast():
            model.eval()  # which forgets the text features of before
            right = model.logits(images, model.text_features()).argmax(dim=1) == label
        return 100 * right.sum().item() / len(label)

    values = [[accuracy(sigma, draw) for draw in range(draws if sigma else 1)] for sigma in sigmas]
    model.eval()
    return values


def ask(run: Result, args: argparse.Namespace) -> list[list[float]]:
    """Measures a run and writes cloud.json to its folder. Raises Failure if it cannot be asked."""
    trainer = load_run(run.folder, args.root)
    dpd = trainer.cfg.TRAINER.P2C.DPD
    values = measure(trainer, args.sigmas, args.draws, make_noise(args.noise, dpd))
    clean = dict(zip(args.sigmas, values, strict=True)).get(0.0)
    if clean and abs(clean[0] - run.metrics["accuracy"]) > 0.5:
        line = "%s: without noise the accuracy is %.1f, and the run's was %.1f: the model or the data are others"
        log.warning(line, run.folder, clean[0], run.metrics["accuracy"])
    about = {
        "format": FORMAT,
        "noise": args.noise,
        "sigmas": args.sigmas,
        "draws": args.draws,
        "accuracy": values,
        "trained_sigma": dpd.SIGMA_MAX
        if trainer.cfg.TRAINER.NAME == "P2C" and dpd.ENABLED
        else None,
        "command": shlex.join(["python", "-m", "inference.cloud", *args.words]),
        **commit(),
    }
    write_json(about, str(run.folder / CLOUD))
    return values


def table(values: dict[Result, list[list[float]]], sigmas: Sequence[float]) -> str:
    """Mean ± population std over seeds and draws, a row for each method, dataset and set of
    classes."""
    names = name_methods(list(values))
    rows: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for run, name in names.items():
        rows[run.dataset, run.side, name].append(run)
    lines = []
    for key in sorted(rows):
        cells = [
            summarise(np.concatenate([values[run][i] for run in rows[key]]))
            for i in range(len(sigmas))
        ]
        lines.append([*key, *map(show_stat, cells), len(rows[key])])
    headers = ["dataset", "classes", "method", *(f"σ {s:g}" for s in sigmas), "seeds"]
    return tabulate(lines, headers, disable_numparse=True)


# -- the command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m inference.cloud", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        type=existing_folder,
        metavar="FOLDER",
        help="runs are looked for in and below these",
    )
    add(
        "--sigmas",
        nargs="+",
        type=float,
        default=list(SIGMAS),
        metavar="σ",
        help="default: 0 to 0.5",
    )
    add("--draws", type=int, default=5, metavar="N", help="for each σ; default: %(default)s")
    add(
        "--noise",
        default="gaussian",
        choices=("gaussian", "gmm"),
        help="n; gmm: the mixture of TRAINER.P2C.DPD",
    )
    add("--root", metavar="DIR", help="folder of the datasets, if it is not where it was")
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    if args.draws < 1:
        parser.error(f"--draws {args.draws}: must be 1 or more")
    if not all(0 <= sigma < float("inf") for sigma in args.sigmas):
        parser.error("--sigmas: must be numbers, 0 or more")
    args.sigmas = sorted(set(args.sigmas))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a run could not be asked or none could; leaves with 2 for wrong arguments."""
    args = parse_args(argv)
    log_to_stderr()
    found, values, skipped = find_results(args.folders), {}, 0
    if not found:
        leave(f"no results of runs in {' '.join(map(str, args.folders))}", 1)
    for i, run in enumerate(found, start=1):
        say(f"[{i}/{len(found)}] {run.folder}")
        try:
            values[run] = ask(run, args)
        except UsageError as error:  # a method that has nothing to perturb
            say(f"skipped: {error}")
            skipped += 1
        except Failure as error:
            say(f"error: {error}")
        except KeyboardInterrupt:
            leave(f"stopped; {len(values)} of {len(found)} runs have their {CLOUD}", 130)
    if values:
        print(
            f"{table(values, args.sigmas)}\n\naccuracy in %: mean ± population std over seeds and {args.draws} draws"
        )
    return 0 if values and len(values) + skipped == len(found) else 1


if __name__ == "__main__":
    command_line(main)
