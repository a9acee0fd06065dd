"""Training steps replayed as CUDA graphs: one call starts all kernels of a step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dassl.utils import ranks

WARM_UP = 3  # steps before a capture, for what is made at first use
Step = Callable[..., dict[str, Tensor]]


class CapturedStep:
    """Calls `compute`, on CUDA as a replayed graph.

    `compute(*tensors) -> {name: tensor}` leaves gradients in `params`.

    There is a graph for each shape of the tensors. Random numbers are drawn anew at each replay,
    from the generator's seed at that time. But what is Python, as branches and numbers, stays what
    it was at the capture: what changes from step to step must be in tensors. So each graph proves
    itself, after its capture and again in each epoch: beside its replay the step is computed as
    usual, and what that gives is what counts. If the two differ, or a step cannot be captured, a
    line says so, and all are computed as usual.

    Args:
        captured: False for steps that are never captured.
        tolerance: how far the replay's loss and gradients may be from the usual step's, relative to
            their length.
    """

    def __init__(
        self,
        compute: Step,
        params: dict[str, nn.Parameter],
        captured: bool = True,
        tolerance: float = 1e-5,
    ):
        self.compute, self.params = compute, params
        self.refused, self.tolerance = not captured, tolerance
        self.replays: dict[tuple, Step] = {}
        self.proved: set[tuple] = set()  # shapes whose graph has proved itself in this epoch

    def __call__(self, *tensors: Tensor) -> dict[str, Tensor]:
        if self.refused or tensors[0].device.type != "cuda":
            return self.compute(*tensors)
        shapes = tuple((t.shape, t.dtype, t.device) for t in tensors)
        if shapes not in self.replays:
            try:
                self.replays[shapes] = self.capture(tensors)
            except RuntimeError as error:
                why = str(error).splitlines()[0]
                self.refuse(f"Steps are not captured as a CUDA graph, so slower: {why}")
                return self.compute(*tensors)
        if shapes in self.proved:
            return self.replays[shapes](*tensors)
        self.proved.add(shapes)
        return self.prove(self.replays[shapes], tensors)

    def begin_epoch(self) -> None:
        """Each graph is to prove itself again."""
        self.proved.clear()

    def free(self) -> None:
        """Gives the graphs' memory back; the next step is captured anew."""
        if self.replays:
            self.replays.clear()
            self.proved.clear()
            torch.cuda.empty_cache()

    def refuse(self, line: str) -> None:
        """No step is captured or replayed any more; says so."""
        print(line)
        self.refused = True
        self.free()

    def prove(self, replay: Step, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The usual step; refuses the replay if it is not equal to it."""
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.get_state()
        replayed = self.outcome(replay(*tensors))
        generator.set_state(before)
        result = self.compute(*tensors)
        for name, expected in self.outcome(result).items():
            if not near(replayed[name], expected, self.tolerance):
                line = "Steps are no longer replayed as a CUDA graph, so slower"
                self.refuse(f"{line}: its {name} is not the step's")
                break
        return result

    def outcome(self, result: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """Copies of the losses and gradients."""
        found = {name: t.clone() for name, t in result.items() if "loss" in name}
        for name, p in self.params.items():
            found[f"gradient of {name}"] = None if p.grad is None else p.grad.clone()
        return found

    def capture(self, tensors: tuple[Tensor, ...]) -> Step:
        """A replay of `compute`. Parameters and random numbers stay what they were."""
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
                # thread_local: the data loader's thread, which pins memory, must not end it
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    result = self.compute(*static)
        except RuntimeError:
            # Another state: older PyTorch's refuses to draw after a failed capture.
            generator.graphsafe_set_state(before)
            raise
        finally:
            torch.cuda.current_stream().wait_stream(side)
        grads = [p.grad for p in self.params.values()]

        def replay(*tensors: Tensor) -> dict[str, Tensor]:
            for to, t in zip(static, tensors, strict=True):
                to.copy_(t)
            graph.replay()
            for p, grad in zip(self.params.values(), grads, strict=True):
                p.grad = grad
            # copies, since the next replay writes over its own
            return {name: t.clone() for name, t in result.items()}

        return replay


class SharedStep(CapturedStep):
    """A step on a batch of which each of the run's processes has a part (ranks.py).

    Losses and gradients are then those of the whole batch.

    Args:
        share_classes: the processes share the classes too, and so wait for each other amid a step.
            Then it is not captured.
    """

    def __init__(self, *args, captured: bool = True, share_classes: bool = False, **options):
        super().__init__(*args, captured=captured and not share_classes, **options)
        self.share_classes = share_classes

    def __call__(self, *tensors: Tensor) -> dict[str, Tensor]:
        params = self.params.values()
        with ranks.dividing(len(tensors[0]), self.share_classes) as own:
            result = super().__call__(*(t[own] for t in tensors))
            means = ranks.mean([*(p.grad for p in params), *result.values()])
        for p, grad in zip(params, means, strict=False):
            p.grad = grad
        return dict(zip(result, means[len(params) :], strict=True))

    def begin_epoch(self) -> None:
        """All go on from the first's parameters: what is not added up may be rounded otherwise."""
        super().begin_epoch()
        ranks.take_firsts(p.data for p in self.params.values())


def near(x: Tensor | None, expected: Tensor | None, tolerance: float) -> bool:
    """|x - expected| <= tolerance · |expected|, infinite and NaN in the same places."""
    if x is None or expected is None:
        return x is expected
    finite = expected.isfinite()
    if not torch.equal(x.isfinite(), finite):
        return False
    x, expected = x[finite].double(), expected[finite].double()
    return bool((x - expected).norm() <= tolerance * expected.norm())
