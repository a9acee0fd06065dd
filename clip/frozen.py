"""Linear layers with frozen weights: cheaper gradients, and faster products on CPUs."""

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _is_amd() -> bool:
    """As Linux says in a file and Windows in the processor's name."""
    try:
        found = Path("/proc/cpuinfo").read_text()
    except OSError:
        found = platform.processor()
    return "AuthenticAMD" in found


# Torch gives float32 products to MKL, which leaves AVX-512 unused on AMD's CPUs: oneDNN is twice
# as fast there, and slower on Intel's (python -m bench.cpu). The operator is torch.compile's and
# not public: a version of torch without it computes as usual.
HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
ONEDNN = HAS_ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd()


def _by_onednn(x: Tensor) -> bool:
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    """(…, K), (N, K), (N,) -> (…, N); `then` is oneDNN's name of an activation."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(…, K), (K, N) -> (…, N)."""
    if not _by_onednn(x):
        return x @ weight
    product = _FrozenLinear.apply if torch.is_grad_enabled() else _onednn
    return product(x, weight.t(), None)


def is_frozen(x: Tensor, *parameters: Tensor) -> bool:
    """Whether none is trained. Not under autocast, which casts for torch's own functions.

    Nor where a graph is traced: other programs know torch's own functions alone.
    """
    trained, traced = any(p.requires_grad for p in parameters), torch.compiler.is_compiling()
    return not (trained or traced or torch.is_autocast_enabled(x.device.type))


class _FrozenLinear(torch.autograd.Function):
    """oneDNN's operator has no gradient of its own; this one's can be differentiated again."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _product(grad, *ctx.saved_tensors), None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear, (…, K), (N, K), (N,) -> (…, N); up to rounding."""
    if _by_onednn(x) and is_frozen(x, weight, bias):
        return _FrozenLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear, (…, K) -> (…, N), that is faster where it is frozen."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class FrozenMLP(torch.autograd.Function):
    """Linear, QuickGELU, linear: (…, W) -> (…, W), and what is kept for the gradient, or None.

    x · sigmoid(a x) is silu(a x) / a, and the matrix products take the factors along: one
    pass over the large hidden layer instead of three, and one tensor kept for the gradient.

    What is kept is an output, as only so a gradient's gradient sees how it depends on x.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        kept = ctx.needs_input_grad[0]
        if _by_onednn(x):
            h = _onednn(1.702 * x, w1, 1.702 * b1, "none" if kept else "swish")  # (…, 4 W)
            y = _onednn(F.silu(h) if kept else h, w2, 1.702 * b2).mul_(1 / 1.702)
        else:
            # On CUDA cuBLASLt adds a bias itself that is a vector with beta 1 (torch < 2.12).
            h = torch.addmm(1.702 * b1, x.flatten(0, -2), w1.t(), alpha=1.702)  # (tokens, 4 W)
            y = torch.addmm(b2, F.silu(h, inplace=not kept), w2.t(), alpha=1 / 1.702)
            y, h = (t.view(*x.shape[:-1], -1) for t in (y, h))  # (…, W) and (…, 4 W)
        if not kept:
            return y, None
        ctx.save_for_backward(h, w1, w2)
        return y, h

    @staticmethod
    def backward(
        ctx, grad: Tensor | None, grad_h: Tensor | None
    ) -> tuple[Tensor | None, None, None, None, None]:
        """There is a grad_h in a second differentiation alone; either may be absent there."""
        h, w1, w2 = ctx.saved_tensors
        g = None if grad_h is None else 1.702 * grad_h  # (…, 4 W)
        if grad is not None:
            # The factor before silu and the one behind it cancel.
            through = _silu_backward(_product(grad, w2), h)
            g = through if g is None else g + through
        return None if g is None else _product(g, w1), None, None, None, None


def _silu_backward(grad: Tensor, h: Tensor) -> Tensor:
    """grad · silu'(h). torch's operator cannot be differentiated again."""
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(grad, h)
    s = h.sigmoid()
    return grad * s * (1 + h * (1 - s))
