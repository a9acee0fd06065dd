"""The documents' tables are what their records give, and no other number in them is a result."""

import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from results import answers, docs

REPO = docs.ROOT
# Where a number that looks like a result must stand between markers.
PAGES = docs.DOCUMENTS
# What stands elsewhere although it looks like one: sentences, as they are in the page.
ALLOWED: dict[str, tuple[str, ...]] = {
    "README.md": (
        "the tests: up to 15 minutes on 2 cores",
        "It takes some two minutes after the install",
        "into `.venv` (5 GB)",
        # the paper's
        "P2C's harmonic mean is 79.7 (Table 1), 78.5 (Table 4) and 78.7 (Table 5)",
    ),
    "docs/RESULTS.md": (
        "a CLIP of 3 MB",
        "covers more than 95%",
        "within ± 1 point (of the loss: ± 0.05 nats)",
    ),
    "docs/SHAPES.md": (
        "zero-shot base and new accuracy between 40% and 70%",
        "a linear probe at least 8 points above",
    ),
    "docs/METHODS.md": ("81.45 (MaPLe host) and 82.37 (MMRL host): the paper's",),
}
NUMBER = r"(?<![\w.,])\d[\d,]*(?:\.\d+)?"
WORDS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|sixty"
RESULTS = {
    "a spread": r"± ?\d",
    "an accuracy": r"(?<![\w.,])(?:\d\d|100)\.\d{1,2}(?!\w|[.,]\d)",
    "a share": rf"{NUMBER} ?%(?! (?:confidence )?interval)",
    "a difference": r"(?<![\w)])[+−-]\d+(?:\.\d|(?= points))",
    "points": rf"{NUMBER} (?:points?|percent)\b",
    "a measure": r"\b(?:accuracy|accuracies|HM|ECE)(?: is)?(?: of)? \d",
    "a number in words": rf"\b(?:{WORDS}) (?:points|percent|times|seconds|minutes|hours)\b",
    "a ratio": rf"{NUMBER}(?: times|-fold| ?×(?! ?\d))",
    "a time": rf"{NUMBER} ?(?:ns|µs|ms|s|secs?|seconds?|min|minutes?|h|hours?)\b",
    "an amount of memory": rf"{NUMBER} ?[KMG]i?B\b",
    "a rate": rf"{NUMBER} ?(?:[GT]?FLOP/s|images/s|images a second)",
}
BASH = re.compile(r"^```(?:bash|sh)\n.*?^```$", re.S | re.M)


def results_in(text: str, allowed: tuple[str, ...] = ()) -> list[str]:
    """Numbers outside of markers that look like results, each with its kind and its line."""
    text = docs.MADE.sub("", text)
    text = BASH.sub(lambda block: "\n".join(re.findall(r"(?<=\s)#.*", block[0])), text)
    for sentence in allowed:
        text = text.replace(sentence, "")
    return [
        f"{kind}, {found[0]!r}: {line}"
        for line in text.splitlines()
        for kind, pattern in RESULTS.items()
        for found in re.finditer(pattern, line)
    ]


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A folder with BENCHMARKS.md and the records, which results.docs takes for the repository."""
    shutil.copytree(REPO / "docs" / "records", tmp_path / "docs" / "records")
    shutil.copy(REPO / "docs" / "BENCHMARKS.md", tmp_path / "docs")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "DOCUMENTS", ("docs/BENCHMARKS.md",))
    monkeypatch.setattr(answers, "RECORDS", tmp_path / "docs" / "records")
    return tmp_path


def changed(path: Path, old: str, new: str) -> None:
    """Replaces what is there once."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


# -- the repository


@pytest.mark.parametrize("name", docs.DOCUMENTS)
def test_tables_are_what_their_records_give(name):
    text = (REPO / name).read_text()
    assert docs.rewritten(text) == text
    markers = [len(re.findall(f"^<!-- {word}", text, re.M)) for word in ("made: ", "end -->")]
    assert markers == [len(docs.MADE.findall(text))] * 2


def test_all_measurements_are_shown():
    """No record of bench/ is left out, and none of its sections."""
    shown = "".join((REPO / name).read_text() for name in docs.DOCUMENTS)
    for path in answers.RECORDS.glob("bench_*.jsonl"):
        assert f"<!-- made: about {path.stem} -->" in shown
        rows = docs.read_lines(path)[1]
        sections = {row["section"] for row in rows}
        if not any("floor ms" in row for row in rows):
            sections -= {"rates"}  # of which floors are made
        for section in sections:
            assert f"<!-- made: rows {path.stem} section={section} -->" in shown


PLANNED = ("five_tasks_p2c", "five_tasks_methods")


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_was_there_before_the_runs(name):
    """It is in the commit that the runs are of, and has not been changed since."""
    about, rows = docs.read_lines(docs.record(name))
    commits = {(about["shared"] | row)["commit"] for row in rows}
    for commit in commits:
        asked = ["git", "show", f"{commit}:docs/PLAN.md"]
        then = subprocess.run(asked, cwd=REPO, capture_output=True, text=True)
        if then.returncode:
            pytest.skip(f"this checkout has no commit {commit[:7]}")
        assert then.stdout == (REPO / "docs/PLAN.md").read_text()
        committed = subprocess.check_output(
            ["git", "log", "-1", "--format=%ct", commit, "--", "docs/PLAN.md"], cwd=REPO
        )
        finished = min((about["shared"] | row)["finished"] for row in rows)
        assert int(committed) < datetime.fromisoformat(finished).timestamp()


@pytest.mark.parametrize("name", PAGES)
def test_no_result_stands_outside_of_markers(name):
    text = (REPO / name).read_text()
    allowed = ALLOWED.get(name, ())
    assert all(sentence in text for sentence in allowed)
    assert results_in(text, allowed) == []


@pytest.mark.parametrize(
    "line",
    [
        "an ECE of 0.8 ± 0.3",
        "an accuracy of 81.8, which",
        "HM is 100.0.",
        "72.31 on average",
        "takes 85% of it",
        "worse by −5.6 points",
        "gains +3.2",
        "some -2 points",
        "P2C leads MaPLe by 6.6 points.",
        "leads by 5 points",
        "reaches 82 percent",
        "accuracy 91, another's 77",
        "five points better",
        "takes two minutes",
        "it is 1.86 times as fast",
        "1.6× faster",
        "a 12-fold gain",
        "took 9 minutes 26 seconds",
        "68 s of CPU time",
        "5.17 ms",
        "takes 2048 MB",
        "0.2 s in the first epoch",
        "49 TFLOP/s",
        "some 210 images a second",
        "| fp32 | 87.6 |",
        "`HM 81.8`",
        "```\nHM 81.8\n```",
        "```bash\nbash scripts/quickstart.sh  # 2 min\n```",
    ],
)
def test_what_looks_like_a_result(line):
    assert results_in(line) and not results_in(f"<!-- made: x -->\n{line}\n<!-- end -->")
    sentence = line.strip("`").strip().rpartition("\n")[2].partition("#")
    assert not results_in(line, allowed=("".join(sentence[-2:]) or sentence[0],))


@pytest.mark.parametrize(
    "line",
    [
        "1,281,000 files in 2 × 1000 folders, JPEGs of 500×400, batch 4",
        "Python 3.11.7, PyTorch 2.14.1; commit 7bf4fa9",
        "rate 0.0035, weight decay 5e-4, 16 shots, ViT-B/16",
        "95% interval, 95% confidence interval",
        "means at (−1, 0, 1), mean ± population std",
        "section 4.2, blocks 5-12, 2026-11-26",
        "```bash\nbash scripts/run.sh OPTIM.LR 10.5\n```",
    ],
)
def test_what_is_a_setting(line):
    assert results_in(line) == []


# -- what is broken


def test_a_marker_without_its_end_loses_no_text():
    text = "<!-- made: rows a -->\nprose\n<!-- made: rows b -->\n<!-- end -->\n"
    for wrong in (text, text.partition("<!-- made")[2] + "<!-- end -->\n"):
        with pytest.raises(LookupError, match="no end, or an end no marker"):
            docs.rewritten(wrong)


def test_a_copy_is_as_good(copy, capsys):
    assert docs.main(["--check"]) == 0 and capsys.readouterr().out.strip() == ""


FILES = ("BENCHMARKS.md", "records/bench_cpu.jsonl")


def number_of(copy: Path) -> str:
    """A number that the record and the document have once each."""
    texts = [(copy / "docs" / name).read_text() for name in FILES]
    _, rows = docs.read_lines(docs.record("bench_cpu"))
    found = (row["plain ms"] for row in rows if "plain ms" in row)
    return next(number for number in found if all(text.count(number) == 1 for text in texts))


@pytest.mark.parametrize("name", FILES)
def test_a_changed_digit_is_found_and_mended(name, copy, capsys):
    number = number_of(copy)
    changed(copy / "docs" / name, number, number[:-1] + str((int(number[-1]) + 1) % 10))
    assert docs.main(["--check"]) == 1
    assert capsys.readouterr().out == "docs/BENCHMARKS.md: differs\n"
    assert docs.main([]) == 0 and docs.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("BENCHMARKS.md", "(`docs/records/bench_cpu.jsonl`)", "(somewhere)"),
        ("records/bench_cpu.jsonl", '{"command": "bash', '{"command": "zsh'),
    ],
)
def test_so_is_what_is_said_about_it(name, old, new, copy):
    changed(copy / "docs" / name, old, new)
    assert docs.main(["--check"]) == 1
    assert docs.main([]) == 0 and docs.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tabel x", "nothing makes 'tabel'"),
        ("rows bench_none section=maple", "there is no docs/records/bench_none.jsonl"),
        ("answer none", "answer none: there is no 'none'"),
        ("figure none", "figure none: there is no 'none'"),
        ("runs bench_cpu", "runs bench_cpu: there is no 'shared'"),
        ("table base2new quickstart nobody", "--baseline nobody is no method here"),
        ("rows", "rows: missing a required argument: 'name'"),
        ("rows bench_cpu section=none", "bench_cpu has no rows with section=none"),
    ],
)
def test_what_cannot_be_made_is_one_line(words, said, copy, capsys):
    changed(copy / "docs" / "BENCHMARKS.md", "rows bench_cpu section=maple", words)
    assert docs.main(["--check"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.match(rf"error: docs/BENCHMARKS.md: line \d+: {re.escape(said)}", err)


def test_a_document_that_is_not_there_stops_no_other(copy, capsys, monkeypatch):
    monkeypatch.setattr(docs, "DOCUMENTS", ("docs/NONE.md", "docs/BENCHMARKS.md"))
    changed(copy / "docs" / "BENCHMARKS.md", number_of(copy), "0")
    assert docs.main([]) == 1
    out, err = capsys.readouterr()
    assert err == "error: docs/NONE.md: No such file or directory\n" and "rewritten" in out
