"""Training steps replayed as CUDA graphs: one call starts all kernels of a step."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

WARM_UP = 3  # steps before a capture, for what is made at first use


class CapturedStep:
    """Calls `compute(*tensors) -> {name: tensor}`, which leaves gradients in `params`; on CUDA as a replayed graph.

    There is a graph for each shape of the tensors. Random numbers are drawn anew at each replay, from the generator's
    seed at that time. But what is Python, as branches and numbers, stays what it was at the capture: what changes from
    step to step must be in tensors. If a step cannot be captured, a line says so, and all are computed as usual.
    """

    def __init__(self, compute: Callable[..., dict[str, Tensor]], params: Iterable[nn.Parameter]):
        self.compute, self.params = compute, list(params)
        self.replays: dict[tuple, Callable[..., dict[str, Tensor]]] = {}
        self.refused = False

    def __call__(self, *tensors: Tensor) -> dict[str, Tensor]:
        shapes = tuple((t.shape, t.dtype, t.device) for t in tensors)
        if shapes not in self.replays and tensors[0].device.type == "cuda" and not self.refused:
            try:
                self.replays[shapes] = self.capture(tensors)
            except RuntimeError as error:
                print(f"Steps are not captured as a CUDA graph, so slower: {str(error).splitlines()[0]}")
                self.refused = True
                self.replays.clear()  # they draw from the state that the generator had
        return self.replays.get(shapes, self.compute)(*tensors)

    def capture(self, tensors: tuple[Tensor, ...]) -> Callable[..., dict[str, Tensor]]:
        """Takes no step: the parameters, and the random numbers to come, are what they were. Also where it fails."""
        static = [t.clone() for t in tensors]
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before, side = generator.clone_state(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        try:
            # Also after a capture that failed, this stream is the current one again.
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.compute(*static)
                generator.set_state(before.get_state())
                graph = torch.cuda.CUDAGraph()
                # thread_local: the data loader's thread, which pins memory, must not end the capture.
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    result = self.compute(*static)
        except RuntimeError:
            # Another state, since in older PyTorch one whose capture failed refuses to draw outside of a capture.
            generator.graphsafe_set_state(before)
            raise
        finally:
            torch.cuda.current_stream().wait_stream(side)
        grads = [p.grad for p in self.params]

        def replay(*tensors: Tensor) -> dict[str, Tensor]:
            for to, t in zip(static, tensors, strict=True):
                to.copy_(t)
            graph.replay()
            for p, grad in zip(self.params, grads, strict=True):
                p.grad = grad
            return {name: t.clone() for name, t in result.items()}  # the next replay writes over its own

        return replay
