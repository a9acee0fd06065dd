"""docs/ARCHITECTURE.md says which room may import which: the imports of every file keep to it."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .runs import REPO

ALL = "bench clip dassl datasets inference reference results runs scripts trainers train".split()
# Imported inside functions alone, as the page says.
EXCEPTIONS = {("results/schedule.py", "train"), ("results/schedule.py", "trainers")}
EXCEPTIONS |= {(f"runs/{file}.py", room) for file in ("starter", "sweep")
               for room in ("train", "trainers", "datasets")}  # fmt: skip


def allowed() -> dict[str, set[str]]:
    """Each room of the page's table -> the rooms it may import."""
    page = (REPO / "docs" / "ARCHITECTURE.md").read_text().split("## The rooms")[1]
    table = {}
    for line in page.split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            names = {
                name.strip("/").removesuffix(".py") for name in re.findall("`(.+?)`", cells[2])
            }
            table[re.findall("`(.+?)`", cells[0])[0].strip("/")] = (
                set(ALL) if cells[2].startswith("all") else names
            )
    return table


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """The project's rooms that a file imports, and whether it does so inside a function."""
    tree = ast.parse(file.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    inside = {id(n) for function in functions for n in ast.walk(function)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for room in {name.partition(".")[0] for name in names} & {*ALL, "tests", "parse_test_res"}:
            yield room, id(node) in inside


FILES = subprocess.check_output(["git", "ls-files", "*.py"], cwd=REPO, text=True).split()


@pytest.mark.parametrize("room", sorted({f.partition("/")[0] for f in FILES} - {"tests"}))
def test_a_room_imports_what_the_page_allows(room):
    may = allowed()[room] | {room.removesuffix(".py")}
    for file in FILES:
        template = file.startswith("scripts/new_method/")  # of files for trainers/ and tests/
        if file.partition("/")[0] != room or template:
            continue
        for imported, inside in imports(REPO / file):
            fine = imported in may or (inside and (file, imported) in EXCEPTIONS)
            assert fine, f"{file} imports {imported}"


def test_the_files_that_the_page_names_exist():
    page = (REPO / "docs" / "ARCHITECTURE.md").read_text()
    for room in allowed():
        assert (REPO / room).exists()
    named = set(re.findall(r"\b(?:[a-z_]+/)+[a-z_]+\.py\b", page))
    assert len(named) >= 15
    assert not [name for name in named if not list(REPO.glob(f"**/{name}"))]
