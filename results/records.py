"""Finds the results of runs: from a run's results.json where there is one, else from its log."""

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import yaml

from dassl.commands import plain
from dassl.files import regular
from parse_test_res import LOG_NAME, newest_result, seed_of, shared_configs

from . import layout
from .protocols import TARGETS
from .tested import is_stale

RECORD, FORMAT = "results.json", 1  # as dassl/engine/record.py writes it, which is slow to import
SETTINGS = ("TRAINER", "OPTIM")  # the nodes of a config that say how a model was trained
METRICS = ("accuracy", "error_rate", "macro_f1")
# What is used of a record, and its kind.
FIELDS = (
    dict.fromkeys(("trainer", "dataset", "subsample", "command", "device"), str)
    | dict.fromkeys(("seed", "shots", "parameters"), int)
    | {"eval_only": bool, "log": str | None, "train_seconds": int | float | None}
    | dict.fromkeys(("config", "metrics"), dict)
    | dict.fromkeys(("loss", "epoch_seconds"), list)
)
# The same of what older records lack; kinds of what is in lists and dicts.
OPTIONAL = dict.fromkeys(("images_per_second", "peak_memory_mb", "versions", "per_class"), dict) | {
    "commit": str | None, "machine": str, "finished": str}  # fmt: skip
NUMBERS = ("loss", "epoch_seconds", "images_per_second", "peak_memory_mb")
SECTIONS = (
    "TRAINER",
    "TRAINER.ATPROMPT",
    "TRAINER.P2C",
    "TRAINER.P2C.DPD",
    "OPTIM",
)  # of the config
CONFIGS = Path(__file__).parents[1] / "configs" / "datasets"
SIDES = {"base2new_train": "base", "base2new_test": "new", "base": "base", "new": "new"}

log = logging.getLogger("records")


@dataclass(frozen=True, eq=False)
class Result:
    """One finished run and its place among the others."""

    dataset: str  # tested on, by its registered name (DescribableTextures) where the folder's (dtd) is known
    trainer: str
    cfg: str  # the config file's name; "" if not known
    shots: int
    seed: int
    protocol: str  # base2new, xd (cross-dataset), dg (domain generalisation), few_shot (also an xd model's own dataset)
    side: str  # base, new or all
    root: Path  # where the protocol's folders begin: $OUTPUT, so a sweep's settings have one each
    folder: Path  # the run's
    metrics: dict[str, float]  # accuracy, error_rate, macro_f1 in percent
    record: dict | None  # results.json


def find_results(folders: Iterable[Path]) -> list[Result]:
    """Read all runs in and below `folders`, each once; warns of what has no result."""
    tops: dict[Path, Path] = {}
    for top in map(Path.resolve, folders):  # the names of the folders above say what a run is
        for folder in run_folders(top):
            tops.setdefault(folder, top)
    found: dict[tuple, Result] = {}
    for folder, top in tops.items():
        if r := read_run(folder, top):
            key = r.dataset, r.trainer, r.cfg, r.shots, r.seed, r.protocol, r.side, r.root
            if key in found:
                log.warning(
                    "%s and %s hold the same run; the first counts", found[key].folder, folder
                )
            found.setdefault(key, r)
    warn_of_mixtures(found.values())
    return list(found.values())


def warn_of_mixtures(found: Iterable[Result]) -> None:
    """Warn of runs that differ in nothing but the seed, or base and new, and were not made with the
    same settings."""
    groups: dict[tuple, list[Result]] = {}
    for r in found:
        if r.record:
            groups.setdefault(
                (r.dataset, r.trainer, r.cfg, r.shots, r.protocol, r.root), []
            ).append(r)
    for group in groups.values():
        values: dict[str, set[str]] = {}
        for r in group:
            for key, value in settings_of(
                r.record["config"], ("TRAINER",) if r.record["eval_only"] else SETTINGS
            ):
                values.setdefault(key, set()).add(value)
        for key, several in values.items():
            if len(several) > 1:
                where = f"{group[0].folder} and its other seeds and sides"
                log.warning(
                    "%s: made with different settings: %s %s",
                    where,
                    key,
                    " / ".join(sorted(several)),
                )


def settings_of(
    config: Mapping, nodes: Iterable[str], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """The dotted keys in some nodes of a config, with their values as text."""
    for key in nodes:
        value = config.get(key)
        if isinstance(value, Mapping):
            yield from settings_of(value, value, f"{prefix}{key}.")
        elif key in config:
            yield f"{prefix}{key}", str(value)


def run_folders(top: Path) -> Iterator[Path]:
    """Folders called seed<N> or holding a results.json; warns of those that cannot be looked
    into."""
    for path, folders, files in os.walk(
        top, onerror=lambda error: log.warning("cannot read %s", error)
    ):
        if seed_of(Path(path)) is not None or RECORD in files:
            folders.clear()  # its checkpoints
            yield Path(path)
        folders.sort(
            key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]
        )


def read_run(folder: Path, top: Path) -> Result | None:
    """Read the newest result in a run's folder; None, with a warning, if there is none."""
    record = read_record(folder)
    metrics = record and {k: v for k, v in record["metrics"].items() if k in METRICS}
    if record is None or any(LOG_NAME.fullmatch(name) for name in os.listdir(folder)):
        logged = newest_result(folder, "accuracy", eval_only=True)
        if logged and (record is None or logged.path.name > (record["log"] or logged.path.name)):
            if record:
                log.warning("%s: %s is newer than %s and counts", folder, logged.path.name, RECORD)
            record, metrics = (
                None,
                {"error_rate" if k == "error" else k: v for k, v in logged.metrics.items()},
            )
    if metrics is None:
        return None
    if record and is_stale(folder):
        log.warning("%s: its model has been trained further, or anew, since: test again", folder)
    place, recorded = place_of(folder), record and place_by_record(record, top)
    for key in ("trainer", "dataset", "shots", "seed", "side") if place and recorded else ():
        if place[key] != recorded[key]:
            line = "%s: %s says %s %s, and not what its folder's name says; the folder's counts"
            log.warning(line, folder, RECORD, key, recorded[key])
    if not (place := place or recorded):
        log.warning(
            "%s: what was run is not known: no %s, and no folders as of scripts/run.sh",
            folder,
            RECORD,
        )
        return None
    place = {key: plain(value) if isinstance(value, str) else value for key, value in place.items()}
    return Result(**place, folder=folder, metrics=metrics, record=record)


def read_record(folder: Path) -> dict | None:
    """The folder's results.json; None if there is none, and with a warning if it cannot be used."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(regular(path).read_text(encoding="utf-8"))
        if wrong := problem(record):
            log.warning("%s: %s: not read", path, wrong)
            return None
        return record
    except (OSError, ValueError, RecursionError) as error:
        log.warning(
            "%s cannot be read (%s)", path, " ".join(f"{type(error).__name__} {error}".split())
        )
    return None


def problem(record: object) -> str:
    """What keeps a record from being used; nothing if it is whole."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return f"it has not format {FORMAT}"
    if wrong := [key for key, kind in FIELDS.items() if not isinstance(record.get(key), kind)]:
        return f"{wrong[0]} is missing or of another kind"
    if wrong := [
        key for key, kind in OPTIONAL.items() if key in record and not isinstance(record[key], kind)
    ]:
        return f"{wrong[0]} is of another kind"
    for key in NUMBERS:
        values = record.get(key, ())
        for value in values.values() if isinstance(values, dict) else values:
            if not isinstance(value, int | float | None):
                return f"{key} has {value!r}, which is no number"
    for section in SECTIONS:
        node = record["config"]
        for part in section.split("."):
            node = node.get(part, {})
            if not isinstance(node, dict):
                return f"its config's {section} is no section"
    metrics = [record["metrics"].get(key) for key in METRICS]
    if not all(isinstance(value, (int, float)) and 0 <= value <= 100 for value in metrics):
        return f"its metrics are {record['metrics']}"
    return ""


def place_of(folder: Path) -> dict | None:
    """What the names of a run's folders say about it."""
    if not (place := layout.place_of(folder.as_posix())):
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


def place_by_record(record: dict, root: Path) -> dict:
    """What a record says about a run in folders of another layout."""
    side, dataset = SIDES.get(record["subsample"], "all"), record["dataset"]
    protocol = "base2new" if side != "all" else "few_shot"
    if side == "all" and record["eval_only"] and dataset in transfers():
        protocol = transfer_of(dataset)[0]
    config = re.search(r"--config-file[= ](\S+)", record["command"])
    place = {key: record[key] for key in ("trainer", "shots", "seed", "dataset")}
    return place | {
        "cfg": Path(config[1]).stem if config else "",
        "side": side,
        "protocol": protocol,
        "root": root,
    }


@cache
def dataset_names() -> dict[str, str]:
    """Name of the yaml and of the folders -> registered name."""
    return {
        p.stem: yaml.safe_load(p.read_text())["DATASET"]["NAME"]
        for p in sorted(CONFIGS.glob("*.yaml"))
    }


def dataset_name(folder: str) -> str:
    return dataset_names().get(folder, folder)


@cache
def transfers() -> dict[str, tuple[str, str]]:
    """{target: (protocol, source)} of the usual ones, in the papers' order."""
    usual = (
        (dataset_name(t), p, dataset_name(source))
        for (p, source), targets in TARGETS.items()
        for t in targets
    )
    return {target: (protocol, source) for target, protocol, source in usual}


def transfer_of(target: str) -> tuple[str, str]:
    """Protocol and source of a model's test on another dataset; the source as scripts/run.sh takes
    it by default."""
    return transfers().get(target, ("xd", dataset_name(layout.usual_source(target))))


def name_methods(
    results: Sequence[Result], by: Sequence[str] = ("cfg", "shots", "root")
) -> dict[Result, str]:
    """Name each result's method by its trainer, and where that occurs in several variants by what
    tells them apart: the config's name, the shots, the output folder, or as many of these as it
    takes."""
    trainers: dict[str, list[Result]] = {}
    for result in results:
        trainers.setdefault(result.trainer, []).append(result)
    top = os.path.commonpath([r.root for r in results]) if results else ""
    names = {}
    for trainer, group in trainers.items():
        cfgs = shared_configs([((r.dataset, r.protocol, r.shots), r.cfg) for r in group])
        variants = {
            r: {
                "cfg": cfgs[r.cfg],
                "shots": f"shots_{r.shots}",
                "root": plain(os.path.relpath(r.root, top)),
            }
            for r in group
        }
        choices = [c for size in range(len(by) + 1) for c in combinations(by, size)]
        total = len({tuple(v[key] for key in by) for v in variants.values()})
        tells = next(
            c for c in choices if len({tuple(v[k] for k in c) for v in variants.values()}) == total
        )
        for result, variant in variants.items():
            names[result] = " ".join(
                [trainer, *(variant[key] for key in tells if variant[key] not in ("", "."))]
            )
    return names
