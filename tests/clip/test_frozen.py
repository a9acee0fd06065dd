"""Layers with frozen weights against the plain formulas, by both of a CPU's kernels."""

import runpy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clip import frozen, model
from clip.model import MLP, build_model

ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(params=[False, True], ids=["torch", "oneDNN"])
def kernels(request, monkeypatch) -> None:
    if request.param and not frozen.HAS_ONEDNN:
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(frozen, "ONEDNN", request.param)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


def frozen_mlp(dtype: torch.dtype, activation: str = "quick_gelu") -> MLP:
    mlp = MLP(64).double().requires_grad_(False)
    mlp.gelu = nn.GELU() if activation == "gelu" else mlp.gelu
    for i, p in enumerate(mlp.parameters()):
        p.copy_(some(*p.shape, seed=i) / 8)
    return mlp.to(dtype)


def plain_mlp(mlp: MLP, x: Tensor) -> Tensor:
    w1, b1, w2, b2 = (p.double() for p in mlp.parameters())
    h = x.double() @ w1.t() + b1
    if isinstance(mlp.gelu, nn.GELU):
        return (h * (1 + torch.erf(h / 2**0.5)) / 2) @ w2.t() + b2
    return (h / (1 + torch.exp(-1.702 * h))) @ w2.t() + b2


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_the_mlp_and_its_gradient_are_the_formulas(dtype, activation, kernels):
    mlp, x, weights = (
        frozen_mlp(dtype, activation),
        (2 * some(3, 5, 64)).to(dtype),
        some(3, 5, 64, seed=1).to(dtype),
    )
    exact = x.double().clone().requires_grad_()
    expected = plain_mlp(mlp, exact)
    expected.backward(weights.double())
    before = [t.clone() for t in (x, *mlp.parameters())]
    without = mlp(x)
    leaf = x.clone().requires_grad_()
    ours = mlp(leaf)
    ours.backward(weights)
    assert without.dtype == ours.dtype == leaf.grad.dtype == dtype
    assert relative(without, expected.detach()) < ROUNDING[dtype]
    assert relative(ours.detach(), expected.detach()) < ROUNDING[dtype]
    assert relative(leaf.grad, exact.grad) < ROUNDING[dtype]
    for tensor, same in zip((x, *mlp.parameters()), before, strict=True):
        assert torch.equal(tensor, same)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_a_linear_layer_and_its_gradient_are_the_formulas(dtype, kernels):
    x, weight, bias = (
        some(*shape, seed=i).to(dtype) for i, shape in enumerate([(3, 5, 64), (32, 64), (32,)])
    )
    leaf, out = x.clone().requires_grad_(), some(3, 5, 32, seed=4).to(dtype)
    frozen.linear(leaf, weight, bias).backward(out)
    expected = x.double() @ weight.double().t() + bias.double()
    assert relative(frozen.linear(x, weight, bias), expected) < ROUNDING[dtype]
    assert relative(leaf.grad, out.double() @ weight.double()) < ROUNDING[dtype]


def curvature(f, x: Tensor, out: Tensor, alone: bool) -> Tensor:
    """The gradient of |g|², if not `alone` times <f(x), out>, where g is the latter's gradient."""
    y = (f(x) * out).sum()
    [g] = torch.autograd.grad(y, x, create_graph=True)
    return torch.autograd.grad(g.square().sum() * (1 if alone else y), x)[0]


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_gradient_of_the_gradient_is_the_formulas(dtype, alone, activation, kernels):
    """Of layers behind one another, as a layer's own curvature may be zero."""
    mlp, x, out = frozen_mlp(dtype, activation), 2 * some(3, 5, 64), some(3, 5, 64, seed=1)
    weight, bias = some(64, 64, seed=5).to(dtype) / 8, some(64, seed=6).to(dtype)

    def ours(x: Tensor) -> Tensor:
        return frozen.linear(mlp(frozen.linear(mlp(x), weight, bias)), weight, bias)

    def plain(x: Tensor) -> Tensor:
        y = plain_mlp(mlp, x) @ weight.double().t() + bias.double()
        return plain_mlp(mlp, y) @ weight.double().t() + bias.double()

    expected = curvature(plain, x.clone().requires_grad_(), out, alone)
    got = curvature(ours, x.to(dtype).requires_grad_(), out.to(dtype), alone)
    assert relative(got, expected) < 5 * ROUNDING[dtype]


def test_the_mlps_second_gradient_is_the_finite_differences():
    mlp, x = frozen_mlp(torch.float64), some(2, 3, 64).requires_grad_()
    assert torch.autograd.gradgradcheck(mlp, (x,), fast_mode=True)


def test_weights_that_are_trained_have_gradients(kernels):
    layer, mlp = frozen.Linear(64, 64), frozen_mlp(torch.float32)
    mlp.c_proj.bias.requires_grad_()
    mlp(layer(some(5, 64).float())).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in (*layer.parameters(), mlp.c_proj.bias))


class Products(TorchDispatchMode):
    """The operators that ran, and addmm's arguments."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.addmms: list[tuple[Tensor, dict]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        if func is torch.ops.aten.addmm.default:
            self.addmms.append((args[0], kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("vendor", ["AuthenticAMD", "GenuineIntel"])
@pytest.mark.parametrize("simd", ["AVX512", "AVX2"])
@pytest.mark.parametrize("on", ["Linux", "Windows"])
def test_onednn_is_taken_where_it_is_faster(on, vendor, simd, monkeypatch):
    if not frozen.HAS_ONEDNN:
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: simd)

    def read_text(_):
        if on == "Windows":
            raise FileNotFoundError
        return f"vendor_id\t: {vendor}\n"

    monkeypatch.setattr(frozen.Path, "read_text", read_text)
    monkeypatch.setattr(frozen.platform, "processor", lambda: f"AMD64 Family 25, {vendor}")
    chosen = runpy.run_path(frozen.__file__)["ONEDNN"]
    assert chosen is (vendor == "AuthenticAMD" and simd == "AVX512")


def test_the_mlps_biases_are_vectors_added_as_they_are(monkeypatch):
    """What cuBLASLt's bias epilogue asks for; backward there is no bias."""
    monkeypatch.setattr(frozen, "ONEDNN", False)
    x = some(5, 64).float().requires_grad_()
    with Products() as products:
        frozen_mlp(torch.float32)(x).sum().backward()
    assert len(products.addmms) == 2
    assert all(bias.dim() == 1 and options.get("beta", 1) == 1 for bias, options in products.addmms)


def test_the_towers_products_are_onednns(weights, monkeypatch):
    """All of a frozen float32 block's, forward and backward: four and the gradients of four."""
    if not frozen.HAS_ONEDNN:
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(frozen, "ONEDNN", True)
    block = build_model(weights).requires_grad_(False).visual.transformer.resblocks[0]
    with Products() as products:
        block(torch.randn(2, 5, 128, requires_grad=True)).sum().backward()
    assert products.names.count("mkldnn::_linear_pointwise") == 8 and not products.addmms
    assert "aten::mm" not in products.names


@pytest.mark.parametrize("rows", [1, 5])
def test_an_evaluation_encodes_few_images_at_once(rows, clip64, monkeypatch):
    """As all at once; prompts that each image has of its own are not taken apart."""
    images, prompts = some(5, 3, 32, 32), some(rows, 2, 128, seed=1)
    deep, counts = {1: some(rows, 2, 128, seed=2)}, []
    clip64.visual.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    expected = clip64.encode_image(images, prompts, deep)  # with gradients
    monkeypatch.setattr(model, "FEW", 2)
    with torch.no_grad():
        torch.testing.assert_close(clip64.encode_image(images, prompts, deep), expected)
    assert counts == [5, 2, 2, 1] if rows == 1 else [5, 5]
    clip64.encode_image(images, prompts, deep)
    assert counts[-1] == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cpus_attention_in_half_precision_is_rounded_once(dtype):
    """As in single precision, and the gradients too."""
    q, k, v = (some(2, 5, 2, 8, seed=i).to(dtype).requires_grad_() for i in range(3))
    wide = [t.detach().float().requires_grad_() for t in (q, k, v)]
    ours, expected = model.causal_attention(q, k, v), model.causal_attention(*wide)
    out = some(2, 5, 2, 8, seed=3).to(dtype)
    ours.backward(out)
    expected.backward(out.float())
    assert torch.equal(ours, expected.to(dtype))
    for t, w in zip((q, k, v), wide, strict=True):
        assert torch.equal(t.grad, w.grad.to(dtype))
