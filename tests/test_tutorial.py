"""docs/TUTORIAL.md: each of its commands as written, on drawn photos and the bundled small CLIP."""

import importlib.util
import os
import re
import signal
import site
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest
from PIL import Image

from datasets.shapes import LOOK
from datasets.shapes_render import COLORS, GRAY, PATTERNS, SHAPES, Style, render

from .runs import REPO

PAGE = (REPO / "docs" / "TUTORIAL.md").read_text()
CLASSES = ["blue square", "green star", "orange circle", "red circle", "red hexagon"]
NEW = ["orange circle", "green star", "blue square"]
NEEDS = {"scripts/export.sh": "onnxscript", "my_model": "onnxruntime", "scripts/demo.sh": "gradio"}
ME = "/home/me"  # the reader's home on the page


def draw(name: str, count: int, seed: int) -> Iterator[Image.Image]:
    """Photos, as it were, of a class such as "red circle"."""
    color, shape = name.split()
    kinds = (PATTERNS.index("solid"), [*COLORS].index(color), SHAPES.index(shape), GRAY, 1)
    scenes = [np.full(count, kind) for kind in kinds]
    yield from map(
        Image.fromarray, render(np.random.RandomState(seed), *scenes, style=Style(**LOOK))
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A reader's home with photos in it."""
    home = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(CLASSES):
        for part in "train", "test":
            folder = home / "photos" / part / name
            folder.mkdir(parents=True)
            for i, photo in enumerate(draw(name, 12, 2 * seed + (part == "test")), start=1):
                photo.save(folder / f"IMG_{i:04}.jpg", quality=95)
    (home / "new_photos").mkdir()
    for i, name in enumerate(NEW, start=1):
        [photo] = draw(name, 1, 100 + i)
        photo.save(home / "new_photos" / f"IMG_{2000 + i}.jpg", quality=95)
    return home


def steps() -> list[tuple[str, str]]:
    """Each block of commands, and the output that the page shows after it, or ""."""
    blocks = [*re.findall(r"```(bash|text)\n(.*?)```", PAGE, re.DOTALL), ("", "")]
    return [
        (text, shown if what == "text" else "")
        for (kind, text), (what, shown) in pairwise(blocks)
        if kind == "bash"
    ]


STEPS = steps()
[SERVES] = (i for i, (commands, _) in enumerate(STEPS) if "demo.sh" in commands)


def lacks(commands: str) -> list[str]:
    """The packages that commands need and that are not here."""
    needed = [package for what, package in NEEDS.items() if what in commands]
    return [package for package in needed if not importlib.util.find_spec(package)]


def as_regex(line: str) -> str:
    """What a line of the page stands for: numbers for any, spaces for some, … for anything."""

    def meaning(piece: str) -> str:
        if piece[:1].isdigit():
            return r"[\d.e-]+"
        return {"…": ".*"}.get(piece) or (r"\s+" if piece.isspace() else re.escape(piece))

    return "".join(map(meaning, re.split(r"(\d[\d.]*(?:e-\d+)?|…|\s+)", line.strip())))


def unlike(page: str, output: str) -> str:
    """The first line of the page that is not in the output, in its order; "" if all are."""
    rest = iter(output.splitlines())
    for line in page.splitlines():
        if not any(re.fullmatch(as_regex(line), said.strip()) for said in rest):
            return line
    return ""


def environment(home: Path) -> dict[str, str]:
    """What the page's commands see: the reader's home, and the small CLIP as the page says."""
    [small] = re.findall(r"`export (CFG=.*?)`", PAGE)
    env = {k: v for k, v in os.environ.items() if k not in ("DATA", "OUTPUT", "SHOTS")}
    cache = env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    env |= {"HOME": str(home), "XDG_CACHE_HOME": cache, "PYTHONUSERBASE": site.getuserbase()}
    env["VENV"] = str(Path(sys.executable).parents[1])
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"  # as after bin/activate
    return env | dict(pair.split("=") for pair in small.split())


@pytest.fixture(scope="module")
def outputs(home) -> list[str]:
    """What each block of commands prints, all in one shell; up to one that fails."""
    script = ["set -eu"]
    for i, (commands, _) in enumerate(STEPS):
        if i != SERVES and not lacks(commands):
            script.append(f"{{\n{commands}}} >{home}/said{i} 2>&1")
    subprocess.run(["bash", "-c", "\n".join(script)], cwd=REPO, env=environment(home))
    files = (home / f"said{i}" for i in range(len(STEPS)))
    return [f.read_text().replace(str(home), ME) if f.exists() else "" for f in files]


@pytest.mark.parametrize("i", [i for i in range(len(STEPS)) if i != SERVES])
def test_a_step_prints_what_the_page_shows(i, outputs):
    commands, shown = STEPS[i]
    if missing := lacks(commands):
        pytest.skip(f"needs {', '.join(missing)}")
    assert not unlike(shown, outputs[i]), outputs[i][-3000:]


def test_the_folders_of_the_page_are_those_of_the_test(home):
    [shown] = re.findall(r"```\n/home/me/photos\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name in CLASSES if name in shown] == sorted(os.listdir(home / "photos/train"))


@pytest.mark.skipif(bool(lacks("scripts/demo.sh")), reason="needs gradio")
def test_the_page_in_a_browser_is_served(home, outputs):
    before = [line for commands, _ in STEPS for line in commands.splitlines()]
    before = [line for line in before if line.startswith(("export ", "RUN="))]
    commands = STEPS[SERVES][0].rstrip() + " --port 0"  # 7860 may be in use
    process = subprocess.Popen(
        ["bash", "-euc", "\n".join([*before, commands])],
        cwd=REPO,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        line = process.stdout.readline()
        assert not unlike(STEPS[SERVES][1], line), line + process.stdout.read()
        with build_opener(ProxyHandler({})).open(line.split()[0]) as page:
            assert b"P2C on ImageFolder" in page.read()
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "\nstopped\n"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


# the comparison itself


def test_a_page_that_is_not_true_is_noticed():
    said = "image   best\n----\n/home/me/a.jpg  cat 99.8%  dog 0.2%\naccuracy 91.7%"
    assert not unlike("image best\n/home/me/a.jpg cat 100.0%  …\naccuracy 90.0%", said)
    for line in ("/home/me/a.jpg  dog 99.8%  …", "accuracy 91.7", "image"):
        assert unlike(f"image best\n{line}", said) == line
    assert unlike("accuracy 91.7%\nimage best", said) == "image best"
