"""One run: its settings, its folder and train.py's command line for it.

`bash scripts/run.sh SCRIPT TRAINER DATASET [SHOTS] SEED [train.py arguments …]` comes here; that
script says what it takes from the environment. As each run begins so, nothing slow is imported.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl.commands import say
from results.layout import FOLDERS, TESTED, Place, usual_source

CONFIGS = Path("configs")  # the working directory is the repository's
# Methods may publish settings of their own for these; a part of the config file's name says so.
OWN_SETTINGS = {
    "xd_train": "cross_datasets", "xd_test": "cross_datasets", "few_shot": "few_shot",
    "imagenet": "_imnet", "sun397": "_sun397",
}  # fmt: skip
CLASSES = {"base2new_train": "base", "base2new_test": "new"}  # the others': all


class Wrong(Exception):
    """What is asked for is no run: the line that says why, and an exit code."""

    def __init__(self, line: str, code: int = 2):
        super().__init__(line)
        self.code = code


def read_words(words: Sequence[str], env: Mapping[str, str]) -> tuple[Place, list[str]]:
    """The run that scripts/run.sh's words and environment ask for, and what they add for train.py.

    Raises Wrong.
    """
    if len(words) < 2 or words[0] not in FOLDERS:
        raise Wrong(f"error: unknown script {''.join(words[:1])}")
    script, trainer, *words = words
    names = ("DATASET", "SHOTS", "SEED") if script == "few_shot" else ("DATASET", "SEED")
    if len(words) < len(names):
        usage = f"usage: bash scripts/<method>/{script}.sh {' '.join(names)}"
        raise Wrong(f"{usage} [train.py arguments]")
    dataset, *shots, seed = words[: len(names)]
    [shots] = shots or [env.get("SHOTS") or "16"]
    if not (CONFIGS / "datasets" / f"{dataset}.yaml").is_file():
        raise Wrong(f"error: no dataset {dataset}; there are: {' '.join(yamls('datasets'))}")
    if not re.fullmatch("[0-9]+", seed):
        raise Wrong(f"error: SEED is to be a whole number, not {seed}")
    if not re.fullmatch("[1-9][0-9]*", gpus := env.get("GPUS") or "1"):
        raise Wrong(f"error: GPUS is to be a whole number, 1 or more, not {gpus}")
    if not re.fullmatch("[0-9]*", epoch := env.get("LOADEP") or ""):
        raise Wrong(f"error: LOADEP is to be a whole number, not {epoch}")
    if not re.fullmatch("[1-9][0-9]*", shots):
        raise Wrong(f"error: SHOTS is to be a whole number, 1 or more, not {shots}")
    folder = CONFIGS / "trainers" / trainer
    if not folder.is_dir():
        raise Wrong(f"error: no folder {folder} with settings")
    cfg = env.get("CFG") or usual_config(script, trainer, dataset, env)
    if not (folder / f"{cfg}.yaml").is_file():
        there = " ".join(yamls(f"trainers/{trainer}"))
        raise Wrong(f"error: no config {folder}/{cfg}.yaml; CFG names one of: {there}")
    return Place(output(env), script, trainer, cfg, dataset, shots, seed), words[len(names) :]


def output(env: Mapping[str, str]) -> str:
    """The folder of all runs."""
    return os.path.expanduser(env.get("OUTPUT") or "output")


def usual_config(script: str, trainer: str, dataset: str, env: Mapping[str, str]) -> str:
    """The config file of a trainer that suits a run; "" if there is none."""
    names = [name for name in yamls(f"trainers/{trainer}") if name.startswith(clip_of(dataset))]
    for what in (script, trained_on(script, dataset, env)):
        for name in names:
            if what in OWN_SETTINGS and OWN_SETTINGS[what] in name:
                return name
    for name in names:
        if not any(part in name for part in OWN_SETTINGS.values()):
            return name
    return ""


def trained_on(script: str, dataset: str, env: Mapping[str, str]) -> str:
    """The dataset that a run's model is trained on."""
    return env.get("SOURCE") or usual_source(dataset) if script == "xd_test" else dataset


def clip_of(dataset: str) -> str:
    """How the names of its config files begin. The bundled benchmark is for the bundled CLIP."""
    return "vit_tiny" if dataset.startswith("shapes") else "vit_b16"


def yamls(folder: str) -> list[str]:
    """The names of the YAML files in a folder of configs/."""
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


def command_of(
    run: Place, opts: Sequence[str], env: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Python's arguments for a run, and its environment, from that of scripts/run.sh."""
    words = ["train.py", "--root", env.get("DATA") or "data", "--seed", run.seed]
    words += ["--trainer", run.trainer]
    words += ["--dataset-config-file", f"{CONFIGS}/datasets/{run.dataset}.yaml"]
    words += ["--config-file", f"{CONFIGS}/trainers/{run.trainer}/{run.cfg}.yaml"]
    words += ["--output-dir", run.folder]
    if run.script in TESTED:
        source = trained_on(run.script, run.dataset, env)
        model = run._replace(script=TESTED[run.script], dataset=source)
        words += ["--eval-only", "--model-dir", model.folder]
        words += ["--load-epoch", env["LOADEP"]] if env.get("LOADEP") else []
    words += [*opts, "DATASET.NUM_SHOTS", run.shots]
    words += ["DATASET.SUBSAMPLE_CLASSES", CLASSES.get(run.script, "all")]
    env = {**env, "PYTHONUNBUFFERED": "1"}  # a line is to be seen when it is printed
    if clip_of(run.dataset) == "vit_tiny":  # gains nothing from threads, which wait for each other
        env["OMP_NUM_THREADS"] = env.get("OMP_NUM_THREADS") or "1"
    return words, env


def asked(command: Sequence[str], env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """What a method's script executes at its end, `python -m runs.run …`, and the environment then.

    The script may be a user's own, which sets variables or adds words. Raises Wrong if it fails.
    """
    env, nothing = {**env, "SHOW_DIR": "command"}, subprocess.DEVNULL
    says = subprocess.run(command, env=env, capture_output=True, stdin=nothing)
    if says.returncode:
        raise Wrong(os.fsdecode(says.stderr).rstrip("\n"), says.returncode)
    number, *words = os.fsdecode(says.stdout).split("\0")[:-1] or ["0"]
    argv, variables = words[: int(number)], words[int(number) :]
    if argv[1:3] != ["-m", "runs.run"]:
        raise Wrong(f"error: {shlex.join(command)} does not end in scripts/run.sh")
    return argv, dict(word.split("=", 1) for word in variables)


def help_text() -> str:
    """What stands at the head of scripts/run.sh."""
    head = Path("scripts/run.sh").read_text().partition("\nset ")[0]
    return "\n".join(line.removeprefix("#").strip() for line in head.splitlines()[1:])


def main() -> None:
    """Become the run, or print its folder; leaves with code 2 and a line if it is none."""
    if {*sys.argv[1:2], *sys.argv[3:4]} & {"-h", "--help"}:
        print(help_text())
        return
    try:
        run, opts = read_words(sys.argv[1:], os.environ)
    except Wrong as error:
        say(str(error))
        sys.exit(error.code)
    if os.environ.get("SHOW_DIR"):
        sys.stdout.buffer.write(os.fsencode(f"{run.folder}\n"))
        return
    words, env = command_of(run, opts, os.environ)
    if (env.get("GPUS") or "1") != "1":
        words = ["-m", "runs.several", env["GPUS"], *words]
    os.execve(sys.executable, [sys.executable, *words], env)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C ends it without a traceback
    main()
