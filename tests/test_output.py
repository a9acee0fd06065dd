"""Names that others gave, in output: in what encoding it may be, and that they are not obeyed."""

import csv
import errno
import io
import os
import pty
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import parse_test_res
import train
from dassl.commands import command_line, plain, say
from dassl.utils.errors import known
from dassl.utils.logger import tolerate_any_text
from datasets import doctor, prepare
from results import report, tables
from results.text_table import to_csv
from runs import protocol, sweep
from tests.forked import forked
from tests.runs import arguments
from tests.test_parse import block, trained

NAMES = [
    "line\nfeed",
    "\x1b[31mred",
    "=cmd|calc!A0",
    "+1+1",
    "-x",
    "@sum(1)",
    "a|b",
    "caf\udce9",
    "back\\slash",
    "50%_",
]


def images(folder: Path, classes: list[str]) -> Path:
    for i, name in enumerate(classes):
        for n in range(8):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (20 * n, 40 * i, 99)).save(folder / name / f"{n}.png")
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_training_whose_classes_an_encoding_lacks(encoding, tmp_path):
    root = images(
        tmp_path / os.fsdecode(b"caf\xe9 \xe2\x82\xac"), ["été", "\x1b[31mred", "雪", "caf\udce9"]
    )  # caf and no UTF-8
    opts = (
        "DATASET.NAME",
        "ImageFolder",
        "DATASET.SUBSAMPLE_CLASSES",
        "all",
        "TEST.PER_CLASS_RESULT",
        "True",
    )
    opts += ("OPTIM.MAX_EPOCH", "2", "DATALOADER.NUM_WORKERS", "0")
    out = tmp_path / "€"
    done = forked(lambda: train.main(arguments("P2C", root, out, *opts)), tmp_path, encoding)
    assert done.code == 0 and done.err == ""
    assert (
        "(été)\ttotal" if encoding == "utf-8" else "(?t?)\ttotal"
    ) in done.out and "\x1b" not in done.out
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert (
        "(été)\ttotal" in log
        and "(雪)\ttotal" in log
        and r"(\x1b[31mred)" in log
        and r"caf\udce9 €" in log
    )
    words = arguments("P2C", root, out, *opts, "OPTIM.LR", "0.5")
    done = forked(lambda: train.main(words), tmp_path, encoding)
    assert done.code == 2 and done.err.count("\n") == 1 and "holds another run" in done.err
    done = forked(
        lambda: train.main(arguments("P2C", root, root / "out", *opts)), tmp_path, encoding
    )
    assert (
        done.code == 2
        and done.err.count("\n") == 1
        and "must be a folder whose name is UTF-8" in done.err
    )


@pytest.mark.parametrize(
    "program", [train, parse_test_res, doctor, prepare, report, tables, sweep, protocol]
)
def test_help_where_an_encoding_lacks_its_signs(program, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "--help"])
    whole = hasattr(program, "command_line")
    done = forked(
        lambda: command_line(program.main) if whole else program.main(), tmp_path, "ascii"
    )
    assert done.code == 0 and "usage: " in done.out and done.err == ""


@pytest.fixture
def odd(tmp_path) -> Path:
    """Base-to-new results of methods with odd names."""
    for name in NAMES:
        for side in ("train_base", "test_new"):
            folder = (
                tmp_path
                / "runs"
                / "base2new"
                / side
                / "shapes"
                / "shots_16"
                / name
                / "cfg"
                / "seed1"
            )
            folder.mkdir(parents=True)
            (folder / "log.txt").write_text(trained(80.0) if side == "train_base" else block(40.0))
    return tmp_path / "runs"


def outputs(odd: Path, fmt: str, tmp: Path) -> list[str]:
    """The table of results.tables and the one of parse_test_res."""
    wanted = (
        lambda: tables.main(["base2new", str(odd), "--format", fmt]),
        lambda: parse_test_res.main([str(odd / "base2new"), "--hm", "--format", fmt]),
    )
    found = []
    for main in wanted:
        done = forked(main, tmp)
        assert done.code == 0 and "Traceback" not in done.err
        found.append(done.out)
    return found


@pytest.mark.parametrize("fmt", ["text", "markdown", "latex"])
def test_odd_names_end_no_line_and_move_no_cursor(odd, fmt, tmp_path):
    for text in outputs(odd, fmt, tmp_path):
        rows = [line for line in text.splitlines() if "53.3" in line]
        assert (
            len(rows) == len(NAMES)
            and "\x1b" not in text
            and not any("\ud800" <= c <= "\udfff" for c in text)
        )
        if fmt == "markdown":
            assert {row.replace(r"\|", "").count("|") for row in rows} == {7}
        if fmt == "latex":
            assert all(row.endswith(r"\\") for row in rows) and not any(
                "feed" in row and "line" not in row for row in rows
            )


def test_odd_names_are_no_formulas(odd, tmp_path):
    for text in outputs(odd, "csv", tmp_path):
        rows = list(csv.reader(io.StringIO(text)))
        names = {row[1] for row in rows[1:]}
        assert {"'=cmd|calc!A0", "'+1+1", "'-x", "'@sum(1)", "a|b", r"line\nfeed"} <= names and len(
            names
        ) == len(NAMES)
        assert any(row[2:4] == ["80.0000", "40.0000"] or "80.0000" in row for row in rows)


def test_numbers_are_no_formulas():
    assert to_csv([["-1.5", "-x", "−2", -3.0]]) == "-1.5,'-x,−2,-3.0"
    assert to_csv([["-2", "-1-1", "-.", "-1\n"]]) == r"-2,'-1-1,'-.,'-1\n"
    assert to_csv([["\t=1", "\r=1", "a\r=1"]]) == r"\t=1,\r=1,a\r=1"


def test_warnings_and_errors_are_one_line(odd, tmp_path):
    for name in NAMES[:2]:
        (odd / "base2new" / "train_base" / "shapes" / "shots_16" / name / "cfg" / "seed2").mkdir()
    for main in (tables.main, parse_test_res.main):
        words = ["base2new", str(odd)] if main is tables.main else [str(odd / "base2new"), "--hm"]
        err = forked(lambda: main(words), tmp_path).err  # noqa: B023
        assert r"line\nfeed" in err and r"\x1b[31mred" in err and "\x1b" not in err
        assert all(line.startswith("WARNING: ") for line in err.splitlines())
    done = forked(lambda: parse_test_res.main([str(odd / "no\nwhere")]), tmp_path)
    assert done.err.count("\n") == 1 and r"no\nwhere" in done.err
    done = forked(lambda: train.main(["--config-file", "a\nb\x1b[2J"]), tmp_path)
    assert done.err == "error: no config file a\\nb\\x1b[2J\n"
    done = forked(lambda: say("a\x1b[2J\nb"), tmp_path)
    assert done.err == "a\\x1b[2J\nb\n"


def test_what_is_printed_sends_a_terminal_no_commands(tmp_path):
    """As a sweep's file may try. A pipe gets it as it is."""
    file = tmp_path / "a.yaml"
    lines = ["protocol: base2new", "methods: [zsclip]", "datasets: [shapes]", "seeds: [1]"]
    file.write_text("\n".join([*lines, r'output: "out\e[31m\u202ex"']))
    said = {}
    for kind, (ours, its) in ("terminal", pty.openpty()), ("pipe", os.pipe()):

        def main(its=its):
            sys.stdout = open(its, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
            sys.argv = ["sweep", str(file), "--dry-run"]
            return command_line(sweep.main)

        assert forked(main, tmp_path / "said").code == 0
        said[kind] = os.read(ours, 4096).decode()
        os.close(ours), os.close(its)
    assert r"out\x1b[31m\u202e" in said["terminal"] and "\x1b" not in said["terminal"]
    assert "out\x1b[31m\u202ex" in said["pipe"]
    done = forked(lambda: sweep.main(["a\nb\x1b.yaml"]), tmp_path)
    assert done.err.startswith(r"error: a\nb\x1b.yaml: ") and done.err.count("\n") == 1


def test_plain():
    assert plain("été 雪 ½ ± −") == "été 雪 ½ ± −"
    assert plain("a\tb\r\n\x7f\x9b\u202e\ud800") == r"a\tb\r\n\x7f\x9b\u202e\ud800"
    assert plain("a\n\x1b", keep="\n") == "a\n\\x1b" and plain(Path("a\nb")) == r"a\nb"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "no", "there"), "error: no permission for there: ask for"),
        (MemoryError(), "error: the memory is full"),
        (torch.OutOfMemoryError("CUDA"), "error: the memory is full"),
    ],
)
def test_what_any_command_can_meet_is_one_line(error, line, tmp_path):
    def main():
        raise error

    done = forked(lambda: command_line(main), tmp_path)
    assert done.code == 1 and done.err.startswith(line) and done.err.count("\n") == 1
    assert not known(PermissionError(errno.EPERM, "no"))  # of no file: a line would say less


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_behind_what_is_printed(tmp_path):
    """As of `> table.txt`."""
    for side in ("train_base", "test_new"):
        seed = tmp_path / "runs" / side / "shapes" / "shots_16" / "P2C" / "c" / "seed1"
        seed.mkdir(parents=True)
        (seed / "log.txt").write_text(trained(80.0))

    def main():
        sys.stdout = open("/dev/full", "w", buffering=1)  # noqa: SIM115
        sys.argv = ["tables", "base2new", str(tmp_path / "runs")]
        return command_line(tables.main)

    done = forked(main, tmp_path / "said")
    assert done.code == 1 and done.err.count("\n") == 1, done.err
    assert done.err.startswith("error: cannot write what is printed: No space left on device")


def test_nobody_reads_what_a_run_prints(data, tmp_path):
    """As of `| head`."""

    def main():
        ours, its = os.pipe()
        os.close(ours)
        sys.stdout = open(its, "w", buffering=1)  # noqa: SIM115
        try:
            return train.main(arguments("ZeroshotCLIP", data, tmp_path / "out"))
        finally:
            sys.stdout = sys.stderr

    done = forked(main, tmp_path / "said")
    assert (
        done.code == 1
        and done.err.startswith("error: nobody reads what is printed any more")
        and "\n" not in done.err[:-1]
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_run_prints_sends_a_terminal_no_commands(terminal, monkeypatch):
    """Names of classes, which are folders' names, are printed as they are into a file or a pipe."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    tolerate_any_text()
    print("* class: 0 (red\x1b[2J)\tacc: 50")
    name = r"red\x1b[2J" if terminal else "red\x1b[2J"
    assert out.getvalue() == f"* class: 0 ({name})\tacc: 50\n"
