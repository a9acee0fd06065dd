"""How far a loop is, without a terminal."""

import pytest

from dassl.utils import progress


@pytest.fixture
def seconds(monkeypatch):
    """A clock that stands still unless it is moved."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def walk(seconds, each: float, total: int = 40) -> None:
    for _ in progress.bar_or_lines(range(total), "test", total):
        seconds[0] += each


def test_a_line_now_and_then(seconds, capsys):
    walk(seconds, 2.5)
    assert capsys.readouterr().out.splitlines() == [
        "test [12/40] eta 0:01:10",
        "test [24/40] eta 0:00:40",
        "test [36/40] eta 0:00:10",
    ]


def test_a_slow_step_is_one_line_and_a_short_loop_none(seconds, capsys):
    walk(seconds, 3600, total=2)
    assert capsys.readouterr().out == "test [1/2] eta 1:00:00\n"
    walk(seconds, 0.7)
    assert capsys.readouterr().out == ""


def test_a_terminal_has_the_bar_alone(seconds, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    walk(seconds, 2.5)
    said = capsys.readouterr()
    assert said.out == "" and "40" in said.err


def test_an_evaluation_tells(make, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    trainer = make("DATALOADER.TEST.BATCH_SIZE", 4)
    trainer.test()
    assert "test [1/3] eta 0:00:00\ntest [2/3] eta 0:00:00\n=> result" in capsys.readouterr().out
