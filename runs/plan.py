"""What is to be run: the runs of a protocol, their commands and folders, and which are finished.

A run is a plain command, `bash scripts/<method>/<script>.sh …`. It is finished when its folder has
a log with a result.
"""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain, product
from pathlib import Path

from dassl.commands import leave, say
from dassl.files import FINAL, FREE, LOCK
from results.layout import Place
from results.logs import LogResult, newest_result
from results.protocols import TARGETS
from results.tested import is_stale, recorded_command, tested_epoch, tested_model

from .run import Wrong, asked, command_of, output, read_words, yamls

SCRIPTS = Path("scripts")  # the working directory is the repository's
PROTOCOLS = ("base2new", "xd", "dg", "few_shot")
SHOTS = (1, 2, 4, 8, 16)
PHOTOS = "ImageFolder"  # the dataset whose images are those of DATA; others' are the same anywhere
# What of train.py's words the folder of a run says, or the check of its model.
OF_FOLDER = "--output-dir --model-dir --load-epoch --resume --seed SEED --trainer TRAINER.NAME "
OF_FOLDER = f"{OF_FOLDER}--config-file --dataset-config-file DATASET.NAME".split()
# What runs take from the environment.
ENVIRONMENT = "DATA OUTPUT CFG SHOTS SOURCE LOADEP VENV CLIP_WEIGHTS CLIP_MIRROR".split()
# What the scripts give to each run; their own words and the environment say what.
GIVEN = ("SEED", "OUTPUT_DIR", "TRAINER.NAME", "DATASET.NAME", "DATASET.ROOT", "DATASET.NUM_SHOTS",
         "DATASET.SUBSAMPLE_CLASSES", "--seed", "--output-dir", "--trainer")  # fmt: skip


def methods() -> list[str]:
    """The methods there are, which are folders of scripts/."""
    return sorted(path.parent.name for path in SCRIPTS.glob("*/base2new_train.sh"))


def datasets() -> list[str]:
    """The datasets there are."""
    return yamls("datasets")


@dataclass(eq=False)
class Run:
    """One run: what to start, where its log will be, and its place in a table."""

    method: str
    dataset: str  # that it is, or its model was, trained on
    seed: int
    part: str  # what it does, in words
    column: str  # of a table
    command: list[str]
    env: dict[str, str]
    place: Place
    trained: "Run | None" = None  # the run whose model this one tests
    setting: str = ""
    epoch_to_test: str = ""  # "": the newest

    def __str__(self) -> str:
        method = f"{self.method} {self.setting}".rstrip()
        return f"{method}, {self.dataset}, seed {self.seed}: {self.part}"

    @property
    def folder(self) -> Path:
        """Of its log and its checkpoints."""
        return Path(self.place.folder)

    def shell(self) -> str:
        """The command as one would type it in a new terminal."""
        return as_typed(self.command, self.env)

    def result(self) -> LogResult | None:
        """The newest finished log's; None if there is none."""
        if not self.folder.is_dir():
            return None
        return newest_result(self.folder, "accuracy", eval_only=True)

    def accuracy(self) -> float | None:
        """In percent; None if there is no result."""
        result = self.result()
        return result and result.metrics["accuracy"]

    def logs(self) -> list[Path]:
        """Its own, the newest last."""
        return sorted(self.folder.glob("log.txt*"))

    def epoch(self) -> str:
        """The last epoch that its newest log names, as `epoch [3/5]`."""
        logs = self.logs()
        text = logs[-1].read_text(errors="replace") if logs else ""
        found = re.findall(r"^epoch \[\d+/\d+\]", text, re.M)
        return found[-1] if found else ""


@dataclass(eq=False)
class Model:
    """A training and its tests, done one after the other: a task for a queue."""

    command: str  # does what is unfinished of it, in a new terminal and in one slot
    runs: list[Run]


@dataclass
class Plan:
    """A protocol, with what is common to all its runs."""

    protocol: str
    targets: Sequence[str] = ()  # xd, dg; none: the source's usual ones
    shots: Sequence[int] = SHOTS  # few_shot
    opts: Sequence[str] = ()  # for train.py
    env: Mapping[str, str] = field(default_factory=dict)
    setting: str = ""

    def runs(self, method: str, dataset: str, seed: int) -> list[Run]:
        """Each model's training before its tests. Raises Wrong if a script finds something so."""
        run = partial(self.run, method, dataset, seed)
        if self.protocol == "few_shot":
            return [
                run("few_shot", dataset, n, part=f"{n}-shot training", column=str(n))
                for n in self.shots
            ]
        if self.protocol == "base2new":
            train = run("base2new_train", dataset, part="train", column="base")
            return [train, run("base2new_test", dataset, part="test", column="new", trained=train)]
        runs = [train := run("xd_train", dataset, part="train", column=dataset)]
        of_it = {"trained": train, "SOURCE": dataset}
        for target in self.targets or TARGETS.get((self.protocol, dataset), ()):
            runs.append(run("xd_test", target, part=f"test on {target}", column=target, **of_it))
        return runs

    def models(self, method: str, dataset: str, seed: int) -> list[Model]:
        """The same runs, those of each model together."""
        of_model: dict[Run, list[Run]] = {}
        for run in self.runs(method, dataset, seed):
            of_model.setdefault(run.trained or run, []).append(run)
        return [Model(self.shell(train), runs) for train, runs in of_model.items()]

    def shell(self, train: Run) -> str:
        """The command for a training and its tests, as one would type it in a new terminal."""
        words = ["bash", f"{SCRIPTS}/protocol.sh", self.protocol, "--methods", train.method]
        words += ["--datasets", train.dataset, *self.targets, "--seeds", str(train.seed)]
        words += ["--shots", train.column] if self.protocol == "few_shot" else []
        return as_typed([*words, *(["--", *self.opts] if self.opts else [])], self.env)

    def run(
        self, method: str, dataset: str, seed: int, script: str, *words: object,
        part: str, column: str, trained: Run | None = None, **env: str,
    ) -> Run:  # fmt: skip
        """The run of a script with some words before the seed, and a Run's fields."""
        env = {**self.env, **env}
        command = ["bash", f"{SCRIPTS}/{method}/{script}.sh", *map(str, words), str(seed)]
        place, epoch = find_place(command, env), epoch_to_test(command, env)
        command += self.opts
        return Run(method, dataset, seed, part, column, command, env, place, trained, self.setting,
                   epoch)  # fmt: skip


def as_typed(command: Sequence[str], env: Mapping[str, str]) -> str:
    """A command and its variables as one would type them in a new terminal."""
    env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | env
    variables = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
    return " ".join([*variables, shlex.join(command)])


def all_models(
    plans: Sequence[Plan], methods: Sequence[str], datasets: Sequence[str], seeds: Sequence[int]
) -> list[Model]:
    """The models of all combinations, the first seed's first.

    Leaves with a script's own line if that finds something wrong.
    """
    try:
        with ThreadPoolExecutor() as threads:  # scripts are asked side by side, once for all seeds
            first = product(plans, methods, datasets, seeds[:1])
            list(threads.map(lambda of: of[0].runs(*of[1:]), first))
    except Wrong as error:
        say(str(error))
        raise SystemExit(error.code) from None
    models = []
    for seed, plan, dataset, method in product(seeds, plans, datasets, methods):
        models += plan.models(method, dataset, seed)
    refuse_one_folder(runs_of(models))
    return models


def refuse_one_folder(runs: Iterable[Run]) -> None:
    """Leaves with code 2 if two runs would have the same, as tests of models of two sources."""
    there: dict[Path, Run] = {}
    for run in runs:
        if (other := there.setdefault(run.folder, run)) is not run:
            line = f"{run.folder} would be the folder of two runs ({other}; {run})"
            leave(f"{line}: do them one after the other, each with an OUTPUT of its own", 2)


def counted(models: Sequence[Model]) -> str:
    """How many there are, in words."""
    return f"{len(models)} model{'' if len(models) == 1 else 's'}"


def runs_of(models: Iterable[Model]) -> list[Run]:
    """Each training before its tests."""
    return [run for model in models for run in model.runs]


def find_place(command: Sequence[str], env: Mapping[str, str]) -> Place:
    """The place of a run whose command ends in the seed. Raises Wrong if its script finds it so."""
    place, _ = ask(*once_for_all(command, env))
    return place._replace(out=output(os.environ | env), seed=command[-1])


def epoch_to_test(command: Sequence[str], env: Mapping[str, str]) -> str:
    """What LOADEP says at the end of such a run's script, which may set it."""
    _, epoch = ask(*once_for_all(command, env))
    return str(int(epoch)) if epoch.isdecimal() else epoch


def once_for_all(
    command: Sequence[str], env: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """What a script is asked by: not the seed, nor the output."""
    env, names = os.environ | env, ("CFG", "SHOTS", "SOURCE", "LOADEP")
    return tuple(command[:-1]), tuple((name, env[name]) for name in names if name in env)


@cache
def ask(command: tuple[str, ...], settings: tuple[tuple[str, str], ...]) -> tuple[Place, str]:
    (_, _, _, *words), env = asked([*command, "0"], os.environ | dict(settings))
    place, _ = read_words(words, env)
    return place, env.get("LOADEP", "")


def unfinished(runs: Iterable[Run]) -> dict[Run, LogResult | None]:
    """What is to be run, with the results of before.

    That is what has no result, the tests of models that were or will be trained anew, and those of
    another epoch than theirs. Leaves with code 2 if a folder holds the result of another run.
    """
    todo: dict[Run, LogResult | None] = {}
    for run in runs:
        result = run.result()
        other = run.trained and tested_epoch(run.folder) not in (None, run.epoch_to_test)
        old = is_stale(run.folder) or other
        if result is None or run.trained in todo or old:
            refuse_another_model(run)
            todo[run] = result
        else:
            refuse_another(run)
    return todo


def unfinished_models(models: Sequence[Model]) -> list[Model]:
    """Those of which something is to be run."""
    todo = unfinished(runs_of(models))
    return [model for model in models if any(run in todo for run in model.runs)]


def refuse_another(run: Run) -> None:
    """Leaves with code 2 if the folder of a finished run holds the result of another one.

    Of another command, but for one of few_shot.sh and xd_train.sh that trains the same, or of
    another model.
    """
    lock, now = run.folder / LOCK, shlex.join(run.command)
    was = lock.read_text(errors="replace") if lock.is_file() else ""
    if was in ("", now) or trains_alike(was, run):
        was, now = difference(run, by_hand=not was)
    if was or now:
        line = f"{run.folder} holds another run ({was or 'without'}; now {now or 'without'})"
        advice = "choose another OUTPUT or name for these settings, or remove that folder"
        leave(f"{line}: {advice}", 2)
    refuse_another_model(run)


def difference(run: Run, by_hand: bool) -> tuple[str, str]:
    """What a finished run's command says otherwise than the present one, and what this says.

    A script that was started by hand has left no command but this; and DATA is in no other, on
    which photos hang: as long as the folder that it named is there.
    """
    dataset, recorded = recorded_command(run.folder)
    photos = dataset == PHOTOS
    ours = executed(run.command, run) if recorded and (by_hand or photos) else []
    if not ours:
        return "", ""
    was, now = (settings_of(words) for words in (recorded[1:], ours))
    roots = [os.path.realpath(os.path.expanduser(s.pop("--root", "data"))) for s in (was, now)]
    if photos and roots[0] != roots[1] and os.path.isdir(roots[0]):
        return f"DATA={roots[0]}", f"DATA={roots[1]}"
    if not by_hand:
        return "", ""
    only = was.items() - now.items(), now.items() - was.items()
    was, now = (" ".join(chain(*sorted(pairs))) for pairs in only)
    return was, now


def settings_of(words: Sequence[str]) -> dict[str, str]:
    """What train.py's words set, but for what the folder's name says and what changes no result."""
    split = (word.split("=", 1) if word.startswith("--") else [word] for word in words[1:])
    words = [word for word in chain(*split) if word not in ("--eval-only", "--no-train")]
    found = dict(zip(words[::2], words[1::2], strict=False))
    free = [key for key in found if key.startswith(FREE) and key not in FINAL]
    for name in (*free, *OF_FOLDER):
        found.pop(name, None)
    return found


def refuse_another_model(run: Run) -> None:
    """Leaves with code 2 if a test's folder holds that of a model of another source."""
    ours = run.trained and run.trained.folder.resolve()
    if ours and (theirs := tested_model(run.folder)) not in (None, ours):
        line = f"{run.folder} holds the test of another model ({theirs}; now {ours})"
        leave(f"{line}: choose another OUTPUT", 2)


def trains_alike(was: str, run: Run) -> bool:
    """Whether a command is few_shot.sh's for a run of xd_train.sh, or the reverse, and the same.

    Both train on all classes, but a method's script may add settings to one of them.
    """
    place, seed = run.place, str(run.seed)
    if place.script == "xd_train":
        script, words, opts = "few_shot", [run.dataset, place.shots, seed], run.command[4:]
    elif place.script == "few_shot":
        script, words, opts = "xd_train", [run.dataset, seed], run.command[5:]
    else:
        return False
    other = ["bash", f"{SCRIPTS}/{run.method}/{script}.sh", *words, *opts]
    return was == shlex.join(other) and executed(other, run) == executed(run.command, run)


def executed(command: Sequence[str], run: Run) -> list[str]:
    """What a script would have Python do in a run's place; nothing if it finds that wrong."""
    env = os.environ | run.env | {"CFG": run.place.cfg, "SHOTS": run.place.shots}
    try:
        (_, _, _, *words), env = asked(command, env)
        place, opts = read_words(words, env)
    except Wrong:
        return []
    return command_of(place, opts, env)[0]
