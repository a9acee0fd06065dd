"""bench/house.py on a small made tree, whose numbers are counted by hand."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bench import house

A_FUNCTION = "def long():\n" + "    x = 1\n" * house.FUNCTION  # one line more than allowed
FILES = {
    "train.py": "import engine\n",
    "engine/loop.py": "def step(f):\n    return f(1)\n\n\ndef log(x):\n    return x\n",
    "engine/big.py": "x = 1\n" * (house.FILE + 1),
    "models/net.py": f"y = '{'.' * 100}'\n\n{A_FUNCTION}",
    "tests/test_net.py": "x = 1\n" * (house.FILE + 9) + A_FUNCTION,
    "reference/plain.py": "x = 12\n",
    ".venv/lib.py": "not python",
}


@pytest.fixture
def repo(tmp_path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_rooms(repo):
    rows = {row["room"]: row for row in house.rooms(house.read(repo))}
    assert list(rows) == ["./", "engine", "models", "reference", "tests", "**product**"]
    engine = 12 + 15 + 11 + 12  # characters of loop.py
    assert rows["engine"] == {
        "room": "engine",
        "files": 2,
        "lines": 6 + 401,
        "not blank": 4 + 401,
        "mean length": f"{(engine + 401 * 5) / 405:.1f}",
        "over 100": 0,
        "longest file": "engine/big.py 401",
    }
    assert rows["models"]["over 100"] == 1 and rows["models"]["not blank"] == 1 + 46
    assert rows["**product**"]["files"] == 4
    assert rows["**product**"]["lines"] == 1 + 6 + 401 + 48


def test_what_is_too_long(repo):
    files = house.product(house.read(repo))
    assert house.long_files(files) == ["engine/big.py 401"]
    assert house.long_functions(files) == ["models/net.py long 46"]


def test_the_way(repo):
    """Calls through other code count as the calls of the file that called that."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, repo / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    loop, net = load("engine/loop.py"), load("models/net.py")

    def run() -> None:
        loop.step(lambda x: net.long())
        loop.log(1), loop.log(2)

    calls = house.calls_of(run, repo)
    loop, net = "engine/loop.py", "models/net.py"
    assert calls == [("", loop), (loop, net), ("", loop), ("", loop)]
    assert sys.getprofile() is None
    assert house.way([*calls, ("engine/loop.py", "engine/big.py")]) == {
        "files": [loop, net, "engine/big.py"],
        "pairs of files, one calling the other": 2,
        "of these in two rooms": 1,
        "changes of room, from call to call": 2,
    }


def test_the_way_of_a_training_batch():
    """It passes through few files and changes the room seldom."""
    numbers = house.way(house.step_of(Path(house.__file__).parents[1]))
    files = numbers["files"]
    assert {"trainers/p2c.py", "clip/model.py"} <= set(files)
    assert len(files) <= 11 and numbers["changes of room, from call to call"] <= 12
    assert "train.py" not in files and "bench/house.py" not in files


def test_it_imports_no_torch():
    code = "import sys, bench.house; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
