"""What bench/gpu_check.py makes of what its parts say; the parts themselves need a GPU."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import gpu_check
from dassl.utils import Failure

XML = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_steps" name="test_captured_steps[CoOp]"/>
<testcase classname="tests.gpu.test_steps" name="test_captured_steps[P2C]"/>
<testcase classname="tests.gpu.test_runs" name="test_nccl"/>
</testsuite></testsuites>"""
BAD = '<failure message="loss of step 3: 1.0 is not 2.0&#10;and more"/>'


@pytest.fixture
def check(monkeypatch, tmp_path, capsys) -> Callable[..., tuple[int, str, str]]:
    """check(xml, new, bench) -> exit code, stdout, the report; `new` is the GPU's accuracy on the
    new classes."""

    def check(
        xml: str = XML, new: float = 76.0, bench: int = 0, words: tuple[str, ...] = ()
    ) -> tuple[int, str, str]:
        def run(command, out=None, **env):
            code = 0
            if "scripts/test.sh" in command:
                Path(command[-1].partition("=")[2]).write_text(xml)
            elif "bench.steps" in command:
                out.write("### One\n### Two\n")
                assert command[command.index("--record") + 1].endswith("/gpu_check/bench.jsonl")
                code = bench
            else:
                part, gpu = (
                    ("test_new" if "test" in command[1] else "train_base"),
                    command[-1] == "True",
                )
                folder = Path(env["OUTPUT"], "base2new", part, "shapes")
                folder.mkdir(parents=True)
                accuracy = new if gpu and part == "test_new" else 75.5
                record = {"metrics": {"accuracy": accuracy}}
                (folder / "results.json").write_text(json.dumps(record))
            return subprocess.CompletedProcess(command, code, stdout="no tests ran")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "a card")
        monkeypatch.setattr(gpu_check, "run", run)
        monkeypatch.setenv("OUTPUT", str(tmp_path))
        code = gpu_check.main(words)
        return code, capsys.readouterr().out, (tmp_path / "gpu_check.md").read_text()

    return check


def test_all_is_well(check, tmp_path):
    code, out, report = check()
    assert code == 0 and "NOT" not in out
    assert "| tests.gpu.test_steps: captured steps" in out and "2 passed" in out
    assert "GPU: base 75.5%, new 76.0%; CPU: base 75.5%, new 75.5%" in out
    assert "2 tables, exit code 0" in out
    assert (
        "GPU 0: a card" in report
        and f"PyTorch: {torch.__version__}" in report
        and "### One" in report
    )
    assert out.splitlines()[0] in report
    about, *kept = map(json.loads, (tmp_path / "gpu_check.jsonl").read_text().splitlines())
    assert about["machine"].startswith("a card; ")
    assert [row["what it said"] in out and row[""] for row in kept] == ["ok"] * len(kept) != []


def test_a_failed_test_is_named(check):
    code, out, _ = check(XML.replace('[P2C]"/>', f'[P2C]">{BAD}</testcase>'))
    assert code == 1
    assert (
        "1 passed; NOT test_captured_steps[P2C]: loss of step 3: 1.0 is not 2.0 " in out
        and "more" not in out
    )


def test_other_accuracies_without_noise_are_not_ok(check):
    code, out, _ = check(new=77.0)
    [without, noisy] = [line for line in out.splitlines() if "P2C on shapes" in line]
    assert code == 1 and without.endswith("| NOT OK |") and noisy.endswith("| ok     |")


def test_a_bench_that_ends_badly_is_not_ok(check):
    code, out, _ = check(bench=1)
    assert code == 1 and "2 tables, exit code 1" in out


def test_parts(check):
    code, out, report = check(words=("--only", "shapes"))
    assert code == 0 and "test_steps" not in out and "### One" not in report


def test_what_takes_too_long_fails(monkeypatch):
    monkeypatch.setattr(gpu_check, "LIMIT", 0.1)
    with pytest.raises(Failure, match="sleep 5 was not done after 0.1 s"):
        gpu_check.run(["sleep", "5"])


def test_tests_that_say_nothing_are_not_ok(monkeypatch, tmp_path):
    monkeypatch.setattr(
        gpu_check, "run", lambda command: subprocess.CompletedProcess(command, 1, stdout="")
    )
    assert gpu_check.tests(tmp_path) == [("tests/gpu", "did not run: ", False)]


def test_what_keeps_it_from_beginning_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OUTPUT", str(tmp_path / "file"))
    lines = {
        False: (2, "error: there is no GPU here that torch can use\n"),
        True: (
            1,
            f"error: cannot make {tmp_path}/file/gpu_check: Not a directory; "
            "choose another OUTPUT\n",
        ),
    }
    for gpu, (code, line) in lines.items():
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        with pytest.raises(SystemExit) as end:
            gpu_check.main([])
        assert (end.value.code, capsys.readouterr().err) == (code, line)
