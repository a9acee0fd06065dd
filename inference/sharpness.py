"""How fast the loss rises around the learned prompts: on average, and in the worst direction.

L(P) is the cross-entropy on a run's test images, and P the D numbers that inference.cloud moves:
the vectors learned as input of the text tower. Image features stay as they are. Measured are

  mean    L(P + σ n) - L(P) for n ~ N(0, 1), with the cloud's own draws
  worst   the largest L(P + r d) - L(P) found for |d| = 1 and r = σ √D, which is how far noise of
          that σ goes: from each of two random d by five steps d <- g / |g| with the gradient
          g of L at P + r d. Where L is quadratic around its minimum, g is r times the
          Hessian times d, and this is the power iteration for its largest eigenvalue.

Each run's folder gets a sharpness.json.
"""

import argparse
import io
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from dassl.commands import OneLineParser, command_line, existing_folder, log_to_stderr
from dassl.engine import TrainerBase
from dassl.engine.record import commit
from dassl.utils import UsageError, mix_seed, seeded, write_json
from results.curves import SHARPNESS, told_by
from results.names import name_methods
from results.records import Result, results_in
from results.statistics import Stat, summarise
from trainers.base import CLIPTrainer, CustomCLIP

from .asked import ask_each
from .cloud_measures import batches_of, check_vectors, learner_of, models_of, moved, predictor
from .load import load_run

EXAMPLE = """example:
  python -m inference.sharpness output/shapes_table4 --sigmas 0.06 0.12
"""
SIGMAS, WORST_SIGMAS = (0.06, 0.12), (0.015, 0.06)
DRAWS, STARTS, STEPS = 10, 2, 5
Loss = Callable[[Tensor], Tensor]  # of (D,) added to the learned vectors


class Sharpness(NamedTuple):
    """Cross-entropies, in nats."""

    loss: float  # L(P)
    numbers: int  # D
    mean: dict[str, list[float]]  # σ -> the rise of each draw
    worst: dict[str, float]  # σ -> the largest rise found


def check(trainer: TrainerBase) -> None:
    """Raises UsageError for a method whose text prompts are no learned vectors of all images."""
    check_vectors(trainer)
    if type(trainer.model).forward is not CustomCLIP.forward or len(models_of(trainer)) > 1:
        line = "has no one set of text features, which all images share"
        raise UsageError(f"{type(trainer).__name__} {line}")


def loss_around(trainer: CLIPTrainer, predict: Callable[[], Tensor], label: Tensor) -> Loss:
    """L as a function of what is added to the vectors, in the order of `vectors()`."""
    learner = learner_of(trainer.model)
    clean = {name: p.detach() for name, p in learner.vectors().items()}

    def loss(added: Tensor) -> Tensor:
        parts = added.split([p.numel() for p in clean.values()])
        there = {
            name: p + part.view_as(p) for (name, p), part in zip(clean.items(), parts, strict=True)
        }
        learner.vectors = lambda: there  # of this instance, in front of its class's
        try:
            trainer.model.drop_text_features()
            return F.cross_entropy(predict(), label)
        finally:
            del learner.vectors
            trainer.model.drop_text_features()

    return loss


def worst_rise(loss: Loss, numbers: int, radius: float, like: Tensor) -> float:
    """The largest rise found on the sphere of that radius around 0.

    Args:
        like: a tensor of the vectors' device and dtype.
    """
    found = []
    for start in range(STARTS):
        with seeded(mix_seed(start)):
            direction = F.normalize(torch.randn(numbers), dim=0).to(like)
        for _ in range(STEPS):
            added = (radius * direction).requires_grad_()
            value = loss(added)
            found.append(value.item())
            (gradient,) = torch.autograd.grad(value, added)
            direction = F.normalize(gradient, dim=0)
        with torch.no_grad():
            found.append(loss(radius * direction).item())
    return max(found) - loss(torch.zeros(numbers).to(like)).item()


def measure(
    trainer: CLIPTrainer, sigmas: Sequence[float], worst_sigmas: Sequence[float], draws: int
) -> Sharpness:
    """Both rises of a trained model on its test set."""
    with torch.no_grad():
        predict, label = predictor(trainer, batches_of(trainer))
        at_once = F.cross_entropy(predict(), label).item()
    vectors = list(learner_of(trainer.model).vectors().values())
    numbers = sum(p.numel() for p in vectors)
    mean: dict[str, list[float]] = {}
    with torch.no_grad():
        for sigma in sigmas:
            of_sigma = mean[f"{sigma:g}"] = []
            for draw in range(draws):
                with moved(trainer, sigma, draw, torch.randn_like):
                    of_sigma.append(F.cross_entropy(predict(), label).item() - at_once)
    rise = partial(worst_rise, loss_around(trainer, predict, label), numbers, like=vectors[0])
    worst = {f"{sigma:g}": rise(radius=sigma * numbers**0.5) for sigma in worst_sigmas}
    return Sharpness(at_once, numbers, mean, worst)


def ask(run: Result, args: argparse.Namespace) -> Sharpness:
    """Measures a run and writes its sharpness.json. Raises: UsageError or Failure."""
    trainer = load_run(run.folder, args.root, check=check)
    with redirect_stdout(io.StringIO()):
        found = measure(trainer, args.sigmas, args.worst_sigmas, args.draws)
    command = shlex.join(["python", "-m", "inference.sharpness", *args.words])
    about = {"format": 1, "of": told_by(run), **found._asdict(), "command": command}
    write_json(about | commit(), str(run.folder / SHARPNESS))
    return found


def table(answers: dict[Result, Sharpness]) -> str:
    """Mean ± population std over runs: a row for each method and set of classes."""
    rows: dict[tuple[str, str, str], list[Sharpness]] = defaultdict(list)
    for run, name in name_methods(list(answers)).items():
        rows[run.dataset, run.classes, name].append(answers[run])
    first = next(iter(answers.values()))
    headers = ["dataset", "classes", "method", "loss"]
    headers += [f"σ {s}" for s in first.mean] + [f"worst, σ {s}" for s in first.worst]
    lines = []
    for key, here in sorted(rows.items()):
        cells = [[of_run.loss for of_run in here]]
        cells += [[x for of_run in here for x in of_run.mean[s]] for s in first.mean]
        cells += [[of_run.worst[s] for of_run in here] for s in first.worst]
        lines.append([*key, *(in_nats(summarise(cell)) for cell in cells), len(here)])
    return tabulate(lines, [*headers, "seeds"], disable_numparse=True)


def caption(args: argparse.Namespace) -> str:
    """What the table's numbers are."""
    return f"""loss: cross-entropy; the others are its rises: mean ± population std over seeds
σ: mean over {args.draws} draws of noise; worst: the largest found at the distance σ √D (--help)
{SHARPNESS} is in each run's folder"""


def in_nats(stat: Stat) -> str:
    """Mean ± spread with three decimals; a single one has no spread."""
    return " ± ".join(f"{x:.3f}" for x in stat if x == x)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m inference.sharpness", description=__doc__, epilog=EXAMPLE)
    add = parser.add_argument
    below = "runs are looked for in and below these"
    add("folders", nargs="+", type=existing_folder, metavar="FOLDER", help=below)
    scales = {"nargs": "+", "type": float, "metavar": "σ"}
    add("--sigmas", **scales, default=SIGMAS, help="of the mean; default: 0.06 0.12")
    add("--worst-sigmas", **scales, default=WORST_SIGMAS, help="of the worst; default: 0.015 0.06")
    add("--draws", type=int, default=DRAWS, metavar="N", help="for each σ; default: %(default)s")
    add("--root", metavar="DIR", help="folder of the datasets, if it is not where it was")
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    if args.draws < 1:
        parser.error(f"--draws {args.draws}: must be 1 or more")
    for name in ("sigmas", "worst_sigmas"):
        if not all(0 < sigma < float("inf") for sigma in vars(args)[name]):
            parser.error(f"--{name.replace('_', '-')}: must be numbers above 0")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a run could not be asked or none could; leaves with 2 for wrong arguments."""
    args = parse_args(argv)
    log_to_stderr()
    found = results_in(args.folders)
    answers, well = ask_each(found, partial(ask, args=args), SHARPNESS)
    if answers:
        print(f"{table(answers)}\n\n{caption(args)}")
    return 0 if answers and well else 1


if __name__ == "__main__":
    command_line(main)
