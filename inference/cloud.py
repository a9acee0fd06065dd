"""Accuracy in the cloud: a model is tested with its text prompts moved by σ·n, for growing σ.

The paper says that P2C learns a cloud of prompts where others learn a point. If so, its
accuracy should fall later than its baseline's. Perturbed are the vectors learned as input of
the text tower (ctx and attributes), not the deep prompts; each tensor has noise of its own,
the same for all classes, as in training. Image features are without noise. A draw n is scaled
to every σ and is the same for all runs whose vectors have the same shapes, so differences
are paired.

The fair baseline is P2C without DPD (configs/trainers/P2C/table4_baseline.yaml): plain MaPLe
has no attribute vectors, and its deep prompts take ctx's place from the second block on, so
noise on ctx hardly reaches its text features.
"""

import argparse
import logging
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from yacs.config import CfgNode

from dassl.commands import OneLineParser, command_line, existing_folder, leave, log_to_stderr, say
from dassl.engine import TrainerBase
from dassl.engine.record import commit
from dassl.utils import Failure, UsageError, mix_seed, seeded, write_json
from results.curves import CLOUD
from results.names import name_methods
from results.records import Result, find_results
from results.statistics import summarise
from results.text_table import show_stat
from trainers.base import CLIPTrainer, CustomCLIP
from trainers.coop import PromptLearner
from trainers.p2c import MixtureNoise

from .load import load_run

EXAMPLES = """examples:
  python -m inference.cloud output/shapes_table4
  python -m inference.cloud output --sigmas 0 0.01 0.1 --draws 3 --noise gmm
  python -m results.figures cloud output
"""
FORMAT = 1
SIGMAS = (0.0, 0.005, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5)
Noise = Callable[[Tensor], Tensor]  # fresh noise of a tensor's shape

log = logging.getLogger("cloud")


def learner_of(trainer: TrainerBase) -> PromptLearner:
    """The part of the model that has the vectors of the text prompts.

    Raises: UsageError if there is none, or if they are others for each image.
    """
    if isinstance(trainer, CLIPTrainer) and type(trainer.model).forward is CustomCLIP.forward:
        for module in trainer.model.learner.modules():
            if isinstance(module, PromptLearner):
                return module
    name = type(trainer).__name__
    raise UsageError(f"{name} learns no vectors that are its text prompts for all images")


@contextmanager
def perturbed(learner: PromptLearner, sigma: float, noise: Noise) -> Iterator[None]:
    """Inside, `learner.vectors()` gives P + σ·n for clean P.

    Drawn on the CPU, n is the same on all devices.
    """
    clean = learner.vectors()
    moved = {name: p + sigma * noise(p.cpu()).to(p.device) for name, p in clean.items()}
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
    model = trainer.model
    learner = learner_of(trainer)
    features, labels = [], []
    for batch in trainer.test_loader:
        image, label = trainer.parse_batch_test(batch)
        with trainer.autocast():
            features.append(model.image_features(image))
        labels.append(label)
    images, label = torch.cat(features), torch.cat(labels)  # (N, D), (N,)

    def accuracy(sigma: float, draw: int) -> float:
        with seeded(mix_seed(draw)), perturbed(learner, sigma, noise), trainer.autocast():
            model.eval()  # which forgets the text features of before
            right = model.logits(images, model.text_features()).argmax(dim=1) == label
        return 100 * right.sum().item() / len(label)

    values = []
    for sigma in sigmas:
        values.append([accuracy(sigma, draw) for draw in range(draws if sigma else 1)])
    model.eval()
    return values


def ask(run: Result, args: argparse.Namespace) -> list[list[float]]:
    """Measures a run and writes its cloud.json. Raises: Failure if it cannot be measured."""
    trainer = load_run(run.folder, args.root, check=learner_of)
    dpd = trainer.cfg.TRAINER.P2C.DPD
    trained_with_noise = trainer.cfg.TRAINER.NAME == "P2C" and dpd.ENABLED
    values = measure(trainer, args.sigmas, args.draws, make_noise(args.noise, dpd))
    if args.sigmas[0] == 0 and abs(values[0][0] - run.metrics["accuracy"]) > 0.5:
        line = "%s: without noise the accuracy is %.1f, and the run's was %.1f"
        line += ": the model or the data are others"
        log.warning(line, run.folder, values[0][0], run.metrics["accuracy"])
    about = {
        "format": FORMAT,
        "noise": args.noise,
        "sigmas": args.sigmas,
        "draws": args.draws,
        "accuracy": values,
        "trained_sigma": dpd.SIGMA_MAX if trained_with_noise else None,
        "command": shlex.join(["python", "-m", "inference.cloud", *args.words]),
    }
    write_json(about | commit(), str(run.folder / CLOUD))
    return values


def table(values: dict[Result, list[list[float]]], sigmas: Sequence[float]) -> str:
    """Mean ± population std over seeds and draws: a row for each method and set of classes."""
    rows: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for run, name in name_methods(list(values)).items():
        rows[run.dataset, run.side, name].append(run)
    lines = []
    for key, runs in sorted(rows.items()):
        cells = []
        for i in range(len(sigmas)):
            pooled = np.concatenate([values[run][i] for run in runs])
            cells.append(show_stat(summarise(pooled)))
        lines.append([*key, *cells, len(runs)])
    headers = ["dataset", "classes", "method", *(f"σ {s:g}" for s in sigmas), "seeds"]
    return tabulate(lines, headers, disable_numparse=True)


# The command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m inference.cloud", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    below = "runs are looked for in and below these"
    add("folders", nargs="+", type=existing_folder, metavar="FOLDER", help=below)
    scales = {"nargs": "+", "type": float, "default": list(SIGMAS), "metavar": "σ"}
    add("--sigmas", **scales, help="default: 0 to 0.5")
    add("--draws", type=int, default=5, metavar="N", help="for each σ; default: %(default)s")
    kinds = {"choices": ("gaussian", "gmm"), "help": "n; gmm: the mixture of TRAINER.P2C.DPD"}
    add("--noise", default="gaussian", **kinds)
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
    found = find_results(args.folders)
    values, skipped = {}, 0
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
        about = f"mean ± population std over seeds and {args.draws} draws"
        print(f"{table(values, args.sigmas)}\n\naccuracy in %: {about}")
    return 0 if values and len(values) + skipped == len(found) else 1


if __name__ == "__main__":
    command_line(main)
