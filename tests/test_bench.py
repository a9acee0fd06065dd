"""bench/ on tiny towers: it prints its rows, compares the same things, counts rightly.

Nothing is timed.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bench import (
    cases,
    clock,
    cpu,
    floor,
    memory,
    ours,
    parameters,
    plain,
    rivals,
    startup,
    steps,
    timing,
)
from bench.cases import Case
from dassl.utils import Failure
from reference import cocoop_plain, maple_plain
from reference.clip_plain import PlainCLIP
from reference.weights import ARCHS
from results.kept import read_lines
from tests.forked import forked
from tests.trainers.methods import shake
from trainers import prompt_text

REPO = Path(__file__).resolve().parents[1]
QUICK = ["cpu", "--quick", "--repeats", "2"]
ENV = {**os.environ, "VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
METHODS = pytest.mark.parametrize("method", ["MaPLe", "P2C", "CoCoOp"])


@pytest.fixture(autouse=True)
def from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs from the repository's folder, as a user's."""
    monkeypatch.chdir(REPO)


def tiny(method: str, table: str = "", classes: int = 11, batch: int = 3) -> Case:
    return Case(table or method.lower(), method, classes, batch, arch="tiny")


def rows(printed: str) -> Iterator[list[str]]:
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and not line.startswith("|:") and cells[0] != "measurement":
            yield cells


def by_column(printed: str) -> Iterator[dict[str, str]]:
    """The rows of all tables."""
    columns = None
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line[1:-1].split("|")]
        if not line.startswith("|"):
            columns = None
        elif columns is None:
            columns = cells
        elif not line.startswith("|:"):
            yield dict(zip(columns, cells, strict=True))


def without_section(row: dict[str, str]) -> dict[str, str]:
    return {column: text for column, text in row.items() if column != "section"}


def test_every_row_is_printed(capsys, monkeypatch, tmp_path):
    def run(command: list[str], **_) -> subprocess.CompletedProcess:
        assert command[1:3] == ["-m", "bench.memory"]
        done = forked(lambda: memory.main(command[3:]), tmp_path)
        return subprocess.CompletedProcess(command, done.code, done.out, done.err)

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=run))
    assert steps.main(QUICK) == 0
    out, err = capsys.readouterr()
    expected = cases.cases("cpu", quick=True)
    printed = list(rows(out))
    both = ("bf16", "bf16_eval")  # of two precisions, so their rows name none
    assert [cells[0] for cells in printed] == [
        str(case).removesuffix(", fp32") if case.table in both else str(case) for case in expected
    ]
    tables = set(cases.NAMES) - {"capture"}
    assert {case.table for case in expected} == tables and out.count("###") == len(tables)
    assert out.startswith("`bash scripts/bench.sh cpu --quick --repeats 2`")
    assert torch.__version__ in out
    assert f"[{len(expected)}/{len(expected)}]" in err and "left" in err
    for case, cells in zip(expected, printed, strict=True):
        if case.table == "share" or case.table.endswith("memory"):
            continue
        low, middle, high = map(float, next(cell for cell in cells if " / " in cell).split(" / "))
        assert 0 < low <= middle <= high


def test_as_a_user_runs_it(tmp_path):
    """With --record, which keeps what is printed."""
    file = tmp_path / "new" / "bench.jsonl"
    words = f"bash scripts/bench.sh --quick --repeats 1 --only cocoop --record {file}"
    command = words.split()
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [cells[0] for cells in rows(done.stdout)] == [
        "CoCoOp step, 3 classes, batch 1, fp32",
        "CoCoOp step, 3 classes, batch 8, fp32",
    ]
    about, [rates, *found] = read_lines(file)
    assert about["command"] == words.partition(" --record")[0] and list(about) == [
        "command",
        "commit",
        "machine",
        "time",
    ]
    assert f"commit {about['commit']}" in done.stdout and torch.__version__ in about["machine"]
    assert rates["section"] == "rates" and f"fp32 {rates['TFLOP/s']}." in done.stdout
    assert {row["section"] for row in found} == {"cocoop"}
    assert list(map(without_section, found)) == list(by_column(done.stdout))


@pytest.mark.parametrize(
    ("program", "words"), [(clock, ["true", "exit 0"]), (startup, ["--runs", "1"])]
)
def test_other_programs_record_what_they_print(program, words, monkeypatch, capfd, tmp_path):
    file = tmp_path / "bench.jsonl"
    monkeypatch.setattr(sys, "argv", ["", *words, "--record", str(file)])
    monkeypatch.setattr(startup, "measure", lambda command: (2.5, 1.25))
    program.main()
    about, found = read_lines(file)
    assert about["command"].startswith(f"python -m {program.__name__} ")
    assert list(map(without_section, found)) == list(by_column(capfd.readouterr().out)) != []


@pytest.mark.parametrize(
    ("chosen", "said"),
    [(True, "torch's products, not oneDNN's"), (False, "oneDNN's products, not torch's")],
)
def test_a_choice_is_timed_beside_what_it_replaces(chosen, said, monkeypatch):
    """Each row's two steps have the values that it says, which are there again afterwards."""
    seen = []

    def make(trainer, batch):
        return lambda: seen.append((len(batch["img"]), cpu.frozen.ONEDNN, cpu.model.FEW))

    for name in ("our_evaluation", "our_step"):
        monkeypatch.setattr(cpu, name, make)
    monkeypatch.setattr(cpu, "our_trainer", lambda *_: None)
    monkeypatch.setattr(cpu.frozen, "ONEDNN", chosen)
    monkeypatch.setattr(cpu.frozen, "HAS_ONEDNN", True)
    found = cpu.choices({}, "tiny", rounds=1)
    assert [(row[""].split(": ")[-1]) for row in found] == [
        "attention and its gradient in bf16, not fp32",
        "all images at once, not 8",
        said,
        said,
    ]
    at_once, of_48, of_4 = seen[:4], seen[4:8], seen[8:]
    assert at_once[0] == (48, chosen, 48) and at_once[1] == (48, chosen, 8)
    for steps_of, n in ((of_48, 48), (of_4, 4)):
        assert steps_of[0] == (n, not chosen, 8) and steps_of[1] == (n, chosen, 8)
        assert len(steps_of) == 4 and len(set(steps_of)) == 2
    assert len(at_once) == 4 and cpu.frozen.ONEDNN is chosen and cpu.model.FEW == 8


def test_a_record_that_cannot_be_written_is_one_line(capsys, tmp_path):
    """Before anything is measured."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as left:
        steps.main([*QUICK, "--record", str(tmp_path / "file" / "bench.jsonl")])
    out, err = capsys.readouterr()
    assert (left.value.code, out, err.count("\n")) == (1, "", 1) and "cannot write" in err


def test_a_command_that_fails_is_one_line(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["", "exit 3"])
    with pytest.raises(SystemExit) as left:
        clock.main()
    assert (left.value.code, capfd.readouterr().err) == (1, "error: exit 3 ended with 3\n")


def test_bad_input_is_one_line(capsys):
    assert steps.main(["--quick", "--repeats", "0"]) == 2
    assert capsys.readouterr().err == "error: --repeats 0: must be 1 or more\n"
    with pytest.raises(SystemExit) as left:
        steps.main(["--only", "everything"])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "everything" in said and said.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line(capsys):
    assert steps.main(["cuda"]) == 2
    assert capsys.readouterr().err == "error: there is no GPU here that torch can use\n"


def test_what_a_gpu_does_not_measure_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert steps.main(["cuda", "--quick", "--only", "share"]) == 2
    assert capsys.readouterr().err == "error: share is not measured on cuda\n"


def test_what_a_gpu_measures():
    """In fp16, the most important tables in all precisions, rivals in fp32; not what is a CPU's
    alone."""
    rows = cases.cases("cuda", quick=False)
    assert {c.table for c in rows} == set(cases.NAMES) - {"share", "bf16", "bf16_eval"}
    for table in ("p2c", "eval", "capture"):
        assert {c.prec for c in rows if c.table == table} == {"fp32", "fp16", "bf16", "amp"}
    for table in ("maple", "cocoop", "overhead", "memory"):
        assert {c.prec for c in rows if c.table == table} == {"fp16"}
    assert {c.prec for c in rows if c.is_rival} == {"fp32"}
    assert {c.device for c in rows} == {"cuda"}


def other_bias(*args) -> Tensor:
    return 30 * cocoop_plain.bias(*args)


@pytest.mark.parametrize(
    ("table", "where", "what"),
    [
        ("maple", "FROZEN_WORDS", {**plain.FROZEN_WORDS, "MaPLe": "on the"}),
        ("p2c", "maple_plain.deep_text_prompts", lambda _: {}),
        ("eval", "maple_plain.deep_visual_prompts", lambda _: {}),
        ("cocoop", "cocoop_plain", type("Other", (), {"bias": staticmethod(other_bias)})),
    ],
)
def test_paths_that_differ_end_in_one_line(table, where, what, monkeypatch, capsys):
    monkeypatch.setattr(f"bench.plain.{where}", what)
    assert steps.main([*QUICK, "--only", table]) == 1
    err = capsys.readouterr().err.splitlines()
    assert [line for line in err if not line.startswith(("[", "Precision"))] == [err[-1]]
    assert err[-1].startswith("error: ") and "they differ" in err[-1]


@METHODS
def test_the_plain_path_is_the_reference(method, weights):
    """The loss of two steps, the second after the optimizer's."""
    case = tiny(method)
    trainer = ours.our_trainer(case, weights, *ours.WITHOUT_NOISE)
    shake(trainer.model.learner)
    side, batch = plain.Plain(case, weights, trainer), cases.make_batch(case)
    clip, names, attributes = PlainCLIP(weights), cases.class_names(11), ("color", "shape")
    step = side.step(batch)
    for _ in range(2):
        image, label = batch["img"], batch["label"]
        if method == "CoCoOp":
            logits = cocoop_plain.logits(clip, side.prompts, names, image)
        else:
            words = {"frozen_words": "of a"} if method == "MaPLe" else {"attributes": attributes}
            logits = maple_plain.maple_forward(clip, side.prompts, names, image, **words).logits
        expected, before = functional.cross_entropy(logits, label), side.prompts["ctx"].clone()
        torch.testing.assert_close(step(), expected, rtol=1e-5, atol=0)
        assert not torch.equal(before, side.prompts["ctx"])


def test_p2c_is_measured_with_its_noise_and_checked_without(weights):
    case = tiny("P2C")
    side, trainer, both = plain.pair(case, weights)
    shapes, learner = [], trainer.model.learner
    learner.noise = Drawn(learner.noise, shapes, lambda: learner.sigma.item() > 0)
    plain.check(case, trainer, both)
    assert not shapes and learner.sigma > 0
    for step in both:
        step()
    attributes_and_ctx = [side.prompts[name].shape for name in ("ctx_att1", "ctx_att2", "ctx")]
    assert sorted(shapes) == sorted(2 * attributes_and_ctx)


RIVALS = {
    (case.method, case.evaluates): case
    for table in ("rivals", "rivals_eval")
    for case in cases.rivals("cpu", True, table)
}


WITHOUT_DRAWS = ("MMRL", "ReBaPL_MaPLe")


def ones(like: Tensor, *shape: int, seed: int | None = None) -> Tensor:
    return torch.ones(len(like), *shape)


def test_all_rivals_are_measured_at_10_and_100_classes():
    rows = [case for case in cases.cases("cpu", quick=False) if case.is_rival]
    assert len(rows) == len(set(rows)) == 3 * 2 * len(rivals.SIDES)
    assert {(case.method, case.classes) for case in rows} == {
        (method, count) for method in rivals.SIDES for count in (10, 100)
    }


@pytest.mark.parametrize(
    ("method", "evaluates", "where", "what"),
    [
        *((*key, "draws.normal", ones) for key in RIVALS if key[0] not in WITHOUT_DRAWS),
        ("MMRL", False, "mmrl_plain.teacher_features", lambda _, names: torch.ones(len(names), 64)),
        ("MMRL", True, "mmrl_plain.both_logits", lambda clip, f: 2 * [clip.logits(f[2], f[0])]),
        ("ReBaPL_MaPLe", False, "rebapl_plain.mmd", rivals.rebapl_plain.mse),
        ("ReBaPL_MaPLe", True, "rebapl_plain.mean_probability", lambda z: z[0].softmax(1)),
    ],
)
def test_a_rival_that_differs_is_found(method, evaluates, where, what, weights, monkeypatch):
    """Its draws, the loss's parts, the force, the samples; and without a difference none is."""
    case = RIVALS[method, evaluates]
    plain.check(case, *plain.pair(case, weights)[1:])
    module, name = where.split(".")
    other = SimpleNamespace(**vars(getattr(rivals, module)) | {name: what})
    monkeypatch.setattr(rivals, module, other)
    with pytest.raises(Failure, match="they differ"):
        plain.check(case, *plain.pair(case, weights)[1:])


@pytest.mark.parametrize("method", rivals.SIDES)
def test_a_rivals_texts_are_kept_where_the_image_is_not_in_them(method, weights, monkeypatch):
    case, calls = RIVALS[method, True], []
    evaluate = plain.pair(case, weights)[2][1]
    for name in ("encode_prompts", "encode_prompt_tokens"):
        spied = getattr(prompt_text, name)
        monkeypatch.setattr(prompt_text, name, lambda *a, f=spied: calls.append(a) or f(*a))
    evaluate()
    kept = ("unconditional BayesianPrompt", "MMRL", "ReBaPL_MaPLe")
    assert bool(calls) is (method not in kept)


@pytest.mark.parametrize(("method", "of_each"), [("BayesianPrompt", 1), ("EMPL", 1), ("VaMP", 2)])
def test_the_plain_path_encodes_an_image_once_for_all_draws(method, of_each, weights, monkeypatch):
    """VaMP as it is, and with prompts."""
    case, images, tower = RIVALS[method, True], [], PlainCLIP.vision_tower

    def spy(clip: PlainCLIP, image: Tensor, *prompts) -> Tensor:
        images.extend(image)
        return tower(clip, image, *prompts)

    evaluate = plain.pair(case, weights)[2][0]
    monkeypatch.setattr(PlainCLIP, "vision_tower", spy)
    evaluate()
    assert len(images) == of_each * case.batch and case.draws > 1


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
    plain.pair(tiny("MaPLe"), weights)[2][0]()
    assert asked == [False] * 6  # 3 blocks in each tower


def test_the_floor_counts_what_torch_counts(weights, monkeypatch):
    """Products with weights in our towers, forward, without the mapper and the two projections."""
    monkeypatch.setattr("clip.frozen.ONEDNN", False)  # torch does not count its products
    case, arch = tiny("P2C", batch=2), ARCHS["tiny"]
    side, trainer, _ = plain.pair(case, weights)
    learner, clip = trainer.model.learner, trainer.model.clip
    image = cases.make_batch(case)["img"]

    def count(tower: Callable) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tower()
        flops = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        return sum(flops.get(f"aten.{op}", 0) for op in ("mm", "addmm", "convolution"))

    text = count(lambda: learner.text_features(clip)) - 2 * 11 * arch.text_width * arch.embed_dim
    assert floor.text_count(side.prefix, side.suffixes, arch)[0] == text
    n_ctx, projection = len(learner.ctx), 2 * 2 * arch.vision_width * arch.embed_dim
    prompts = torch.zeros(1, n_ctx, arch.vision_width)
    seen = count(lambda: clip.encode_image(image, prompts)) - projection
    assert 2 * floor.image_count(n_ctx, arch)[0] == seen


def test_the_floor_counts_attention():
    """A prefix of 2 and suffixes of 1 and 3 tokens, as pairs of positions written out."""
    arch = ARCHS["tiny"]
    # How many each token sees: those of the prefix, of the suffix of one, of the suffix of three.
    whole = (1 + 2) + 3 + (3 + 4 + 5)
    eots = 3 + 5
    per_pair = 2 * 2 * arch.text_width  # a score and a sum
    assert floor.text_count(2, [1, 3], arch)[1] == per_pair * (2 * whole + eots)


def test_sides_take_turns_in_going_first():
    order = []
    first, second = (lambda c=c: order.append(c) for c in "ab")
    seconds = timing.alternate(first, second, 3, "cpu")
    assert "".join(order) == "baabba" and [len(s) for s in seconds] == [3, 3]


def test_rounds_of_a_gpu_have_several_steps(monkeypatch):
    """After a warm-up as many as half a second has room for, 20 at most."""
    clock, calls = [0.0], []
    monkeypatch.setattr(timing, "synchronize", lambda device: calls.append(device))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def step(name: str, seconds: float) -> None:
        calls.append(name)
        clock[0] += seconds

    slow, quick = lambda: step("slow", 0.11), lambda: step("quick", 0.001)
    seconds = timing.alternate(slow, quick, rounds=2, device="cuda")
    assert seconds == ([pytest.approx(0.11)] * 2, [pytest.approx(0.001)] * 2)
    assert calls.count("slow") == 3 + 1 + 2 * 4 and calls.count("quick") == 3 + 1 + 2 * 20
    assert calls[0] == calls[4] == "cuda" and calls[1:4] == ["slow"] * 3


def test_the_row_of_captured_steps(weights):
    """On a CPU, where none is captured, and where replays are refused."""
    setting = steps.Setting(weights, {"fp32": 1e12}, repeats=1)
    row = steps.capture_row(tiny("P2C", "capture"), setting)
    names = "measurement|usual ms|graph ms|usual / graph: min / median / max"
    assert list(row) == [*names.split("|"), "first step of an epoch ms"]


def test_memory_is_the_peak_of_the_step(weights, monkeypatch):
    """A step that takes 64 MB for a moment, after one that took 128."""

    def take(megabytes: int) -> Tensor:
        torch.ones(megabytes, 2**18)
        return torch.zeros(())

    sides = (lambda: take(128), lambda: take(64))
    monkeypatch.setattr(memory, "pair", lambda *_: (None, None, sides))
    assert memory.memory_of(tiny("P2C", "memory"), "ours", weights) == pytest.approx(64, abs=6)


def test_memory_that_cannot_be_measured_is_one_line():
    with pytest.raises(Failure, match="NoMethod step.*memory ended with 1: KeyError"):
        memory.memory_in_a_process(tiny("NoMethod", "memory"), "plain")


def test_parameters_are_counted_as_the_papers_and_their_code_have_them():
    """Of VaMP, whose paper's number does not fit its text: the sum of its nets' sizes."""
    numbers = {
        "BayesianPrompt/vit_b16": 659_456,
        "BayesianPrompt/vit_b16_unconditional": 3_072,
        "MMRL/vit_b16": 4_992_256,
        "MMRLpp/vit_b16": 813_312,
        "VaMP/vit_b16_c2_ep10_batch4": 2 * 9 * (513 * 32 + 33 * 2048) + 9 * 2 * 768,
        "ReBaPL_MaPLe/vit_b16": 3_555_072,
        "EMPL/vit_b16_ep10_batch1": 4 * 512,
        "ZeroshotCLIP/vit_b16": 0,
    }
    clip_model = parameters.vit_b16()
    for config, number in numbers.items():
        assert parameters.count(clip_model, Path(f"configs/trainers/{config}.yaml"))[0] == number
