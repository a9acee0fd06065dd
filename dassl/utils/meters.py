"""Averages of what a training step returns."""

from collections import defaultdict

from torch import Tensor


class AverageMeter:
    """Last value and average. Tensors stay on their device until they are read."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forgets all values."""
        self._val = self._sum = 0.0
        self.count = 0

    def update(self, val: float | Tensor, n: int = 1) -> None:
        """Takes a number or 0-dim tensor that stands for n."""
        if isinstance(val, Tensor):
            val = val.detach().float()  # a half sum would overflow
        self._val = val
        self._sum = self._sum + val * n
        self.count += n

    # read here, which waits for the device
    val = property(lambda self: float(self._val))
    sum = property(lambda self: float(self._sum))
    avg = property(lambda self: self.sum / max(self.count, 1))


class MetricMeter:
    """AverageMeters by name; `str()` reads them: "loss 1.2031 (1.4417) acc …"."""

    def __init__(self, delimiter: str = " "):
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, metrics: dict[str, float | Tensor] | None) -> None:
        """Takes what `forward_backward` returns: numbers or 0-dim tensors by name, or None."""
        for name, value in (metrics or {}).items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(
            f"{name} {_four(m.val)} ({_four(m.avg)})" for name, m in self.meters.items()
        )


def _four(x: float) -> str:
    """Four decimals, or where these would show nothing, two digits."""
    return f"{x:.4f}" if x == 0 or not abs(x) < 5e-5 else f"{x:.1e}"
