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

With --noise posterior, n is what a method draws its own prompts by (BayesianPrompt, VaMP; EMPL:
the noise of its chains). σ multiplies the deviation: with 0 a draw is the mean (EMPL: a chain
without noise), with 1 it is as in the method's tests. Each draw is tested alone, and at σ 1 also
the average of all their predictions, which is what the method itself predicts. ReBaPL's draws are
its samples, all at σ 1.
"""

import argparse
import io
import logging
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial

from tabulate import tabulate

from dassl.commands import OneLineParser, command_line, existing_folder, log_to_stderr, say
from dassl.engine.record import commit
from dassl.utils import write_json
from results.cloud_figure import caveat_of, no_fair_baselines
from results.curves import CLOUD, POSTERIOR, read_cloud, told_by
from results.names import name_methods
from results.records import Result, results_in
from results.statistics import summarise
from results.text_table import show_stat

from .asked import ask_each
from .cloud_measures import (
    Cloud,
    check_posterior,
    check_vectors,
    make_noise,
    measure,
    measure_posterior,
)
from .load import load_run

EXAMPLES = """examples:
  python -m inference.cloud output/shapes_table4
  python -m inference.cloud output --sigmas 0 0.01 0.1 --draws 3 --noise gmm
  python -m inference.cloud output/shapes_table1 --noise posterior
  python -m results.figures cloud output
"""
FORMAT = 1
SIGMAS = (0.0, 0.005, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5)
DRAWS = 5
OF_POSTERIOR = (0.0, 0.5, 1.0, 2.0, 4.0)  # σ

log = logging.getLogger("cloud")


def ask(run: Result, args: argparse.Namespace) -> Cloud:
    """Measures a run and writes its cloud.json. Raises: Failure if it cannot be measured."""
    posterior = args.noise == POSTERIOR
    check = check_posterior if posterior else check_vectors
    trainer = load_run(run.folder, args.root, check=check)
    dpd = trainer.cfg.TRAINER.P2C.DPD
    trained_with_noise = trainer.cfg.TRAINER.NAME == "P2C" and dpd.ENABLED and not posterior
    with redirect_stdout(io.StringIO()):
        if posterior:
            cloud = measure_posterior(trainer, args.sigmas, args.draws)
        else:
            noise = make_noise(args.noise, dpd)
            cloud = measure(trainer, args.sigmas, args.draws or DRAWS, noise)
    compare(run, cloud)
    about = {
        "format": FORMAT,
        "of": told_by(run),
        "noise": args.noise,
        "sigmas": cloud.sigmas,
        "draws": max(map(len, cloud.accuracy)),
        "accuracy": cloud.accuracy,
        "average": cloud.average,
        "trained_sigma": dpd.SIGMA_MAX if trained_with_noise else None,
        "command": shlex.join(["python", "-m", "inference.cloud", *args.words]),
    }
    before = read_cloud(run)
    if before and before["noise"] != args.noise:
        say(f"{run.folder / CLOUD}: takes the place of what was measured with {before['noise']}")
    write_json(about | commit(), str(run.folder / CLOUD))
    return cloud


def compare(run: Result, cloud: Cloud) -> None:
    """A warning if the model is not as accurate as the run's test found it."""
    ours, was = cloud.as_tested, run.metrics["accuracy"]
    if ours is not None and abs(ours - was) > 0.5:
        line = "%s: as the run tested it, the accuracy is %.1f, and the run's was %.1f"
        log.warning(f"{line}: the model or the data are others", run.folder, ours, was)


def table(clouds: dict[Result, Cloud], args: argparse.Namespace) -> str:
    """Mean ± population std over seeds and draws: a row for each method and set of classes.

    What is to be known of it stands below.
    """
    rows: dict[tuple[str, str, str], list[Cloud]] = defaultdict(list)
    names = name_methods(list(clouds))
    unfair = no_fair_baselines(names) if args.noise != POSTERIOR else ()
    for run, name in names.items():
        rows[run.dataset, run.classes, name + " †" * (name in unfair)].append(clouds[run])
    averaged = ["averaged"] * (args.noise == POSTERIOR)
    lines = []
    for key, here in sorted(rows.items()):
        cells = [[a for cloud in here for a in cloud.at(sigma)] for sigma in args.sigmas]
        cells += [[cloud.average for cloud in here] for _ in averaged]
        lines.append([*key, *(show_stat(summarise(c)) if c else "–" for c in cells), len(here)])
    headers = ["dataset", "classes", "method", *(f"σ {s:g}" for s in args.sigmas), *averaged]
    text = tabulate(lines, [*headers, "seeds"], disable_numparse=True)
    return "\n".join(filter(None, [f"{text}\n\n{caption(args)}", caveat_of(unfair)]))


def caption(args: argparse.Namespace) -> str:
    """What the table's numbers are."""
    about = "accuracy in %: mean ± population std over seeds and"
    if args.noise != POSTERIOR:
        return f"{about} {args.draws or DRAWS} draws"
    draws = f"{args.draws} draws" if args.draws else "as many draws as a test of the run has"
    return f"""{about} {draws}
σ: a draw's deviation from the mean, as a multiple of the posterior's (EMPL: of its chains' noise)
averaged: of all draws at σ 1 the averaged prediction; ReBaPL's draws are its samples, all at σ 1"""


# The command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m inference.cloud", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    below = "runs are looked for in and below these"
    add("folders", nargs="+", type=existing_folder, metavar="FOLDER", help=below)
    scales = {"nargs": "+", "type": float, "metavar": "σ"}
    add("--sigmas", **scales, help="default: 0 to 0.5; of a posterior 0 to 4")
    of_run = "for each σ; default: 5; of a posterior as many as the run's own test"
    add("--draws", type=int, metavar="N", help=of_run)
    kinds = "n; gmm: the mixture of TRAINER.P2C.DPD; posterior: the method's own"
    add("--noise", default="gaussian", choices=("gaussian", "gmm", POSTERIOR), help=kinds)
    add("--root", metavar="DIR", help="folder of the datasets, if it is not where it was")
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    if args.draws is not None and args.draws < 1:
        parser.error(f"--draws {args.draws}: must be 1 or more")
    sigmas = args.sigmas or (OF_POSTERIOR if args.noise == POSTERIOR else SIGMAS)
    if not all(0 <= sigma < float("inf") for sigma in sigmas):
        parser.error("--sigmas: must be numbers, 0 or more")
    args.sigmas = sorted(set(sigmas))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a run could not be asked or none could; leaves with 2 for wrong arguments."""
    args = parse_args(argv)
    log_to_stderr()
    found = results_in(args.folders)
    clouds, well = ask_each(found, partial(ask, args=args), CLOUD)
    if clouds:
        print(table(clouds, args))
    return 0 if clouds and well else 1


if __name__ == "__main__":
    command_line(main)
