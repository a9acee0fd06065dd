"""Is all as it should be on this GPU? tests/gpu, the bench's CUDA tables, P2C beside the CPU.

Ends with a table of what was checked and what it said, and writes it, with the card, the
versions and the bench's tables, to OUTPUT/gpu_check.md: for a bug report, or
docs/BENCHMARKS.md, whose records they are in gpu_check.jsonl and
gpu_check/bench.jsonl. Needs no network, and some 10 minutes.
"""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

import torch

from dassl.commands import OneLineParser, command_line, leave
from dassl.utils import Failure, collect_env_info, read_json

from .cases import NAMES
from .record import Record
from .timing import code

Row = tuple[str, str, bool]  # what was checked, what it said, whether that is fine
LIMIT = 540  # seconds of a command
QUIET = "TRAINER.P2C.DPD.ENABLED False TRAINER.P2C.AUX.ENABLED False TRAINER.P2C.PREC fp32".split()
FLIPS = 1.0  # points of accuracy that rounding may move on 800 images


def run(
    command: Sequence[str], out: int | IO = subprocess.PIPE, **env: str
) -> subprocess.CompletedProcess:
    """Its stderr is ours. Raises: Failure if it takes too long."""
    try:
        return subprocess.run(command, env=os.environ | env, stdout=out, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(command)} was not done after {LIMIT} s") from None


def tests(folder: Path) -> list[Row]:
    """A row for each function of tests/gpu."""
    file = folder / "tests.xml"
    done = run(["bash", "scripts/test.sh", "tests/gpu", f"--junitxml={file}"])
    if not file.is_file():
        last = " ".join(done.stdout.splitlines()[-1:])
        return [("tests/gpu", f"did not run: {last}", False)]
    passed: dict[str, int] = defaultdict(int)
    failed: dict[str, list[str]] = defaultdict(list)
    for case in ET.parse(file).iter("testcase"):
        name = case.get("name")
        function = name.partition("[")[0].removeprefix("test_").replace("_", " ")
        where = f"{case.get('classname')}: {function}"
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        passed[where] += not bad
        if bad:
            why = (bad[0].get("message") or bad[0].tag).splitlines()[0]
            failed[where].append(f"; NOT {name}: {why}")
    return [
        (where, f"{count} passed{''.join(failed[where])}", not failed[where])
        for where, count in passed.items()
    ]


def base2new(out: Path, *opts: str) -> dict[str, float]:
    """Accuracies of P2C on shapes, seed 1."""
    accuracy = {}
    for script, part in (("train", "base"), ("test", "new")):
        command = ["bash", f"scripts/p2c/base2new_{script}.sh", "shapes", "1", *opts]
        if run(command, OUTPUT=str(out)).returncode:
            raise Failure(f"{' '.join(command)} failed")
        [file] = (out / "base2new").glob(f"{script}_{part}/**/results.json")
        accuracy[part] = read_json(str(file))["metrics"]["accuracy"]
    return accuracy


def shapes(folder: Path) -> list[Row]:
    """P2C in fp32, without what is drawn, so that both devices do the same; then as it comes."""
    kinds = {"without noise and auxiliary loss, fp32": QUIET, "as it comes": []}
    devices = {"GPU": "True", "CPU": "False"}
    with ThreadPoolExecutor() as pool:  # side by side, as nothing is timed
        runs = {
            (name, device): pool.submit(base2new, folder / name / device, *opts, "USE_CUDA", use)
            for name, opts in kinds.items()
            for device, use in devices.items()
        }
    rows = []
    said = "{}: base {base:.1f}%, new {new:.1f}%".format
    for name, opts in kinds.items():
        gpu, cpu = (runs[name, device].result() for device in devices)
        same = max(abs(gpu[part] - cpu[part]) for part in ("base", "new")) <= FLIPS
        line = f"{said('GPU', **gpu)}; {said('CPU', **cpu)}"
        rows.append((f"P2C on shapes, {name}", line, same or opts != QUIET))
    return rows


def bench(folder: Path, repeats: int) -> list[Row]:
    """Whether the bench's losses are the plain path's; leaves its tables in bench.md."""
    command = [sys.executable, "-m", "bench.steps", "cuda", "--repeats", str(repeats)]
    command += ["--record", str(folder / "bench.jsonl")]
    # The rivals' plain loops take longer than all else together.
    command += ["--only", *(name for name in NAMES if not name.startswith("rivals"))]
    with open(folder / "bench.md", "w") as file:
        ended = run(command, file).returncode
    said = f"{(folder / 'bench.md').read_text().count('###')} tables, exit code {ended}"
    return [("scripts/bench.sh cuda: losses are the plain path's", said, ended == 0)]


def main(argv: Sequence[str]) -> int:
    """0 if all is fine, 1 if not; leaves with 2 where there is no GPU."""
    parser = OneLineParser("bash scripts/gpu_check.sh", description=__doc__)
    parts = ("tests", "bench", "shapes")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the bench (default: 3)")
    args = parser.parse_args(argv)
    folder = Path(os.environ.get("OUTPUT") or "output") / "gpu_check"
    if not torch.cuda.is_available():
        leave("there is no GPU here that torch can use", 2)
    shutil.rmtree(folder, ignore_errors=True)  # finished trainings would not be repeated
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        leave(f"cannot make {folder}: {error.strerror}; choose another OUTPUT", 1)
    checks = {"tests": tests, "shapes": shapes, "bench": partial(bench, repeats=args.repeats)}
    rows: list[Row] = []
    for part in args.only:
        try:
            rows += checks[part](folder)
        except Failure as error:
            rows.append((part, str(error), False))
    kept = Record(folder.with_suffix(".jsonl"), parser.prog, argv, torch.cuda.get_device_name(0))
    return report(folder, rows, kept)


def report(folder: Path, rows: list[Row], record: Record) -> int:
    """Prints the table, keeps it and writes it beside `folder`; 0 if all is fine."""
    columns = ("what was checked", "what it said", "")
    words = [(what, said, "ok" if fine else "NOT OK") for what, said, fine in rows]
    checked = record.table("checks", [dict(zip(columns, row, strict=True)) for row in words])
    measured = folder / "bench.md"
    tables = measured.read_text() if measured.is_file() else ""
    file = folder.with_suffix(".md")
    file.write_text(f"{collect_env_info()}\n{code()}\n\n{checked}\n\n{tables}")
    print(f"{checked}\n\nwritten, with the bench's tables, to {file}")
    return 0 if all(fine for *_, fine in rows) else 1


if __name__ == "__main__":
    command_line(partial(main, sys.argv[1:]))
