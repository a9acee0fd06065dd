"""dassl is an engine: it knows no model and no method, and no room that stands on it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FILES = sorted((REPO / "dassl").rglob("*.py"))
ABOVE = "clip trainers datasets runs results inference bench scripts reference train".split()
# What only prompt learners and this repository's scripts speak of; `.clip(` is NumPy's.
WORDS = re.compile(
    r"a photo|ctx|prompt|(?-i:\bSHOTS\b)|(?<!\.)\bclip\b(?!=)|token_(pre|suf)fix", re.I
)
SLOW = ("torch", "numpy", "PIL", "yacs")


def imported(file: Path) -> set[str]:
    """The first words of all that a file imports by its whole name."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPO)))
def test_no_file_knows_a_method_or_who_stands_on_dassl(file):
    assert not imported(file) & set(ABOVE)
    assert not WORDS.findall(file.read_text())


@pytest.mark.parametrize("module", ["dassl.files", "dassl.commands"])
def test_what_the_results_need_is_quick_to_import(module):
    code = f"import sys, {module}; sys.exit(bool(sys.modules.keys() & set({SLOW})))"
    assert not subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode


@pytest.mark.parametrize("module", ["modeling", "samplers", "tools", "trainers"])
def test_third_party_modules_can_be_imported_first(module):
    code = f"import dassl.thirdparty.{module}"
    assert not subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode


def test_dassls_own_paths_lead_to_the_same_things():
    """As trainers written for Dassl.pytorch import them."""
    from dassl import metrics, modeling, utils
    from dassl.metrics.accuracy import compute_accuracy
    from dassl.modeling.head import build_head, mlp
    from dassl.utils.tools import read_image

    assert compute_accuracy is metrics.compute_accuracy and read_image is utils.read_image
    assert build_head is modeling.build_head
    assert mlp(in_features=2, hidden_layers=[3, 4]).out_features == 4
