"""What dassl.engine.capture calls of torch.cuda, on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# On a GPU these make Python wait for the device, which cannot be while a graph is captured.
WAITING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
NAMES = (
    "Stream",
    "CUDAGraph",
    "current_device",
    "current_stream",
    "default_generators",
    "stream",
    "graph",
    "empty_cache",
)


class FakeCuda:
    """`calls` has what was called, in order; `streams[-1]` is the current one."""

    def __init__(self):
        self.calls: list[str] = []
        self.streams = ["main"]
        self.generator = FakeGenerator(self.calls)
        self.default_generators = (self.generator,)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in NAMES:
            patch.setattr(torch.cuda, name, getattr(self, name))

    def current_device(self) -> int:
        return 0

    def empty_cache(self) -> None:
        self.calls.append("empty the cache")

    def Stream(self) -> "FakeStream":
        return FakeStream("side", self.calls)

    def CUDAGraph(self) -> "Tape":
        return Tape(self.calls)

    def current_stream(self) -> "FakeStream":
        return FakeStream(self.streams[-1], self.calls)

    @contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        before = list(self.streams)
        self.streams.append(stream.name)
        try:
            yield
        finally:
            self.streams[:] = before

    @contextmanager
    def graph(self, graph: "Tape", stream: "FakeStream", capture_error_mode: str) -> Iterator[None]:
        """After an error inside, the stream stays the capture's and the generator unfit, as torch
        leaves them."""
        self.calls.append(f"capture on {stream.name}, {capture_error_mode}")
        self.streams.append(stream.name)
        self.generator.capturing, state = True, torch.get_rng_state()
        with graph:
            yield
        torch.set_rng_state(state)  # nothing is drawn by a capture itself
        self.generator.capturing = False
        self.streams.pop()


class Tape(TorchDispatchMode):
    """The operations of what runs inside. As a CUDA graph does, a replay runs no Python of it,
    reads its tensors where they were, writes what comes out where it was, and draws other random
    numbers.
    """

    def __init__(self, calls: list[str]):
        super().__init__()
        self.calls = calls
        self.operations: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(
        self, op: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if op in WAITING:
            raise RuntimeError(
                "CUDA error: operation not permitted when stream is capturing\nand more about it"
            )
        out = op(*args, **(kwargs or {}))
        self.operations.append((op, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        self.calls.append("replay")
        for op, args, kwargs, out in self.operations:
            for to, t in zip(tree_leaves(out), tree_leaves(op(*args, **kwargs)), strict=True):
                if (
                    isinstance(to, Tensor) and to.data_ptr() != t.data_ptr()
                ):  # else a view, or in place
                    to.copy_(t)


class FakeGenerator:
    """The CPU's, which `capturing` makes unfit to draw from in older PyTorch."""

    def __init__(self, calls: list[str]):
        self.calls, self.capturing = calls, False

    def clone_state(self) -> torch.Generator:
        self.calls.append("clone the generator")
        return torch.default_generator.clone_state()

    def get_state(self) -> Tensor:
        return torch.get_rng_state()

    def set_state(self, state: Tensor) -> None:
        self.calls.append("set its numbers")
        torch.set_rng_state(state)

    def graphsafe_set_state(self, other: torch.Generator) -> None:
        self.calls.append("set its state")
        torch.set_rng_state(other.get_state())
        self.capturing = False


class FakeStream:
    def __init__(self, name: str, calls: list[str]):
        self.name, self.calls = name, calls

    def wait_stream(self, other: "FakeStream") -> None:
        self.calls.append(f"{self.name} waits for {other.name}")


class OnGpu(Tensor):
    """A tensor that says it is on a GPU: `tensor.as_subclass(OnGpu)`. What is computed of it are
    plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: torch.device("cuda"))
