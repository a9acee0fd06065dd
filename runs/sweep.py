"""A sweep: methods × datasets × seeds × settings of a YAML file, several runs at once, one on each
GPU or CPU slot.

Every run is a plain `bash scripts/<method>/<script>.sh` (see --dry-run) and takes DATA, SHOTS and
VENV from the environment. Finished runs are not repeated and half trained ones go on from their
last epoch, so the same command goes on where it was stopped; two sweeps at once share the work. A
run that fails stops nothing but the tests of its model. At the end the table is printed, and the
command that makes it again (in other formats, with the papers' numbers, …).

A file's keys are
  protocol   base2new, xd (cross-dataset), dg (domain generalisation) or few_shot
  methods    folders of scripts/
  datasets   to train on: names of configs/datasets/
  seeds      numbers
  targets    xd, dg: datasets to test on; default the usual ones
  shots      few_shot: numbers; default 1 2 4 8 16
  settings   name: [KEY, VALUE, …] for train.py, or name: a config file's name in configs/trainers/<Trainer>/
  output     folder of the results; default output/<the file's name>. Each setting has a folder of its own name in it
"""

import argparse
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from dassl import strict_yaml
from dassl.commands import OneLineParser, command_line, leave, say
from dassl.files import regular
from results import logs, tables
from results.protocols import TARGETS

from . import runner
from .runner import Job, Plan, Pool, Run

SWEEPS = Path("configs/sweeps")
LISTS = ("methods", "datasets", "seeds", "targets", "shots")
EXAMPLES = """examples:
  bash scripts/sweep.sh shapes_table4                 a file of configs/sweeps/
  bash scripts/sweep.sh my/sweep.yaml --dry-run       print the commands that are still to be run
  DATA=/my/datasets bash scripts/sweep.sh table1      one run on each GPU
"""


@dataclass
class Sweep:
    """A sweep's file; the fields are its keys."""

    protocol: str
    methods: list[str]
    datasets: list[str]
    seeds: list[int]
    targets: list[str] = field(default_factory=list)
    shots: list[int] = field(default_factory=lambda: list(runner.SHOTS))
    settings: dict[str, list | str] = field(default_factory=dict)
    output: str = ""

    def runs(self) -> list[Run]:
        """All of them, the first seed's first."""
        with (
            ThreadPoolExecutor() as pool
        ):  # the scripts are asked for their folders, once for all seeds: side by side
            first = product(self.plans(), self.methods, self.datasets, self.seeds[:1])
            list(pool.map(lambda of: of[0].runs(*of[1:]), first))
        combinations = product(self.seeds, self.plans(), self.datasets, self.methods)
        return [
            run
            for seed, plan, dataset, method in combinations
            for run in plan.runs(method, dataset, seed)
        ]

    def plans(self) -> list[Plan]:
        """One for each setting."""
        return [self.plan(name, what) for name, what in self.settings.items()] or [
            self.plan("", [])
        ]

    def table(self, runs: Iterable[Run]) -> list[str]:
        """What results.tables is to be asked for, of what has a result. An ablation's baseline is
        the first setting."""
        words = [self.protocol, os.environ.get("OUTPUT") or self.output]
        if len(self.settings) > 1 and len(self.methods) == 1 and self.protocol == "base2new":
            words[0] = "ablation"
            name, what = next(iter(self.settings.items()))
            there = {run.setting for run in runs if run.column == "new" and run.result()}
            if name in there and len(there) > 1:
                words += ["--baseline", what if isinstance(what, str) else name]
        return [*words, "--cost"]

    def plan(self, setting: str, what: list | str) -> Plan:
        env = {"OUTPUT": os.path.join(os.environ.get("OUTPUT") or self.output, setting).rstrip("/")}
        if isinstance(what, str):
            return Plan(self.protocol, self.targets, self.shots, (), env | {"CFG": what}, setting)
        return Plan(self.protocol, self.targets, self.shots, list(map(str, what)), env, setting)


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's file; leaves with code 2 and one line, naming the file and the key, if it
    makes no sense."""
    try:
        given = strict_yaml.load(regular(path).read_text(encoding="utf-8"))
    except OSError as error:
        leave(f"{path}: {error.strerror}; ready sweeps are {', '.join(ready_sweeps())}", 2)
    except (ValueError, yaml.YAMLError) as error:
        leave(f"{path}: {' '.join(str(error).split())}", 2)
    if path.parent == SWEEPS and isinstance(
        given, dict
    ):  # a method may have been removed, with its files
        wanted, there = given.get("methods") or [], runner.methods()
        if gone := [method for method in wanted if method not in there]:
            say(f"{path}: without {', '.join(gone)}, which this repository does not have")
            given["methods"] = [method for method in wanted if method in there]
    for key, problem in problems(given):
        leave(f"{path}: {key}: {problem}", 2)
    for key in (key for key in LISTS if key in given):
        given[key] = list(dict.fromkeys(given[key]))
    return Sweep(**{"output": f"output/{path.stem}"} | given)


def problems(given: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a sweep's file, key by key. Later ones are only to be asked for if there
    is no earlier one."""
    keys = [field.name for field in fields(Sweep)]
    if not isinstance(given, dict):
        yield "nothing in it", f"it needs the keys {', '.join(keys)}"
    yield from unknown("key", given, keys)
    for key in ("protocol", "methods", "datasets", "seeds"):
        if key not in given:
            yield key, "is missing"
    for key in (key for key in LISTS if key in given):
        if not isinstance(given[key], list) or not given[key]:
            yield key, "must be a list of at least one value"
    yield from unknown("protocol", [given["protocol"]], runner.PROTOCOLS)
    yield from unknown("methods", given["methods"], runner.methods())
    for key in ("datasets", "targets"):
        yield from unknown(key, given.get(key, []), runner.datasets())
    for key, least in (("seeds", 0), ("shots", 1)):
        if not all(type(v) is int and v >= least for v in given.get(key, [])):
            yield key, f"must be whole numbers, {least} or more"
    for key, where in (("shots", ("few_shot",)), ("targets", ("xd", "dg"))):
        if key in given and given["protocol"] not in where:
            yield key, f"goes with {' and '.join(where)}"
    for source in (
        given["datasets"] if given["protocol"] in ("xd", "dg") and "targets" not in given else ()
    ):
        if (given["protocol"], source) not in TARGETS:
            yield "targets", f"{source} has no usual ones"
    if not isinstance(given.get("output", ""), str):
        yield "output", "must be a folder"
    yield from settings_problems(given.get("settings", {"usual": []}))


def settings_problems(settings: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(settings, dict) or not settings:
        yield (
            "settings",
            "must be one or more `name: [KEY, VALUE, …]` or `name: a config file's name`",
        )
    for name, what in settings.items():
        key = f"settings: {name}"
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
            yield (
                key,
                "the name is to be a folder's, of letters, digits and _ . + - (in quotes if it is a number)",
            )
        if not isinstance(what, list) and not (isinstance(what, str) and what):
            yield key, "must be [KEY, VALUE, …] or a config file's name"
        if isinstance(what, list) and len(what) % 2:
            yield key, f"keys and values come in pairs, but {what[-1]} has no value"
        for word in what if isinstance(what, list) else ():
            if word in runner.GIVEN:
                yield key, f"{word} is no setting: each run has its own"


def unknown(key: str, values: Iterable, known: Sequence[str]) -> Iterator[tuple[str, str]]:
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
    for plan in sweep.plans():
        of_setting = cfg.clone()
        try:
            merge_command_line(of_setting, (), plan.opts)
            check_values(of_setting)
        except UsageError as error:
            leave(f"{path}: settings: {plan.setting}: {error}", 2)


def ready_sweeps() -> list[str]:
    return sorted(path.stem for path in SWEEPS.glob("*.yaml"))


class Progress(runner.View):
    """A line for each run that has ended, and on a terminal a table of those under way."""

    def __init__(self):
        self.live = sys.stderr.isatty()
        self.height, self.drawn = 0, 0.0  # of the table on the screen, and when

    def ended(self, pool: Pool, run: Run, seconds: float | None) -> None:
        if seconds is None:
            what = "done by another process"
        elif run in pool.failed:
            what = f"failed after {in_words(seconds)}: {pool.failed[run][-1]}"
        else:
            what = f"{run.accuracy():.1f}% in {in_words(seconds)}"
        self.close()
        say(f"[{count_done(pool)}/{len(pool.runs)}] {run}: {what}{pool.left()}")

    def tick(self, pool: Pool) -> None:
        if self.live and (not self.height or time.monotonic() - self.drawn > 1):
            self.draw(pool)

    def draw(self, pool: Pool) -> None:
        rows = [
            [place(job), str(job.run), epoch_of(job.run), in_words(job.seconds)]
            for job in pool.jobs
        ]
        head = (
            f"{count_done(pool)} of {len(pool.runs)} done, {len(pool.failed)} failed{pool.left()}"
        )
        lines = [head, *tabulate(rows, tablefmt="plain", disable_numparse=True).splitlines()]
        width, height = shutil.get_terminal_size()
        lines = [line[: width - 1] for line in lines[: height - 1]]
        self.close()
        sys.stderr.write("\n".join([*lines, ""]))
        sys.stderr.flush()
        self.height, self.drawn = len(lines), time.monotonic()

    def close(self) -> None:
        """Take the table off the screen."""
        if self.height:
            sys.stderr.write(f"\x1b[{self.height}F\x1b[J")
            self.height = 0


def count_done(pool: Pool) -> int:
    return len(pool.runs) - len(pool.todo) - len(pool.jobs)


def in_words(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def place(job: Job) -> str:
    gpu = job.slot.get("CUDA_VISIBLE_DEVICES")
    return f"GPU {gpu}" if gpu else "CPU"


def epoch_of(run: Run) -> str:
    """The last epoch that its log names."""
    logs = sorted(run.folder.glob("log.txt*"))
    found = (
        re.findall(r"^epoch \[\d+/\d+\]", logs[-1].read_text(errors="replace"), re.M)
        if logs
        else []
    )
    return found[-1] if found else ""


def slots(asked: int | None) -> list[dict[str, str]]:
    """The environment of each slot: a GPU each, or an equal share of the CPU cores. `asked` sets
    their number."""
    import torch  # slow, and not needed for what is printed before

    count = torch.cuda.device_count()
    if count:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[:count]
        gpus = names if len(names) == count and all(names) else list(map(str, range(count)))
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % count]} for i in range(asked or count)]
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // (asked or cores)))
    return [{"OMP_NUM_THREADS": threads} for _ in range(asked or cores)]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("bash scripts/sweep.sh", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("file", metavar="FILE", help=f"YAML, or one of {' '.join(ready_sweeps())}")
    add(
        "--slots",
        type=int,
        metavar="N",
        help="runs at once; default one per GPU, without any one per CPU core",
    )
    add("--dry-run", action="store_true", help="print the commands that are still to be run")
    args = parser.parse_args(argv)
    ready = SWEEPS / f"{args.file}.yaml"
    args.file = ready if os.path.isfile(ready) else Path(args.file)
    if args.slots is not None and args.slots < 1:
        parser.error("--slots must be 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0 or 1 (a run failed); leaves with 2 for wrong arguments or a wrong file."""
    args = parse_args(argv)
    logs.log.setLevel("CRITICAL")  # what is not finished is run, and what failed is reported
    sweep = read_sweep(args.file)
    runs = sweep.runs()
    if sweep.settings:
        check_config_keys(args.file, sweep)
    if args.dry_run:
        for run in runner.unfinished(runs):
            print(run.shell())
        return 0
    failed = Pool(runs, slots(args.slots), Progress()).run()
    if failed:
        runner.report(failed, len(runs))
    if len(failed) < len(runs):
        words = sweep.table(runs)
        print(f"\npython -m results.tables {shlex.join(words)}\n", flush=True)
        with suppress(SystemExit):  # it has said why there is none
            tables.main(words)
    return 1 if failed else 0


if __name__ == "__main__":
    command_line(main)
