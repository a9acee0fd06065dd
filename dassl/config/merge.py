"""Reading YAML files and the command line into a config, with one-line errors."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path

from yacs.config import CfgNode

from dassl.files import load_yaml, regular
from dassl.utils import UsageError, check_availability

# By the end of a key: what its value is, given what a file or a command line says.
_readers: dict[str, Callable[[object], object]] = {}
# How a value of each type is written.
_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number with a point or an exponent",
    list: "a list",
    str: "text, in a file in quotes",
}


def read_values_by(end_of_key: str, read: Callable[[object], object]) -> None:
    """From now on values of keys that end so are what `read` makes of them."""
    _readers[end_of_key] = read


def merge_file(
    cfg: CfgNode, path: str, dataset: str = "", datasets: Collection[str] | None = None
) -> None:
    """Merges a YAML file into cfg, and over it what its section BY_DATASET has for the dataset.

    Args:
        dataset: "": the one that cfg has then.
        datasets: names that BY_DATASET may have; None: any.

    Raises UsageError with one line for an unknown key or dataset (naming the nearest), a key that
    is there twice, a value of the wrong type or a broken file.
    """
    with one_line_errors(cfg, path):
        values = read_file(path)
        by_dataset = values.pop("BY_DATASET", None)
        by_dataset = CfgNode() if by_dataset is None else by_dataset
        check_by_dataset(by_dataset, datasets)
        cfg.merge_from_other_cfg(values)
        dataset = dataset or cfg.DATASET.NAME  # which this file may have given
        for name, values in by_dataset.items():  # those of other datasets too, to find mistakes
            (cfg if name == dataset else cfg.clone()).merge_from_other_cfg(values)


def check_by_dataset(section: object, datasets: Collection[str] | None) -> None:
    """Raises an error unless a file's BY_DATASET has a section of keys for each dataset."""
    of_each = section if isinstance(section, CfgNode) else {"": section}
    if not all(isinstance(values, CfgNode) for values in of_each.values()):
        example = "{EuroSAT: {OPTIM: {MAX_EPOCH: 60}}}"
        raise ValueError(f"BY_DATASET must have sections, as {example}")
    for name in of_each if datasets is not None else ():
        check_availability(name, datasets, "dataset in BY_DATASET")


def merge_command_line(
    cfg: CfgNode,
    flags: Sequence[tuple[str, str, object]],
    opts: Sequence[str],
    hints: Mapping[str, str] | None = None,
) -> None:
    """Merges flags, as (flag, key, value or None), then KEY VALUE pairs into cfg.

    Raises UsageError as merge_file, and for a key that has no value or two that differ; the line
    then ends with the key's hint, if there is one.
    """
    known = set(all_keys(cfg))
    pairs = list(zip_longest(opts[::2], opts[1::2]))
    for key, value in pairs:
        if key.startswith("--"):
            raise UsageError(f"flags come before KEY VALUE pairs: move {key}")
        if value is None or value in known:
            raise UsageError(f"config keys and values come in pairs, but {key} has no value")
    given: dict[str, tuple[object, str]] = {}  # key: value, how it was given
    words = [(f"by {flag}", key, value) for flag, key, value in flags if value is not None]
    words += [(f"as {value}", key, value) for key, value in pairs]
    for how, key, value in words:
        with one_line_errors(cfg, f"{key} {value}"):
            if key not in known and get_value(cfg, key) is None:
                raise KeyError(f"Non-existent key: {key}")  # yacs says so in known sections only
            cfg.merge_from_list([key, _typed(cfg, key, value)])
        now = get_value(cfg, key)
        before, how_before = given.setdefault(key, (now, how))
        if now != before:
            hint = (hints or {}).get(key, "")
            raise UsageError(f"{key} is given twice, {how_before} and {how}{hint}")


def _typed(cfg: CfgNode, key: str, value: object) -> object:
    """A value for yacs: a number is text where the key wants text (a folder 2024)."""
    if reader := _reader(key):
        return reader(value)
    if not isinstance(get_value(cfg, key), str):
        return value
    return value if isinstance(CfgNode._decode_cfg_value(value), str) else repr(value)


def _reader(key: str) -> Callable[[object], object] | None:
    return next((read for end, read in _readers.items() if key.endswith(end)), None)


def read_file(path: str | Path) -> CfgNode:
    """A file's values, read as YAML whatever its name (yacs would run a .py)."""
    values = load_yaml(Path(regular(path)).read_text(encoding="utf-8"))
    if not isinstance(values, dict | None):
        raise ValueError("it holds no keys with values")
    return CfgNode(_read_values(values or {}))


def keys_of_file(path: str | Path, beside: CfgNode) -> list[str]:
    """The dotted keys of a file's values that are not those of another config."""
    values = read_file(path)
    return [k for k in all_keys(values) if get_value(values, k) != get_value(beside, k)]


def _read_values(node: dict, above: str = "") -> dict:
    for key, value in node.items():
        if not isinstance(key, str):  # `1: …`, or `on: …`, which YAML reads as True
            raise ValueError(f"there is no config key {key}")
        if isinstance(value, dict):
            _read_values(value, f"{above}{key}.")
        elif reader := _reader(f"{above}{key}"):
            node[key] = reader(value)
    return node


@contextmanager
def one_line_errors(cfg: CfgNode, source: str) -> Iterator[None]:
    """Inside, yacs's merges into cfg raise UsageErrors that name the source."""
    try:
        yield
    except Exception as error:  # yacs's and the YAML reader's are of many kinds
        source = source if len(source) <= 200 else f"{source[:200]}…"
        raise UsageError(f"{source}: {_problem(cfg, source, error)}") from error


def _problem(cfg: CfgNode, source: str, error: Exception) -> str:
    """An error in words, with the nearest key and not in Python's types."""
    # str() of a KeyError puts its text in quotes
    problem = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    if mismatch := re.fullmatch(r"Type mismatch .* for config key: (\S+)", problem):
        key = mismatch[1]
        problem = _kind(key, get_value(cfg, key))
        return problem if source.startswith(f"{key} ") else f"{key} {problem}"
    if not re.match("Non-existent (config )?key:", problem):
        return problem
    key = problem.split(":", 1)[1].strip()
    problem = f"there is no config key {key}"
    keys = all_keys(cfg)
    ends = [full for full in keys if full.endswith(f".{key}")]
    if nearest := ends[:1] or get_close_matches(key, keys, n=1):
        problem += f"; did you mean {nearest[0]}?"
    return problem + " (flags come before KEY VALUE pairs)" * key.startswith("--")


def _kind(key: str, value: object) -> str:
    """What a key must have, in words, by what it has now."""
    if isinstance(value, CfgNode):
        example = all_keys(value, f"{key}.")[0]
        return f"is a section, which has no value of its own: give one of its keys, as {example}"
    return f"must be {_KINDS[type(value)]}" + (f", as {value}" if value not in ([], "") else "")


def merge_recorded(cfg: CfgNode, config: Mapping, source: str) -> None:
    """Merges what `plain_config` gave; raises UsageError as merge_file, naming the source."""
    with one_line_errors(cfg, source):
        cfg.merge_from_other_cfg(CfgNode(dict(config)))


def all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    """The dotted keys of all values."""
    keys = []
    for key, value in node.items():
        keys += all_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


def get_value(node: CfgNode, key: str) -> object:
    """The value of a dotted key, sequences as lists, None if there is none."""
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return None
        node = node[part]
    return list(node) if isinstance(node, tuple) else node
