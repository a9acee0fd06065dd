"""The result of a run from its logs: log.txt and, of reruns, log.txt-<date>.

The newest finished log of a folder counts. Reads logs of this project, whose results.json has more
digits, and of Dassl 0.5 and later. Values are in percent.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

from dassl.files import FAILURE, RESULTS_FORMAT, regular
from dassl.results_json import MORE_METRICS, load_results, problem

TRAINING_ENDS = ("Finish training", "Finished training")  # the second is Dassl 0.5's
METRIC = re.compile(r"\* (\w+): (\d+(?:\.\d+)?)%")
# metrics' names in results.json, where they are others
RECORDED = {"error": "error_rate", "average": "perclass_accuracy"}
LOG_NAME = re.compile(r"log\.txt(-[\d-]+)?")

log = logging.getLogger("results.logs")  # runs/ silences it: what is not finished is run there


class LogResult(NamedTuple):
    """The last result block of one log; `trained` is False for an --eval-only run."""

    path: Path
    metrics: dict[str, float]
    trained: bool


def read_text(path: Path) -> str:
    """Read a log, in which a killed run may leave half a character. Raises OSError."""
    return regular(path).read_text(encoding="utf-8", errors="replace")


def read_log(path: Path) -> LogResult | None:
    """Read a log's last result; None if there is none, or only one from during the training.

    Raises OSError if the file cannot be read.
    """
    metrics: dict[str, float] = {}
    finished = None  # None: no sign of training, False: under way, True: ended
    # the \r of progress bars end lines too
    for line in map(str.strip, read_text(path).splitlines()):
        if line.startswith("epoch ["):
            finished, metrics = False, {}
        elif line in TRAINING_ENDS:
            finished, metrics = True, {}
        elif line == "=> result":
            metrics = {}
        elif (match := METRIC.match(line)) and float(match[2]) <= 100:  # else damaged
            metrics[match[1]] = float(match[2])
    if finished is False or not metrics:
        return None
    return LogResult(path, metrics, trained=finished is True)


def with_record(result: LogResult) -> LogResult:
    """Take from the results.json beside the log what it has of the log's metrics, with more digits.

    Also what the log does not show, where the record names this log.
    """
    try:
        record = load_results(result.path.parent)
        if record["format"] != RESULTS_FORMAT:
            return result
        metrics = dict(result.metrics)
        for name, rounded in result.metrics.items():
            value = record["metrics"][RECORDED.get(name, name)]
            if abs(value - rounded) <= 0.051:
                metrics[name] = value
        if record.get("log") == result.path.name and not problem(record):
            more = [name for name in MORE_METRICS if name in record["metrics"]]
            metrics |= {name: record["metrics"][name] for name in more}
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return result
    return result._replace(metrics=metrics)


def logs_of(folder: Path) -> list[Path]:
    """List a run's logs, the newest first.

    By name, not by file time, which copying changes: log.txt is the first run and sorts lowest.
    """
    return sorted((p for p in folder.iterdir() if LOG_NAME.fullmatch(p.name)), reverse=True)


def newest_result(folder: Path, keyword: str, eval_only: bool) -> LogResult | None:
    """Read a run's newest finished log that has the metric `keyword`; warns of what is skipped.

    With `eval_only` a log without any training counts too.
    """
    logs = logs_of(folder)
    if not logs:
        empty = "no log.txt" if any(folder.iterdir()) else "empty folder"
        log.warning("%s: %s%s", folder, empty, failure_of(folder))
        return None
    skipped, hint = [], ""
    for path in logs:
        try:
            result = read_log(path)
            result = result and with_record(result)
        except OSError as error:
            log.warning("cannot read %s", error)
            result = None
        if result and keyword in result.metrics:
            if result.trained or eval_only:
                if skipped:
                    newer = f"no finished run in the newer {', '.join(skipped)}{hint}"
                    log.warning("%s: %s; using %s", folder, newer, path.name)
                return result
            hint = " (--test-log reads the logs of --eval-only runs)"
        skipped.append(path.name)
    line = "%s: no %s of a finished run in %s%s%s"
    log.warning(line, folder, keyword, ", ".join(skipped), hint, failure_of(folder))
    return None


def failure_of(folder: Path) -> str:
    """The end of what runs/ has kept of why a run failed, to be added to a line; often nothing."""
    try:
        lines = read_text(folder / FAILURE).splitlines()
    except OSError:
        return ""
    return f": {lines[-1].strip()}" if lines else ""


def seed_of(folder: Path) -> int | None:
    """Return N of a folder seed<N>; None for anything else, such as a seed1_old beside it."""
    match = re.fullmatch(r"seed(\d+)", folder.name)
    return int(match[1]) if match and folder.is_dir() else None


def find_runs(directory: Path) -> list[Path]:
    """Return the seed folders of an experiment, by number."""
    return sorted((p for p in directory.iterdir() if seed_of(p) is not None), key=seed_of)
