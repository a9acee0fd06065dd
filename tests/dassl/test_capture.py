"""The order of things in a capture, with CUDA's part played by a recorder."""

import pytest
import torch

from dassl.engine.capture import WARM_UP, CapturedStep, near
from tests.fake_cuda import FakeCuda, OnGpu


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def make(
    cuda: FakeCuda, until_refused: int | None = None
) -> tuple[CapturedStep, list[torch.nn.Parameter]]:
    """A step with two parameters and noise; its compute number `until_refused` is refused."""
    params = [torch.nn.Parameter(torch.tensor(start)) for start in ([1.0, 1.0], [[2.0], [3.0]])]

    def compute(x, y):
        cuda.calls.append(f"compute on {cuda.streams[-1]}")
        drawn = torch.rand(())
        if cuda.calls.count("compute on side") == until_refused and cuda.streams[-1] == "side":
            drawn.item()
            raise RuntimeError("out of memory")
        assert cuda.streams[-1] == "side" or not cuda.generator.capturing, (
            "Offset increment outside graph capture"
        )
        for p in params:
            p.grad = None
        loss = (params[0] * x).sum() * y + (params[1] * x).sum() + 0 * drawn
        loss.backward()
        return {"loss": loss.detach(), "drawn": drawn}

    return CapturedStep(compute, dict(zip("ab", params, strict=True))), params


def on_gpu(*values) -> list[torch.Tensor]:
    return [torch.tensor(value).as_subclass(OnGpu) for value in values]


WARM = ["clone the generator", "side waits for main", *["compute on side"] * WARM_UP]
CAPTURED = ["set its numbers", "capture on side, thread_local", "compute on side"]


def test_what_a_capture_does_in_which_order(cuda):
    step, _ = make(cuda)
    step.capture((torch.tensor([1.0, 2.0]), torch.tensor(1.0)))
    assert cuda.calls == [*WARM, *CAPTURED, "main waits for side"]
    assert cuda.streams == ["main"]


def test_replays_are_the_steps(cuda):
    """Of each batch its own, in two shapes; the first of a shape is also computed, and batches come
    back unchanged."""
    step, params = make(cuda)
    batches = [([1.0, 2.0], 1.0), ([3.0, 4.0], 2.0), ([[5.0, 6.0]] * 2, 3.0)]

    def run(step, batches):
        torch.manual_seed(1)
        return [
            [t.clone() for t in (*step(*batch).values(), *(p.grad for p in params))]
            for batch in batches
        ]

    expected = run(
        step.compute, [[torch.tensor(value) for value in batch] for batch in batches] * 2
    )
    torch.testing.assert_close(run(step, [on_gpu(*batch) for batch in batches] * 2), expected)
    assert cuda.calls.count("replay") == 6 and cuda.calls.count("compute on side") == 2 * (
        WARM_UP + 1
    )
    assert cuda.calls.count("compute on main") == 6 + 2


def test_a_replay_puts_the_gradients_back_and_copies_what_it_logs(cuda):
    step, params = make(cuda)
    tensors = on_gpu([1.0, 2.0], 1.0)
    step(*tensors)
    log = step(*tensors)
    grads = [p.grad for p in params]
    for p in params:
        p.grad = None
    assert step(*tensors)["loss"] is not log["loss"]
    assert all(p.grad is grad for p, grad in zip(params, grads, strict=True))


@pytest.mark.parametrize("refused", [1, WARM_UP + 1], ids=["in the warm-up", "in the capture"])
def test_after_a_capture_that_failed_steps_are_computed_as_usual(cuda, capsys, refused):
    """With the random numbers there would have been, on the same stream, and from a state of the
    generator that is fit to draw from. A line says so, once."""
    step, (first, _) = make(cuda, refused)
    torch.manual_seed(1)
    drawn = [step(*on_gpu([1.0, 2.0], 1.0))["drawn"], step(*on_gpu([[3.0, 4.0]], 2.0))["drawn"]]
    torch.manual_seed(1)
    assert drawn == list(torch.rand(2))
    assert first.grad.tolist() == [6.0, 8.0]
    until = [*WARM, *CAPTURED] if refused > WARM_UP else WARM[:3]
    assert cuda.calls == [*until, "set its state", "main waits for side", *["compute on main"] * 2]
    assert not step.replays
    assert cuda.streams == ["main"]
    what = (
        "operation not permitted when stream is capturing" if refused > WARM_UP else "out of memory"
    )
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("Steps are not captured as a CUDA graph, so slower: ") and line.endswith(
        what
    )


def test_graphs_from_before_a_capture_that_failed_are_not_replayed(cuda):
    """They would draw from the state that the generator no longer has."""
    step, _ = make(cuda, WARM_UP + 2)
    for tensors in (on_gpu([1.0, 2.0], 1.0), on_gpu([[3.0, 4.0]], 2.0), on_gpu([1.0, 2.0], 1.0)):
        step(*tensors)
    assert cuda.calls.count("replay") == 1 and cuda.calls[-2:] == ["compute on main"] * 2


def scaled_step(cuda: FakeCuda, of: str) -> tuple[CapturedStep, torch.nn.Parameter, list[float]]:
    """A step with a Python number in its loss or its gradient, to be changed in the list."""
    w, number = torch.nn.Parameter(torch.tensor([1.0, 2.0])), [1.0]

    def compute(x):
        w.grad = None
        loss = (w * x).sum() + torch.rand(())
        (loss * number[0] if of == "gradient of w" else loss).backward()
        return {"loss": loss.detach() * (number[0] if of == "loss" else 1)}

    return CapturedStep(compute, {"w": w}), w, number


@pytest.mark.parametrize("of", ["loss", "gradient of w"])
def test_a_python_number_that_changes_by_epoch_ends_the_replays(cuda, capsys, of):
    """From the epoch's first step on: what counts is the usual step's, with its random numbers."""
    step, w, number = scaled_step(cuda, of)
    batches, seen, expected = on_gpu([1.0, 2.0], [3.0, 4.0]), [], []
    for run, out in ((step, seen), (step.compute, expected)):
        torch.manual_seed(1)
        for number[0] in (1.0, 1.0 + 1e-4, 3.0):
            step.begin_epoch()
            for x in batches:
                out += [run(x)["loss"].clone(), w.grad.clone()]
    torch.testing.assert_close(seen, expected)
    [line] = capsys.readouterr().out.splitlines()
    assert (
        line
        == f"Steps are no longer replayed as a CUDA graph, so slower: its {of} is not the step's"
    )
    assert cuda.calls.count("replay") == 3 and not step.replays


def test_rounding_ends_no_replays(cuda, capsys):
    step, _, number = scaled_step(cuda, "gradient of w")
    for number[0] in (1.0, 1.0 + 5e-6):
        step.begin_epoch()
        step(*on_gpu([1.0, 2.0]))
    assert capsys.readouterr().out == "" and step.replays


def test_a_graph_proves_itself_once_an_epoch(cuda):
    step, *_ = scaled_step(cuda, "loss")
    computed = 0
    step.compute, compute = lambda x: (cuda.calls.append("computed"), compute(x))[1], step.compute
    for epoch in range(1, 4):
        step.begin_epoch()
        for _ in range(3):
            step(*on_gpu([1.0, 2.0]))
        computed = cuda.calls.count("computed")
        assert computed == WARM_UP + 1 + epoch


def test_freed_memory_and_a_new_capture(cuda):
    step, *_ = scaled_step(cuda, "loss")
    step.free()
    assert "empty the cache" not in cuda.calls
    [x] = on_gpu([1.0, 2.0])
    step(x)
    step.free()
    assert not step.replays and cuda.calls[-1] == "empty the cache"
    step(x)
    assert (
        cuda.calls.count("capture on side, thread_local") == 2 and cuda.calls.count("replay") == 2
    )


def test_near_is_relative_to_the_length_and_knows_nan():
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([1e3, 1.0, nan, inf])
    assert near(x + torch.tensor([0, 1e-3, 0, 0]), x, 1e-5) and not near(
        x + torch.tensor([0.1, 0, 0, 0]), x, 1e-5
    )
    assert not near(torch.tensor([1e3, 1.0, nan, nan])[:3], torch.tensor([1e3, 1.0, 0.0]), 1e-5)
    assert near(torch.zeros(2), torch.zeros(2), 1e-5) and not near(
        torch.ones(2), torch.zeros(2), 1e-5
    )
    assert near(None, None, 1e-5) and not near(None, x, 1e-5) and not near(x, None, 1e-5)


def test_what_is_not_to_be_captured_is_not(cuda):
    params = {"w": torch.nn.Parameter(torch.ones(()))}
    step = CapturedStep(lambda x: {"loss": x}, params, captured=False)
    step(*on_gpu([1.0]))
    assert cuda.calls == []


def test_without_cuda_it_is_the_plain_step(cuda):
    step, (first, _) = make(cuda)
    assert step(torch.tensor([1.0, 2.0]), torch.tensor(1.0))[
        "loss"
    ] == 18 and first.grad.tolist() == [1.0, 2.0]
    assert cuda.calls == ["compute on main"]
