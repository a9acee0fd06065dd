"""How the code is built, in numbers: python -m bench.house [--repo DIR].

Prints markdown tables: the size of each room (a top-level folder), files and functions
that are too long, and the way of one training batch of P2C through the files. A batch's way
is what is called between the call of forward_backward and its return, in a run of train.py
on the bundled benchmark.
"""

import argparse
import ast
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from itertools import groupby, pairwise, starmap
from pathlib import Path
from types import FrameType
from unittest.mock import patch

NO_PRODUCT = ("tests", "reference")
FILE, FUNCTION, LINE = 400, 45, 100  # lines, lines, columns
OPTIONS = "DATASET.NUM_SHOTS 2 DATASET.SUBSAMPLE_CLASSES base OPTIM.MAX_EPOCH 2 SEED 1".split()
Call = tuple[str, str]  # file of the caller ("" outside the repository), file of the called

# Size


def room_of(file: str) -> str:
    """The top-level folder of a path relative to the repository, ./ for files beside them."""
    return file.partition("/")[0] if "/" in file else "./"


def read(repo: Path) -> dict[str, str]:
    """Path, relative to the repository, and text of each Python file not in a hidden folder."""
    paths = (path.relative_to(repo) for path in sorted(repo.rglob("*.py")))
    seen = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return {path.as_posix(): (repo / path).read_text(encoding="utf-8") for path in seen}


def size(name: str, files: dict[str, str]) -> dict[str, object]:
    """A row of the table of rooms."""
    lines = [line for text in files.values() for line in text.splitlines()]
    widths = [len(line) for line in lines if line.strip()]
    longest = max(files, key=lambda file: len(files[file].splitlines()))
    return {
        "room": name,
        "files": len(files),
        "lines": len(lines),
        "not blank": len(widths),
        "mean length": f"{sum(widths) / max(1, len(widths)):.1f}",
        f"over {LINE}": sum(width > LINE for width in widths),
        "longest file": f"{longest} {len(files[longest].splitlines())}",
    }


def rooms(files: dict[str, str]) -> list[dict[str, object]]:
    """A row for each room, and one for the product, which is all but tests and references."""
    rows = []
    for room in sorted({room_of(file) for file in files}):
        rows.append(size(room, {f: text for f, text in files.items() if room_of(f) == room}))
    return [*rows, size("**product**", product(files))]


def product(files: dict[str, str]) -> dict[str, str]:
    """The files that are neither tests nor references."""
    return {file: text for file, text in files.items() if room_of(file) not in NO_PRODUCT}


def long_files(files: dict[str, str]) -> list[str]:
    """Files of more than FILE lines, with their number."""
    counts = {file: len(text.splitlines()) for file, text in files.items()}
    return [f"{file} {count}" for file, count in counts.items() if count > FILE]


def long_functions(files: dict[str, str]) -> list[str]:
    """Functions of more than FUNCTION lines, with their number."""
    found = []
    for file, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = node.end_lineno - node.lineno + 1
                found += [f"{file} {node.name} {count}"] * (count > FUNCTION)
    return found


# The way of a batch


def calls_of(function: Callable[[], object], repo: Path) -> list[Call]:
    """Calls `function`; every call of a function of the repository's files, in time order.

    Functions outside are passed over: where torch calls a module's forward, the caller is the
    file that called torch.
    """
    calls: list[Call] = []

    def inside(frame: FrameType | None) -> str:
        file = frame.f_code.co_filename if frame else ""
        own = file != __file__ and file.startswith(f"{repo}{os.sep}")
        return Path(file).relative_to(repo).as_posix() if own else ""

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (called := inside(frame)):
            caller = frame.f_back
            while caller and not inside(caller):
                caller = caller.f_back
            calls.append((inside(caller), called))

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def changes_room(before: str, after: str) -> bool:
    """Whether two files are in different rooms."""
    return room_of(before) != room_of(after)


def way(calls: Sequence[Call]) -> dict[str, object]:
    """Files in the order they are entered, and how often the way changes its file or room."""
    entered = [file for file, _ in groupby(called for _, called in calls)]
    pairs = {(caller, called) for caller, called in calls if caller and caller != called}
    return {
        "files": list(dict.fromkeys(entered)),
        "pairs of files, one calling the other": len(pairs),
        "of these in two rooms": sum(starmap(changes_room, pairs)),
        "changes of room, from call to call": sum(starmap(changes_room, pairwise(entered))),
    }


class Traced(BaseException):
    """Ends a run once its step is traced."""


def trace_step(repo: Path, number: int = 2) -> list[Call]:
    """The calls of a training step of P2C, by default the second, when all is warm."""
    import train
    from dassl.engine import TRAINER_REGISTRY
    from datasets.shapes import Shapes

    method = TRAINER_REGISTRY.get("P2C")
    usual = method.forward_backward
    calls, steps = [], []

    def traced(trainer: object, batch: dict) -> dict:
        steps.append(batch)
        if len(steps) < number:
            return usual(trainer, batch)
        calls.extend(calls_of(lambda: usual(trainer, batch), repo))
        raise Traced  # the rest of the run is not asked for

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(Shapes, "parts", {"train": 4, "val": 1, "test": 4}),
        patch.object(method, "forward_backward", traced),
        redirect_stdout(io.StringIO()),
        suppress(Traced),
    ):
        config = "configs/trainers/P2C/vit_tiny_ep5_batch4.yaml"
        flags = ["--trainer", "P2C", "--config-file", config, "--root", folder]
        flags += ["--dataset-config-file", "configs/datasets/shapes.yaml"]
        code = train.main([*flags, "--output-dir", f"{folder}/out", *OPTIONS])
        sys.exit(code or "error: the run ended before the step to be traced")
    return calls


def step_of(repo: Path) -> list[Call]:
    """`trace_step` in a process of its own, which imports that repository."""
    command = [sys.executable, "-P", "-W", "ignore", __file__, "--step"]
    env = os.environ | {"PYTHONPATH": str(repo), "CUDA_VISIBLE_DEVICES": ""}
    printed = subprocess.check_output(command, cwd=repo, env=env, text=True)
    return [tuple(call) for call in json.loads(printed)]


def report(repo: Path, table: Callable[[str, list[dict[str, object]]], str]) -> str:
    """All measures of a checkout, as markdown. table: makes one of a section's name and rows."""
    files = read(repo)
    numbers = way(step_of(repo))
    lists = {
        f"The product's files of more than {FILE} lines": long_files(product(files)),
        f"The product's functions of more than {FUNCTION} lines": long_functions(product(files)),
        "Files on the way of one training batch": numbers.pop("files"),
    }
    parts = [table("rooms", rooms(files))]
    for what, found in lists.items():
        lines = [f"{i}. {line}" for i, line in enumerate(found, start=1)]
        parts.append("\n".join([f"{what}: {len(found)}", *lines]))
    numbers = {what: len(found) for what, found in lists.items()} | numbers
    measures = [{"measure": what, "number": number} for what, number in numbers.items()]
    parts.append(table("measures", measures))
    return "\n\n".join(parts)


def main() -> None:
    """Prints the report, or with --step the calls of a training step as JSON."""
    parser = argparse.ArgumentParser("python -m bench.house", description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--repo", type=Path, default=here, help="another checkout")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also keep the tables here")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)  # the traced run
    args = parser.parse_args()
    if args.step:
        print(json.dumps(trace_step(Path.cwd())))
    else:
        # Not above: --step runs this file alone, with the modules of another checkout.
        from .record import Record

        print(report(args.repo.resolve(), Record(args.record, parser.prog).table))


if __name__ == "__main__":
    main()
