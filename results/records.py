"""Finds the results of runs: from a run's results.json where there is one, else from its logs."""

import logging
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl.commands import leave, plain
from dassl.files import RESULTS
from dassl.results_json import METRICS, load_results, problem

from . import layout
from .logs import RECORDED, logs_of, newest_result, seed_of
from .protocols import dataset_name, transfer_of, transfers
from .tested import is_stale

# What of a config decides how a model is tested, and trained. Files may differ in their places.
TESTED = ("TRAINER.", "INPUT.SIZE", "INPUT.INTERPOLATION", "INPUT.PIXEL_")
TRAINED = ("TRAINER.", "LOSS.", "OPTIM.", "INPUT.", "DATALOADER.TRAIN_X.",
           "DATALOADER.K_TRANSFORMS", "TEST.FINAL_MODEL")  # fmt: skip
CLIP = ("sha256", "activation")  # of a record's
# Nodes of a config that figures look into.
SECTIONS = ("TRAINER", "TRAINER.ATPROMPT", "TRAINER.P2C", "TRAINER.P2C.DPD", "OPTIM")
# of the folders' scripts, and of the records' classes
SIDES = {"base2new_train": "base", "base2new_test": "new", "base": "base", "new": "new"}
DIGITS = re.compile(r"(\d+)")

log = logging.getLogger("results.records")


@dataclass(frozen=True, eq=False)
class Result:
    """One finished run and its place among the others."""

    dataset: str  # tested on; registered name (DescribableTextures) where the folder (dtd) is known
    trainer: str
    cfg: str  # the config file's name; "" if not known
    shots: int
    seed: int
    protocol: str  # base2new, xd, dg, few_shot (also an xd model's test on its own dataset)
    side: str  # base, new or all
    root: Path  # where the protocol's folders begin: $OUTPUT, so a sweep's settings have one each
    folder: Path  # the run's
    metrics: dict[str, float]  # accuracy, error_rate, macro_f1 in percent
    record: dict | None  # results.json
    method: str = ""  # its name where all tables and figures share one (names.with_methods)

    @property
    def classes(self) -> str:
        """Its side, and of a model that was trained on another dataset the protocol."""
        return f"{self.side} ({self.protocol})" if self.protocol in ("xd", "dg") else self.side


def find_results(folders: Iterable[Path]) -> list[Result]:
    """Read all runs in and below `folders`, each once; warns of what has no result."""
    tops: dict[Path, Path] = {}
    # the names of the folders above say what a run is
    for top in (Path(os.path.abspath(folder)) for folder in folders):
        for folder in run_folders(top):
            tops.setdefault(folder, top)
    found: dict[tuple, Result] = {}
    for folder, top in tops.items():
        if r := read_run(folder, top):
            key = r.dataset, r.trainer, r.cfg, r.shots, r.seed, r.protocol, r.side, r.root
            first = found.setdefault(key, r)
            if first is not r:
                log.warning("%s and %s hold the same run; the first counts", first.folder, folder)
    warn_of_mixtures(found.values())
    return list(found.values())


def results_in(folders: Sequence[Path]) -> list[Result]:
    """The same of a command line's folders; leaves with code 1 and one line if there are none."""
    return find_results(folders) or leave(f"no results of runs in {' '.join(map(str, folders))}", 1)


def run_folders(top: Path) -> Iterator[Path]:
    """Find folders called seed<N> or holding a results.json; warns of what cannot be read.

    Also behind links, but no folder twice.
    """
    warn, seen = lambda error: log.warning("cannot read %s", error), set()
    for path, folders, files in os.walk(top, onerror=warn, followlinks=True):
        if (here := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(here)
        if seed_of(Path(path)) is not None or RESULTS in files:
            folders.clear()  # its checkpoints
            yield Path(path)
        # links last, seed2 before seed10
        folders.sort(key=lambda name: [int(p) if p.isdecimal() else p for p in DIGITS.split(name)])
        folders.sort(key=lambda name: os.path.islink(os.path.join(path, name)))  # noqa: B023


def warn_of_records(folders: Iterable[Path]) -> None:
    """Warn of what `find_results` would in these runs' folders, where they have records."""
    found = []
    for folder in folders:
        if record := read_record(folder):
            warn_if_stale(folder)
            if place := find_place(folder.resolve(), record, folder):
                found.append(Result(**place, folder=folder, metrics={}, record=record))
    warn_of_mixtures(found)


def warn_if_stale(folder: Path) -> None:
    if is_stale(folder):
        log.warning("%s: its model has been trained further, or anew, since: test again", folder)


def warn_of_mixtures(found: Iterable[Result]) -> None:
    """Warn of runs that differ only in seed or side and were made with different settings."""
    groups: dict[tuple, list[Result]] = defaultdict(list)
    for r in found:
        if r.record:
            groups[r.dataset, r.trainer, r.cfg, r.shots, r.protocol, r.root].append(r)
    for group in groups.values():
        values: dict[str, set[str]] = defaultdict(set)
        for r in group:
            for key, value in decisive(r.record):
                values[key].add(value)
        where = f"{group[0].folder} and its other seeds and sides"
        for key, several in values.items():
            if len(several) > 1:
                line = "%s: made with different settings: %s %s"
                log.warning(line, where, key, " / ".join(sorted(several)))


def decisive(record: Mapping) -> Iterator[tuple[str, str]]:
    """What its result hangs on and seeds have in common: settings, CLIP, the epoch of the model."""
    keys = TESTED if record["eval_only"] else TRAINED
    others = tuple(f"{node}." for node in record.get("config_of_others", ()))
    for key, value in settings_of(record["config"]):
        if key.startswith(keys) and not key.startswith(others):
            yield key, value
    if isinstance(clip := record.get("clip"), Mapping):
        yield "CLIP", " ".join(str(clip[key]) for key in CLIP if key in clip)
    if record["eval_only"] and isinstance(model := record.get("model"), Mapping):
        yield "--load-epoch", str(model.get("epoch"))


def settings_of(config: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys of a config, with their values as text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from settings_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def setting_of(record: Mapping) -> dict:
    """The config without what differs between the runs of one setting."""
    own = ("OUTPUT_DIR", "SEED", "RESUME", "DATASET")
    return {key: value for key, value in record["config"].items() if key not in own}


# -- one run


def read_run(folder: Path, top: Path) -> Result | None:
    """Read the newest result in a run's folder; None, with a warning, if there is none."""
    record = read_record(folder)
    metrics = record and {name: record["metrics"][name] for name in METRICS}
    if record is None or logs_of(folder):
        logged = newest_result(folder, "accuracy", eval_only=True)
        if logged and (record is None or logged.path.name > (record["log"] or logged.path.name)):
            if record:
                log.warning("%s: %s is newer than %s and counts", folder, logged.path.name, RESULTS)
            record = None
            metrics = {RECORDED.get(name, name): value for name, value in logged.metrics.items()}
    if metrics is None:
        return None
    if record:
        warn_if_stale(folder)
    place = find_place(folder, record, top)
    return place and Result(**place, folder=folder, metrics=metrics, record=record)


def read_record(folder: Path) -> dict | None:
    """Read the folder's results.json; None if there is none or, with a warning, it is damaged."""
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        record = load_results(folder)
        wrong = problem(record, SECTIONS)
    except (OSError, ValueError, RecursionError) as error:
        what = " ".join(f"{type(error).__name__} {error}".split())
        log.warning("%s cannot be read (%s)", path, what)
        return None
    if wrong:
        log.warning("%s: %s: not read", path, wrong)
    return None if wrong else record


def find_place(folder: Path, record: dict | None, top: Path) -> dict[str, Any] | None:
    """What was run, by its folders' names, else by its record; None, with a warning, if unknown."""
    place, recorded = place_of(folder), record and place_by_record(record, top)
    if place and recorded:
        for key in ("trainer", "dataset", "shots", "seed", "side"):
            if place[key] != recorded[key]:
                line = "%s: %s says %s %s, and not what its folder's name says; the folder's counts"
                log.warning(line, folder, RESULTS, key, recorded[key])
    place = place or recorded
    if not place:
        line = "%s: what was run is not known: no %s, and no folders as the scripts make"
        log.warning(line, folder, RESULTS)
        return None
    return {key: plain(value) if isinstance(value, str) else value for key, value in place.items()}


def place_of(folder: Path) -> dict[str, Any] | None:
    """What the names of a run's folders say about it."""
    place = layout.place_of(folder.as_posix())
    if not place:
        return None
    dataset, side = dataset_name(place.dataset), SIDES.get(place.script, "all")
    protocol = "base2new" if side != "all" else "few_shot"
    if place.script == "xd_test":
        protocol = transfer_of(dataset)[0]
    return {
        "dataset": dataset,
        "trainer": place.trainer,
        "cfg": place.cfg,
        "shots": int(place.shots),
        "seed": int(place.seed),
        "side": side,
        "protocol": protocol,
        "root": Path(place.out),
    }


def place_by_record(record: dict, root: Path) -> dict[str, Any]:
    """What a record says about a run in folders of another layout."""
    side, dataset = SIDES.get(record["subsample"], "all"), record["dataset"]
    protocol = "base2new" if side != "all" else "few_shot"
    if side == "all" and record["eval_only"] and dataset in transfers():
        protocol = transfer_of(dataset)[0]
    return {
        "dataset": dataset,
        "trainer": record["trainer"],
        "cfg": Path(config_file(record["command"])).stem,
        "shots": record["shots"],
        "seed": record["seed"],
        "side": side,
        "protocol": protocol,
        "root": root,
    }


def config_file(command: str) -> str:
    """The --config-file of a command line; "" if it has none."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote without its end: not as train.py writes it
        words = command.split()
    file = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag == "--config-file":
            file = value if equals else following
    return file
