"""results.json, a run's record for programs: what its readers rely on.

dassl/engine/record.py writes it beside the run's log. Imports no torch.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from .files import RESULTS, RESULTS_FORMAT, regular

METRICS = ("accuracy", "error_rate", "macro_f1")  # in percent
# Others, also in percent. Older records lack them, and tests on up to 5 classes have no top-5.
MORE_METRICS = ("macro_precision", "macro_recall", "top5_accuracy", "ece")
# The fields that are read, and their kinds.
FIELDS = (
    dict.fromkeys(("trainer", "dataset", "subsample", "command", "device"), str)
    | dict.fromkeys(("seed", "shots", "parameters"), int)
    | {"eval_only": bool, "log": str | None, "train_seconds": int | float | None}
    | dict.fromkeys(("config", "metrics"), dict)
    | dict.fromkeys(("loss", "epoch_seconds"), list)
)
# The same of fields that older records lack.
OPTIONAL = (
    dict.fromkeys(("images_per_second", "peak_memory_mb", "versions"), dict)
    | dict.fromkeys(("per_class", "per_class_metrics"), dict)
    | {"config_of_others": list}
    | {"commit": str | None}
    | dict.fromkeys(("machine", "finished"), str)
)
DEEP = 50  # levels, more than which no config has and which a reader's recursion cannot take
NUMBERS = ("loss", "epoch_seconds", "images_per_second", "peak_memory_mb")  # hold these only


def load_results(folder: Path) -> object:
    """Read the results.json in a run's folder, unchecked.

    Raises OSError if it cannot be opened, ValueError or RecursionError if it is no JSON.
    """
    return json.loads(regular(folder / RESULTS).read_text(encoding="utf-8"), parse_int=whole)


def whole(digits: str) -> int | float:
    """JSON's whole number; one beyond 64 bits is a float, or no number's digits would end."""
    return int(digits) if len(digits) < 20 else float(digits)


def problem(record: object, sections: Iterable[str] = ()) -> str:
    """Say what keeps a record from being used, "" if nothing does.

    `sections` are the dotted names of config nodes that must be nodes where they are there.
    """
    if not isinstance(record, dict) or record.get("format") != RESULTS_FORMAT:
        return f"it has not format {RESULTS_FORMAT}"
    for key, kind in FIELDS.items():
        if not isinstance(record.get(key), kind):
            return f"{key} is missing or of another kind"
    for key, kind in OPTIONAL.items():
        if key in record and not isinstance(record[key], kind):
            return f"{key} is of another kind"
    for key in NUMBERS:
        values = record.get(key, ())
        for value in values.values() if isinstance(values, dict) else values:
            if not isinstance(value, int | float | None):
                return f"{key} has {value!r}, which is no number"
    if _is_deep(record["config"], DEEP):
        return f"its config has more than {DEEP} levels"
    for section in sections:
        node = record["config"]
        for part in section.split("."):
            node = node.get(part, {})
            if not isinstance(node, dict):
                return f"its config's {section} is no section"
    metrics = dict.fromkeys(METRICS) | record["metrics"]
    if not all(_is_percent(metrics[key]) for key in (*METRICS, *MORE_METRICS) if key in metrics):
        return f"its metrics are {record['metrics']}"
    for name, of_class in record.get("per_class_metrics", {}).items():
        if not isinstance(of_class, dict) or not all(map(_is_percent, of_class.values())):
            return f"per_class_metrics has {of_class!r} for {name}"
    return ""


def _is_deep(value: object, levels: int) -> bool:
    """Whether mappings and lists lie in each other in more levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deep(v, levels - 1) for v in inner)


def _is_percent(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 100
