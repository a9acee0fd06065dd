"""bench/steps.py on tiny towers: it prints its rows, compares the same things, counts rightly.
Nothing is timed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bench import steps as bench
from bench.steps import Case
from reference import cocoop_plain, maple_plain
from reference.clip_plain import PlainCLIP
from reference.weights import ARCHS
from tests.trainers.methods import shake

REPO = Path(__file__).resolve().parents[1]
QUICK = ["cpu", "--quick", "--repeats", "2"]
ENV = {**os.environ, "VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
METHODS = pytest.mark.parametrize("method", ["MaPLe", "P2C", "CoCoOp"])


@pytest.fixture(autouse=True)
def from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)


def tiny(method: str, table: str = "", classes: int = 11, batch: int = 3) -> Case:
    return Case(table or method.lower(), method, classes, batch, arch="tiny")


def rows(printed: str) -> Iterator[list[str]]:
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and not line.startswith("|:") and cells[0] != "measurement":
            yield cells


def test_every_row_is_printed(capsys):
    assert bench.main(QUICK) == 0
    out, err = capsys.readouterr()
    expected = bench.cases("cpu", quick=True)
    printed = list(rows(out))
    assert [cells[0] for cells in printed] == [str(case) for case in expected]
    tables = set(bench.NAMES) - {"capture"}
    assert {case.table for case in expected} == tables and out.count("###") == len(tables)
    assert (
        out.startswith("`bash scripts/bench.sh cpu --quick --repeats 2`")
        and torch.__version__ in out
    )
    assert f"[{len(expected)}/{len(expected)}]" in err and "left" in err
    for case, cells in zip(expected, printed, strict=True):
        if case.table in ("share", "memory"):
            continue
        low, middle, high = map(float, next(cell for cell in cells if " / " in cell).split(" / "))
        assert 0 < low <= middle <= high


def test_as_a_user_runs_it():
    def run(*args: str) -> subprocess.CompletedProcess:
        command = ["bash", "scripts/bench.sh", *args]
        return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)

    done = run("--quick", "--repeats", "1", "--only", "cocoop")
    assert done.returncode == 0, done.stderr
    assert [cells[0] for cells in rows(done.stdout)] == [
        "CoCoOp step, 3 classes, batch 1, fp32",
        "CoCoOp step, 3 classes, batch 8, fp32",
    ]
    assert run("--quick", "--repeats", "0").returncode == 2
    done = run("--only", "everything")
    assert done.returncode == 2 and "everything" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line(capsys):
    assert bench.main(["cuda"]) == 2
    assert capsys.readouterr().err == "error: there is no GPU here that torch can use\n"


def test_what_a_gpu_does_not_measure_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert bench.main(["cuda", "--quick", "--only", "share"]) == 2
    assert capsys.readouterr().err == "error: share is not measured on cuda\n"


def other_bias(*args) -> Tensor:
    return 30 * cocoop_plain.bias(*args)


@pytest.mark.parametrize(
    ("table", "where", "what"),
    [
        ("maple", "bench.steps.FROZEN_WORDS", {**bench.FROZEN_WORDS, "MaPLe": "on the"}),
        ("p2c", "bench.steps.maple_plain.deep_text_prompts", lambda _: {}),
        ("eval", "bench.steps.maple_plain.deep_visual_prompts", lambda _: {}),
        (
            "cocoop",
            "bench.steps.cocoop_plain",
            type("Other", (), {"bias": staticmethod(other_bias)}),
        ),
    ],
)
def test_paths_that_differ_end_in_one_line(table, where, what, monkeypatch, capsys):
    monkeypatch.setattr(where, what)
    assert bench.main([*QUICK, "--only", table]) == 1
    err = capsys.readouterr().err.splitlines()
    assert [line for line in err if not line.startswith(("[", "Precision"))] == [err[-1]]
    assert err[-1].startswith("error: ") and "they differ" in err[-1]


@METHODS
def test_the_plain_path_is_the_reference(method, weights):
    """The loss of two steps, the second after the optimizer's."""
    case = tiny(method)
    trainer = bench.our_trainer(case, weights, *bench.WITHOUT_NOISE)
    shake(trainer.model.learner)
    plain, batch = bench.Plain(case, weights, trainer), bench.make_batch(case)
    clip, names, attributes = PlainCLIP(weights), bench.class_names(11), ("color", "shape")
    step = plain.step(batch)
    for _ in range(2):
        image, label = batch["img"], batch["label"]
        if method == "CoCoOp":
            logits = cocoop_plain.logits(clip, plain.prompts, names, image)
        elif method == "MaPLe":
            logits = maple_plain.maple_forward(
                clip, plain.prompts, names, image, frozen_words="of a"
            ).logits
        else:
            logits = maple_plain.maple_forward(
                clip, plain.prompts, names, image, attributes=attributes
            ).logits
        expected, before = functional.cross_entropy(logits, label), plain.prompts["ctx"].clone()
        torch.testing.assert_close(step(), expected, rtol=1e-5, atol=0)
        assert not torch.equal(before, plain.prompts["ctx"])


def test_p2c_is_measured_with_its_noise_and_checked_without(weights):
    case = tiny("P2C")
    plain, trainer, steps = bench.pair(case, weights)
    shapes = []
    noise = trainer.model.learner.noise
    learner = trainer.model.learner
    learner.noise = Drawn(noise, shapes, lambda: learner.sigma.item() > 0)
    bench.check(case, trainer, steps)
    assert not shapes and learner.sigma > 0
    for step in steps:
        step()
    attributes_and_ctx = [plain.prompts[name].shape for name in ("ctx_att1", "ctx_att2", "ctx")]
    assert sorted(shapes) == sorted(2 * attributes_and_ctx)


class Drawn(torch.nn.Module):
    """Noise that says what was drawn, where it is heard."""

    def __init__(self, noise: torch.nn.Module, shapes: list, heard: Callable[[], bool]):
        super().__init__()
        self.inner, self.shapes, self.heard = noise, shapes, heard

    def forward(self, like: Tensor) -> Tensor:
        if self.heard():
            self.shapes.append(like.shape)
        return self.inner(like)


def test_the_plain_path_asks_for_no_attention_weights(weights, monkeypatch):
    asked = []
    original = functional.multi_head_attention_forward

    def spy(*args, **kwargs):
        asked.append(kwargs["need_weights"])
        return original(*args, **kwargs)

    monkeypatch.setattr(functional, "multi_head_attention_forward", spy)
    bench.pair(tiny("MaPLe"), weights)[2][0]()
    assert asked == [False] * 6  # 3 blocks in each tower


def test_the_floor_counts_what_torch_counts(weights, monkeypatch):
    """Products with weights in our towers, forward, without the prompts' mapper and the two
    projections."""
    monkeypatch.setattr("clip.frozen.ONEDNN", False)  # torch does not count its products
    case, arch = tiny("P2C", batch=2), ARCHS["tiny"]
    plain, trainer, _ = bench.pair(case, weights)
    learner, clip, image = (
        trainer.model.learner,
        trainer.model.clip,
        bench.make_batch(case)["img"],
    )

    def count(tower) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tower()
        products = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        return sum(
            n for op, n in products.items() if op in ("aten.mm", "aten.addmm", "aten.convolution")
        )

    text = count(lambda: learner.text_features(clip)) - 2 * 11 * arch.text_width * arch.embed_dim
    assert bench.text_count(plain.prefix, plain.suffixes, arch)[0] == text
    n_ctx = len(learner.ctx)
    prompts = torch.zeros(1, n_ctx, arch.vision_width)
    seen = (
        count(lambda: clip.encode_image(image, prompts))
        - 2 * 2 * arch.vision_width * arch.embed_dim
    )
    assert 2 * bench.image_count(n_ctx, arch)[0] == seen


def test_the_floor_counts_attention():
    """A prefix of 2 and suffixes of 1 and 3 tokens, as pairs of positions written out."""
    arch = ARCHS["tiny"]
    whole = (
        (1 + 2) + 3 + (3 + 4 + 5)
    )  # who sees how many: the prefix, the suffix of one, the suffix of three
    eots = 3 + 5
    per_pair = 2 * 2 * arch.text_width  # a score and a sum
    assert bench.text_count(2, [1, 3], arch)[1] == per_pair * (2 * whole + eots)


def test_sides_take_turns_in_going_first():
    order = []
    first, second = (lambda c=c: order.append(c) for c in "ab")
    seconds = bench.alternate(first, second, 3, "cpu")
    assert "".join(order) == "baabba" and [len(s) for s in seconds] == [3, 3]


def test_memory_is_the_peak_of_the_step(weights, monkeypatch):
    """A step that takes 64 MB for a moment, after one that took 128."""

    def take(megabytes: int) -> Tensor:
        torch.ones(megabytes, 2**18)
        return torch.zeros(())

    monkeypatch.setattr(
        bench, "pair", lambda *_: (None, None, (lambda: take(128), lambda: take(64)))
    )
    assert bench.memory_of(tiny("P2C", "memory"), "ours", weights) == pytest.approx(64, abs=6)


def test_memory_that_cannot_be_measured_is_one_line():
    with pytest.raises(bench.Failure, match="NoMethod step.*memory ended with 1: KeyError"):
        bench.memory_in_a_process(
            Case("memory", "NoMethod", 2, 1, arch="tiny"), "plain", quick=True
        )
