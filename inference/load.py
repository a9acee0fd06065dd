"""A trained model read back: of a run's output folder, of a checkpoint, of an exported folder.

`load_run` builds a run's trainer with its dataset, `load_model` without, from names of classes.
"""

import argparse
import io
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from clip.weights import OPENAI_SHA256, source_of
from dassl.config import check_values, merge_recorded
from dassl.engine import TrainerBase, build_trainer
from dassl.engine.checkpoints import about_of
from dassl.engine.trainer import ABOUT_FORMAT
from dassl.files import BEST, CONFIG, resumable
from dassl.results_json import load_results
from dassl.utils import Failure, UsageError, expand_user, load_checkpoint, set_random_seed
from train import default_cfg, parse_args, setup_cfg
from trainers.frozen_clip import other_clip

from .prompts_file import PROMPTS, read_prompts

Check = Callable[[TrainerBase], object]


def config_of(folder: Path, root: str | None = None) -> CfgNode | None:
    """The config recorded in an output folder; None if there is none.

    Args:
        root: folder of the datasets, if it is not where it was.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        return None
    flags = ["--config-file", str(file), *(["--root", root] if root else [])]
    return setup_cfg(parse_args(flags))


@dataclass(frozen=True)
class Source:
    """Where a trained model is read from, and what is said there of it."""

    cfg: CfgNode
    load: Callable[[TrainerBase], None]  # into a trainer built with cfg
    about: Mapping[str, Any] = field(default_factory=dict)  # "classnames" may be missing


def load_model(
    run: Path,
    classnames: Sequence[str] | None = None,
    *,
    weights: str = "",
    use_cuda: bool = True,
    any_clip: bool = False,
) -> TrainerBase:
    """The trainer of a trained model, in eval mode, without its dataset.

    Its `describe()["classnames"]` are the model's classes, its `model_inference` takes normalised
    images (B, 3, R, R) on its `device` to logits (B, C).

    Args:
        run: an output folder (of an --eval-only run the model that it tested), a checkpoint file,
            or what inference.export made.
        classnames: other names than those of the run.
        weights: the file of CLIP, if it is not where it was.
        any_clip: take a CLIP that is not the one it was trained on.

    Raises: UsageError or Failure, in one line, if there is no model, it is damaged, its classes
        are not known, given twice, or others than it is bound to, or CLIP is another.
    """
    source = find_source(Path(expand_user(run)))
    own = source.about.get("classnames") or []
    names = chosen_names(own, classnames, run)
    cfg = source.cfg.clone()
    cfg.defrost()
    cfg.USE_CUDA, cfg.VERBOSE = use_cuda, False
    if weights := weights or recorded_weights(run, cfg, source.about.get("clip") or {}, any_clip):
        cfg.MODEL.BACKBONE.WEIGHTS = weights
    if own and set(names) - set(own) and not source.about.get("bound_to_classes"):
        cfg.DATASET.SUBSAMPLE_CLASSES = "new"  # what a base-to-new test of other classes has
    cfg.freeze()
    with only_notes():
        set_random_seed(cfg.SEED % 2**32)
        trainer = build_trainer(cfg, names)
        source.load(trainer)
    trainer.set_model_mode("eval")
    theirs = trainer.trained.get("clip") or source.about.get("clip") or {}
    ours = trainer.describe().get("clip", {})
    if not any_clip and (line := other_clip(theirs, ours)):
        raise Failure(f"{run}: {line}: give its own with --weights, or take this one (--any-clip)")
    return trainer


def chosen_names(own: Sequence[str], given: Sequence[str] | None, run: Path) -> list[str]:
    """The names given, else the run's own; raises Failure if there are none, or one twice."""
    names = list(own if given is None else given)
    if not names:
        hint = "older versions did not write them down: give their names (--classes)"
        raise Failure(f"{run} does not name its classes; {hint}")
    if given and (twice := [name for name, n in Counter(names).items() if n > 1]):
        raise UsageError(f"class {twice[0]!r} is given twice")
    return names


def recorded_weights(run: Path, cfg: CfgNode, clip: Mapping[str, Any], any_clip: bool) -> str:
    """The file of the CLIP that a model was trained on, if OpenAI's would be taken in its place.

    So it is where the training had another in CLIP_WEIGHTS, and that is no longer set.

    Raises: Failure if that file is gone, and another will not do.
    """
    name, file = cfg.MODEL.BACKBONE.NAME, clip.get("file")
    if cfg.MODEL.BACKBONE.WEIGHTS or isinstance(source_of(name), Path):
        return ""
    if not file or clip.get("sha256") in (None, OPENAI_SHA256.get(name)):
        return ""
    if os.path.isabs(file) and os.path.isfile(file):  # an export says its name alone
        return file
    if any_clip:
        return ""
    line = f"its CLIP is not OpenAI's {name} but {file}, SHA-256 {clip['sha256'][:12]}…"
    raise Failure(f"{run}: {line}, which is not there: say where it is with --weights")


def find_source(run: Path) -> Source:
    """What a path holds of a model; raises UsageError or Failure if it holds none."""
    if run.is_dir() and (run / CONFIG).is_file():
        return source_of_run(run)
    if run.is_dir() and (run / PROMPTS).is_file():
        run = run / PROMPTS
    if run.is_dir():
        what = f"neither {CONFIG}, as an output folder has, nor {PROMPTS}, as an exported one"
        raise Failure(f"{run} holds no trained model: it has {what}")
    if run.suffix == Path(PROMPTS).suffix:
        return source_of_files(run, *read_prompts(run))
    if not run.exists():
        raise UsageError(f"{run}: no such file or folder")
    checkpoint = load_checkpoint(str(run))
    return source_of_files(run, about_of(checkpoint), {"": checkpoint})


def source_of_run(folder: Path) -> Source:
    """An output folder: as results.json says, or else the checkpoint."""
    cfg = config_of(folder)
    try:
        said = load_results(folder)
    except (OSError, ValueError, RecursionError):
        said = {}
    if not isinstance(said, dict) or not said.get("classnames"):
        has_model = any(resumable(path) or (path / BEST).is_file() for path in folder.iterdir())
        old = said if isinstance(said, dict) else {}
        said = old | (about_of(load_checkpoint(str(find_checkpoint(folder)))) if has_model else {})

    def load(trainer: TrainerBase) -> None:
        if names := trainer.get_model_names():  # zero-shot CLIP has none
            trainer.load_model(*tested_model(folder, names))

    return Source(cfg, load, checked(said, str(folder)))


def source_of_files(path: Path, about: Mapping, checkpoints: Mapping[str, dict]) -> Source:
    """Checkpoints by the names of their models, "" for the only one, that say what they are."""
    if not isinstance(about.get("config"), Mapping):
        hint = "give the output folder of its run instead"
        raise Failure(f"{path} does not say which method and config it is of; {hint}")
    if about.get("format") != ABOUT_FORMAT:
        line = f"{path} says what it is in format {about.get('format')}, not {ABOUT_FORMAT}"
        raise Failure(f"{line}: it was written by another version of this program")
    cfg = default_cfg()
    merge_recorded(cfg, about["config"], str(path))
    check_values(cfg)

    def load(trainer: TrainerBase) -> None:
        names = trainer.get_model_names()
        if sorted(checkpoints) not in (sorted(names), [""] * len(names)):
            raise Failure(f"{path} does not hold all of {', '.join(names)}")
        for name in names:
            checkpoint = checkpoints.get(name) or checkpoints[""]
            trainer.load_checkpoint(name, checkpoint, str(path))

    return Source(cfg, load, checked(about, str(path)))


def checked(about: Mapping, place: str) -> Mapping[str, Any]:
    """A self-description. Raises: Failure if its names or its CLIP are of another kind."""
    names, clip = about.get("classnames") or [], about.get("clip") or {}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Failure(f"{place}: its classnames are no list of names")
    if not isinstance(clip, Mapping):
        raise Failure(f"{place}: it does not say its clip as a name, a file and a SHA-256")
    return about


@contextmanager
def only_notes() -> Iterator[None]:
    """Inside, of what is printed only the notes come through, to stderr."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith("Note: "):
                print(line, file=sys.stderr)


def load_run(folder: Path, root: str | None = None, check: Check | None = None) -> TrainerBase:
    """The trainer of a run's recorded config, in eval mode, with the model that the run tested.

    Args:
        folder: an output folder, of a training run or of an --eval-only one.
        root: folder of the datasets, if it is not where it was.
        check: called with the trainer before its model is looked for; may raise.

    Raises: Failure if there is no config or no model, or CLIP is not the one it was trained on.
    """
    cfg = config_of(folder, root)
    if cfg is None:
        raise Failure(f"{folder}: no config.yaml, so no run of this repository")
    with redirect_stdout(io.StringIO()):
        set_random_seed(cfg.SEED % 2**32)
        trainer = build_trainer(cfg)
        if check:
            check(trainer)
        trainer.load_model(*tested_model(folder, trainer.get_model_names()))
    trainer.set_model_mode("eval")
    theirs, ours = trainer.trained.get("clip"), trainer.describe().get("clip", {})
    if theirs and (line := other_clip(theirs, ours)):
        raise Failure(f"{folder}: {line}: set CLIP_WEIGHTS to its own")
    return trainer


def tested_model(folder: Path, names: Sequence[str]) -> tuple[str, int | None]:
    """Folder and epoch of the model a run tested.

    It is the run's own, or --model-dir's: as it lies seen from the run's folder, or where it was.

    Raises: Failure if neither is there.
    """
    if all((folder / name).is_dir() for name in names):
        return str(folder), None
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--model-dir")
    flags.add_argument("--load-epoch", type=int)
    try:
        record = load_results(folder)
        given = flags.parse_known_args(shlex.split(record["command"]))[0]
        # Relative to the run's folder it holds also after the whole output was moved.
        relative = os.path.relpath(given.model_dir, record["config"]["OUTPUT_DIR"])
        places = [os.path.normpath(folder / relative)]
        places += [given.model_dir] * os.path.isabs(given.model_dir)  # only this test was moved
    except (OSError, ValueError, KeyError, TypeError):
        places = []
    away = next(filter(os.path.isdir, places), "")
    if not away:
        missing = f"no checkpoint ({', '.join(names)})"
        raise Failure(f"{folder}: {missing}, and no results.json that says where it is")
    return away, given.load_epoch


def find_checkpoint(source: Path) -> Path:
    """The file itself, or in an output folder the model that is tested: the best, else the newest.

    Raises: UsageError if there is none.
    """
    if os.path.isfile(source):
        return source
    if not os.path.isdir(source):
        raise UsageError(f"{source}: no such file or folder")
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        if names := [BEST] * (folder / BEST).is_file() or resumable(str(folder)):
            return folder / names[0]
    raise UsageError(f"{source}: no checkpoint in it")
