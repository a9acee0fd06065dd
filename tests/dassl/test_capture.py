"""The order of things in a capture, with CUDA's part played by a recorder."""

from contextlib import contextmanager

import pytest
import torch

from dassl.engine.capture import WARM_UP, CapturedStep


class FakeCuda:
    """What capture() calls of torch.cuda. A replayed "graph" computes once more on the tensors it was recorded with."""

    def __init__(self):
        self.calls: list[str] = []
        self.streams = ["main"]
        self.recording = self.recorded = None
        self.broken = False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("Stream", "CUDAGraph", "current_stream", "stream", "graph", "get_rng_state", "set_rng_state"):
            patch.setattr(torch.cuda, name, getattr(self, name))

    def Stream(self):
        return FakeStream("side")

    def CUDAGraph(self):
        return self

    def current_stream(self):
        return FakeStream(self.streams[-1])

    @contextmanager
    def stream(self, stream):
        before = list(self.streams)
        self.streams.append(stream.name)
        try:
            yield
        finally:
            self.streams[:] = before

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        self.calls.append(f"capture on {stream.name}, {capture_error_mode}")
        if self.broken:
            self.streams.append("capture's own")  # torch leaves it so
            raise RuntimeError("CUDA error: operation failed")
        yield

    def get_rng_state(self):
        self.calls.append("get rng")
        return "state"

    def set_rng_state(self, state):
        self.calls.append(f"set rng to {state}")

    def replay(self):
        self.calls.append("replay")
        self.recorded()


class FakeStream:
    def __init__(self, name: str):
        self.name = name

    def wait_stream(self, other) -> None:
        pass


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def make(cuda: FakeCuda) -> tuple[CapturedStep, torch.nn.Parameter]:
    p = torch.nn.Parameter(torch.ones(2))

    def compute(x):
        cuda.calls.append(f"compute on {cuda.streams[-1]}")
        p.grad = None
        loss = (p * x).sum()
        loss.backward()
        return {"loss": loss.detach()}

    step = CapturedStep(compute, [p])
    return step, p


def test_warm_up_and_capture_share_a_stream_and_leave_the_random_numbers(cuda):
    step, p = make(cuda)
    replay = step.capture((torch.tensor([1.0, 2.0]),))
    warm = ["compute on side"] * WARM_UP
    assert cuda.calls == ["get rng", *warm, "set rng to state", "capture on side, thread_local", "compute on side"]
    assert cuda.streams == ["main"]
    captured = p.grad
    cuda.recorded = lambda: captured.fill_(5.0)
    p.grad = None
    first = replay(torch.tensor([3.0, 4.0]))
    assert p.grad is captured and captured.tolist() == [5.0, 5.0]
    assert first["loss"] is not replay(torch.tensor([3.0, 4.0]))["loss"]  # a copy, which the next replay leaves alone


def test_after_a_capture_that_failed_the_stream_is_the_old_one(cuda):
    cuda.broken = True
    step, _ = make(cuda)
    with pytest.raises(RuntimeError):
        step.capture((torch.ones(2),))
    assert cuda.streams == ["main"]


def test_inputs_are_copied_to_where_the_graph_reads_them(cuda):
    seen = []
    step = CapturedStep(lambda x: {"x": x}, [])
    replay = step.capture((torch.zeros(2),))
    cuda.recorded = lambda: None
    seen.append(replay(torch.tensor([3.0, 4.0]))["x"])
    seen.append(replay(torch.tensor([5.0, 6.0]))["x"])
    assert torch.stack(seen).tolist() == [[3.0, 4.0], [5.0, 6.0]]


def test_without_cuda_it_is_the_plain_step(cuda):
    step, p = make(cuda)
    assert step(torch.tensor([1.0, 2.0]))["loss"] == 3 and p.grad.tolist() == [1.0, 2.0]
    assert cuda.calls == ["compute on main"]
