"""A sweep: methods × datasets × seeds × settings of a YAML file, one run on each GPU or CPU slot.

With --slurm each model, its training and then its tests, is a task of a job array instead.

Every run is a plain `bash scripts/<method>/<script>.sh` and takes DATA, SHOTS, LOADEP, VENV,
CLIP_WEIGHTS and CLIP_MIRROR from the environment, and CFG, which would be every method's. Finished
runs are not repeated and half trained ones go on from their last epoch, so the same command goes on
where it was stopped; two sweeps at once share the work. A run that fails stops nothing but the
tests of its model. At the end the table is printed, and the command that makes it again (in other
formats, with the papers' numbers, …).

A file's keys are
  protocol   base2new, xd (cross-dataset), dg (domain generalisation) or few_shot
  methods    folders of scripts/
  datasets   to train on: names of configs/datasets/
  seeds      numbers
  targets    xd, dg: datasets to test on; default the usual ones
  shots      few_shot: numbers; default 1 2 4 8 16
  settings   name: [KEY, VALUE, …] for train.py, or
             name: a config file's name in configs/trainers/<Trainer>/
  output     folder of the results, unless OUTPUT in the environment names one; default
             output/<the file's name>
Each setting has a folder of its own name in the output folder.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from dassl.commands import OneLineParser, command_line, leave, say
from dassl.files import load_yaml, regular
from results import logs, tables
from results.protocols import TARGETS, dataset_name, transfers

from . import plan, slurm, status
from .plan import Model, Plan, Run
from .pool import Pool, report
from .progress import Progress

SWEEPS = Path("configs/sweeps")
LISTS = ("methods", "datasets", "seeds", "targets", "shots")
EXAMPLES = """examples:
  bash scripts/sweep.sh shapes_table4                 a file of configs/sweeps/
  DATA=/my/datasets bash scripts/sweep.sh table1      one run on each GPU
  bash scripts/sweep.sh table1 --slurm "--partition=gpu --gpus=1 --time=2:00:00" --max-parallel 8
  bash scripts/sweep.sh table1 --status               how far it is, wherever it is done
  bash scripts/sweep.sh my/sweep.yaml --dry-run       for any queue: a command for each model
"""


@dataclass
class Sweep:
    """A sweep's file; the fields are its keys."""

    protocol: str
    methods: list[str]
    datasets: list[str]
    seeds: list[int]
    targets: list[str] = field(default_factory=list)
    shots: list[int] = field(default_factory=lambda: list(plan.SHOTS))
    settings: dict[str, list | str] = field(default_factory=dict)
    output: str = ""

    def plans(self) -> list[Plan]:
        """One for each setting."""
        return [self.plan_of(name, what) for name, what in (self.settings or {"": []}).items()]

    def plan_of(self, setting: str, what: list | str) -> Plan:
        """The plan of a setting: of keys and values for train.py, or of a config file."""
        env = {"OUTPUT": os.path.join(self.folder, setting).rstrip("/")}
        opts = []
        if isinstance(what, str):
            env["CFG"] = what
        else:
            opts = [str(word) for word in what]
        return Plan(self.protocol, self.targets, self.shots, opts, env, setting)

    @property
    def folder(self) -> str:
        """The folder of the results, which the environment can change."""
        return os.path.expanduser(os.environ.get("OUTPUT") or self.output)

    def models(self) -> list[Model]:
        """All of them, the first seed's first."""
        return plan.all_models(self.plans(), self.methods, self.datasets, self.seeds)

    def runs(self) -> list[Run]:
        """Of all models."""
        return plan.runs_of(self.models())

    def table(self, runs: Iterable[Run]) -> list[str]:
        """What results.tables is to be asked for, of what has a result.

        An ablation's baseline is the first setting.
        """
        words = [self.protocol, self.folder]
        if len(self.settings) > 1 and len(self.methods) == 1 and self.protocol == "base2new":
            words[0] = "ablation"
            name = next(iter(self.settings))
            there = {run.setting for run in runs if run.column == "new" and run.result()}
            if name in there and len(there) > 1:
                words += ["--baseline", name]
        return [*words, "--cost"]


# -- reading its file


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's file; leaves with code 2 and one line, naming the key, if it is wrong."""
    try:
        given = load_yaml(regular(path).read_text(encoding="utf-8"))
    except OSError as error:
        leave(f"{path}: {error.strerror}; ready sweeps are {', '.join(ready_sweeps())}", 2)
    except (ValueError, yaml.YAMLError) as error:
        leave(f"{path}: {' '.join(str(error).split())}", 2)
    for key, problem in problems(given):
        leave(f"{path}: {key}: {problem}", 2)
    for key in (key for key in LISTS if key in given):
        given[key] = list(dict.fromkeys(given[key]))
    return Sweep(**{"output": f"output/{path.stem}"} | given)


def problems(given: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a sweep's file, by key; the next may be asked for if there is none yet."""
    keys = [field.name for field in fields(Sweep)]
    if not isinstance(given, dict):
        yield "nothing in it", f"it needs the keys {', '.join(keys)}"
    yield from unknown("key", given, keys)
    for key in ("protocol", "methods", "datasets", "seeds"):
        if key not in given:
            yield key, "is missing"
    for key in LISTS:
        if key in given and (not isinstance(given[key], list) or not given[key]):
            yield key, "must be a list of at least one value"
    protocol, of_others = given["protocol"], given["protocol"] in ("xd", "dg")
    yield from unknown("protocol", [protocol], plan.PROTOCOLS)
    yield from unknown("methods", given["methods"], plan.methods())
    for key in ("datasets", "targets"):
        yield from unknown(key, given.get(key, []), plan.datasets())
    for key, least in (("seeds", 0), ("shots", 1)):
        if not all(type(value) is int and value >= least for value in given.get(key, [])):
            yield key, f"must be whole numbers, {least} or more"
    if "shots" in given and protocol != "few_shot":
        yield "shots", "goes with few_shot"
    if "targets" in given and not of_others:
        yield "targets", "goes with xd and dg"
    for target in given.get("targets", ()):
        if (other := transfers().get(dataset_name(target), [protocol])[0]) != protocol:
            yield "targets", f"{target} is one of {other}, in whose table its results are"
    for source in given["datasets"] if of_others and "targets" not in given else ():
        if (protocol, source) not in TARGETS:
            yield "targets", f"{source} has no usual ones"
    if not isinstance(given.get("output", ""), str):
        yield "output", "must be a folder"
    yield from settings_problems(given.get("settings", {"usual": []}))


def settings_problems(settings: Any) -> Iterator[tuple[str, str]]:
    """The same of the key `settings`."""
    if not isinstance(settings, dict) or not settings:
        forms = "`name: [KEY, VALUE, …]` or `name: a config file's name`"
        yield "settings", f"must be one or more {forms}"
    for name, what in settings.items():
        key = f"settings: {name}"
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
            signs = "of letters, digits and _ . + - (in quotes if it is a number)"
            yield key, f"the name is to be a folder's, {signs}"
        if isinstance(what, str) and what:
            continue
        if not isinstance(what, list):
            yield key, "must be [KEY, VALUE, …] or a config file's name"
        if len(what) % 2:
            yield key, f"keys and values come in pairs, but {what[-1]} has no value"
        for word in what:
            if word in plan.GIVEN:
                yield key, f"{word} is no setting: each run has its own"


def unknown(key: str, values: Iterable, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The problems of values that are none of the known ones."""
    for value in values:
        if value not in known:
            near = get_close_matches(str(value), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            yield key, f"there is no {value}; {hint}"


def check_config_keys(path: Path, sweep: Sweep) -> None:
    """Leave with code 2 and one line for a setting that train.py would refuse."""
    import datasets  # these load torch, which is slow, and not needed where there are no settings
    import trainers
    from dassl.config import check_values, get_cfg_default, merge_command_line
    from dassl.utils import UsageError

    cfg = get_cfg_default()
    datasets.add_config(cfg)
    trainers.add_configs(cfg)
    for of_setting in sweep.plans():
        merged = cfg.clone()
        try:
            merge_command_line(merged, (), of_setting.opts)
            check_values(merged)
        except UsageError as error:
            leave(f"{path}: settings: {of_setting.setting}: {error}", 2)


def ready_sweeps() -> list[str]:
    """The names of those in configs/sweeps/."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml"))


# -- the command


def slots(asked: int | None) -> list[dict[str, str]]:
    """The environments of `asked` slots: a GPU each, or an equal share of the CPU cores."""
    import torch  # slow, and not needed for what is printed before

    from dassl.utils import cpu_cores

    count = torch.cuda.device_count()
    if count:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[:count]
        gpus = names if len(names) == count and all(names) else list(map(str, range(count)))
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % count]} for i in range(asked or count)]
    cores = cpu_cores()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // (asked or cores)))
    return [{"OMP_NUM_THREADS": threads} for _ in range(asked or cores)]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("bash scripts/sweep.sh", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("file", metavar="FILE", help=f"YAML, or one of {' '.join(ready_sweeps())}")
    add("--slots", type=int, metavar="N",
        help="runs at once; default one per GPU, without any one per CPU core")  # fmt: skip
    add("--slurm", metavar="OPTIONS",
        help="submit what is unfinished to Slurm; OPTIONS of sbatch, in quotes")  # fmt: skip
    add("--max-parallel", type=int, metavar="N", help="with --slurm: tasks at once, at most")
    add("--attempts", type=int, metavar="N",
        help=f"with --slurm: starts of one task, at most; default {slurm.ATTEMPTS}")  # fmt: skip
    add("--dry-run", action="store_true",
        help="print a command for each unfinished model; with --slurm its script")  # fmt: skip
    add("--status", action="store_true",
        help="what is finished, waiting, stopped, under way, failed; the table")  # fmt: skip
    args = parser.parse_args(slurm.joined(sys.argv[1:] if argv is None else argv))
    ready = SWEEPS / f"{args.file}.yaml"
    args.file = ready if os.path.isfile(ready) else Path(args.file)
    for name in ("slots", "max_parallel", "attempts"):
        if (number := vars(args)[name]) is not None and number < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if args.slurm is None and (args.max_parallel or args.attempts):
        parser.error("--max-parallel and --attempts go with --slurm")
    if args.slurm is not None and (line := slurm.problem(args.slurm)):
        parser.error(f"--slurm: {line}")
    if args.slots and (args.slurm is not None or args.status or args.dry_run):
        parser.error("--slots goes with none of --slurm, --status and --dry-run")
    if args.status and (args.slurm is not None or args.dry_run):
        parser.error("--status goes with neither --slurm nor --dry-run")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0 or 1 (a run failed); leaves with 2 for wrong arguments or a wrong file."""
    args = parse_args(argv)
    logs.log.setLevel("CRITICAL")  # what is not finished is run, and what failed is reported
    sweep = read_sweep(args.file)
    models = sweep.models()
    if args.status:
        print(status.report(models, sweep.folder))
        if any(all(run.result() for run in model.runs) for model in models):
            print_table(sweep, plan.runs_of(models))
        return 0
    if sweep.settings:
        check_config_keys(args.file, sweep)
    if args.slurm is not None or args.dry_run:
        queue(args, sweep, plan.unfinished_models(models))
        return 0
    runs = plan.runs_of(models)
    failed = Pool(runs, slots(args.slots), Progress()).run()
    if failed:
        report(failed, len(runs))
    if len(failed) < len(runs):
        print_table(sweep, runs)
    return 1 if failed else 0


def queue(args: argparse.Namespace, sweep: Sweep, models: Sequence[Model]) -> None:
    """Hand unfinished models to Slurm, or print what would be handed to it or to another queue."""
    for model in models:
        if "\n" in model.command:
            leave(f"{model.runs[0]}: no queue takes a line break, as in {model.command!r}", 2)
    if not models:
        say("all models are finished")
    elif args.slurm is None:
        print("\n".join(model.command for model in models))
    else:
        array = slurm.Array(models, sweep.folder, args.slurm, args.max_parallel, args.attempts)
        array.print() if args.dry_run else array.submit(args.file)


def print_table(sweep: Sweep, runs: Sequence[Run]) -> None:
    """The table of what has a result, and the command that makes it again."""
    words = sweep.table(runs)
    print(f"\npython -m results.tables {shlex.join(words)}\n", flush=True)
    with suppress(SystemExit):  # it has said why there is none
        tables.main(words)


if __name__ == "__main__":
    command_line(main)
