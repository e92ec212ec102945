"""The Triton kernels of the causal convolution, in Triton's interpreter."""

from __future__ import annotations

import inspect

import pytest
import torch
from helpers.interpreter import INTERPRETED, inside, linux_only, outside, passed

from nnunet_ext.ops import causal_conv1d as module
from nnunet_ext.ops import triton_probe
from nnunet_ext.ops.causal_conv1d import backend_status, causal_conv1d, choose_backend, gpu
from nnunet_ext.ops.causal_conv1d.reference import reference
from nnunet_ext.ops.order import reorder, restore

pytestmark = linux_only


@outside
def test_in_the_interpreter():
    assert passed(__file__) == 14


@outside
@pytest.mark.parametrize(
    ("works", "dtype", "width", "chosen"),
    [
        (("causal_conv1d", "triton"), torch.bfloat16, 4, "causal_conv1d"),
        (("causal_conv1d", "triton"), torch.bfloat16, 5, "triton"),
        (("causal_conv1d", "triton"), torch.float64, 4, "triton"),
        (("triton",), torch.float16, 1, "triton"),
        (("triton",), torch.float32, 9, "plain"),
        ((), torch.float32, 4, "plain"),
    ],
    ids=str,
)
def test_choice_on_cuda(works, dtype, width, chosen, monkeypatch):
    def why_not(name):
        return lambda device: None if name in (*works, "plain") else "broken"

    monkeypatch.setattr(module, "_BACKENDS", [b._replace(why_not=why_not(b.name)) for b in module._BACKENDS])
    assert choose_backend(torch.device("cuda"), None, dtype, width) == chosen


@outside
def test_a_probe_sees_wrong_results_and_failures():
    arguments = lambda: [torch.ones(3)]  # noqa: E731
    plain = lambda x: (x * x,)  # noqa: E731
    wrong_gradient = lambda x: (x * x.detach(),)  # noqa: E731
    nan_gradient = lambda x: (x * x + 0 * (x - 1).sqrt(),)  # noqa: E731
    assert triton_probe.disagreement(plain, plain, arguments) is None
    assert "off by 0.5" in (triton_probe.disagreement(wrong_gradient, plain, arguments) or "")
    assert "off by nan" in (triton_probe.disagreement(nan_gradient, plain, arguments) or "")
    assert "not work here ('PTX')" in (triton_probe.disagreement(lambda x: {}["PTX"], plain, arguments) or "")


@inside
def test_the_probe_accepts_these_kernels():
    assert gpu._probe.__wrapped__(torch.device("cpu"), channels=1, length=6) is None


@outside
def test_needs_a_gpu():
    assert backend_status("cpu")["triton"] == "needs a CUDA device"
    assert choose_backend(torch.device("cpu"), None, torch.float16) == "plain"


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of tokens and of channels even at tiny sizes."""
    if INTERPRETED:
        monkeypatch.setattr(gpu, "_TILE", 32)
        monkeypatch.setattr(gpu, "_CHANNELS", 2)
        monkeypatch.setenv("NNUNET_EXT_CONVOLUTION", "triton")


def make(length, width=4, batch=2, channels=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = [(batch, channels, length), (channels, width), (channels,)]
    return [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]


def channels_last(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def compare(x, weight, bias, silu, tolerance=1e-12, orientation="forward", num_slices=1, tolerance_sums=1e-12):
    results = []
    for ours in (True, False):
        leaves = [None if t is None else t.detach().requires_grad_(True) for t in (x, weight, bias)]
        if ours:
            out = causal_conv1d(*leaves, silu=silu, orientation=orientation, num_slices=num_slices)
        else:
            widened = [t if t is None or t.dtype == torch.float64 else t.float() for t in leaves]
            ordered = reorder(widened[0], orientation, num_slices)
            out = restore(reference(ordered, *widened[1:], silu=silu), orientation, num_slices)
        grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
        grads = torch.autograd.grad(out, [t for t in leaves if t is not None], grad.to(x.dtype).to(out.dtype))
        results.append([out, *grads])
    assert results[0][0].dtype == x.dtype
    for name, fast, plain in zip(("out", "grad_x", "grad_weight", "grad_bias"), *results, strict=False):
        error = (fast - plain).abs().max().item()
        allowed = tolerance_sums if name in ("grad_weight", "grad_bias") else tolerance
        assert error <= allowed * plain.abs().max().item(), f"{name}: off by {error:.3g}"


@inside
@pytest.mark.parametrize(
    ("layout", "orientation", "num_slices"),
    [("tokens", "forward", 1), ("tokens", "reverse", 1), ("tokens", "slices", 3), ("channels", "slices", 3)],
)
def test_equals_reference(layout, orientation, num_slices):
    """In either memory layout, with tiles that the last tokens and the last channel do not fill."""
    x, weight, bias = make(33, width=3, channels=2 if layout == "tokens" else 3)
    compare(
        x if layout == "tokens" else channels_last(x),
        weight,
        bias,
        True,
        orientation=orientation,
        num_slices=num_slices,
    )


@inside
@pytest.mark.parametrize(
    ("length", "width", "with_bias", "silu"),
    [(1, 4, False, True), (35, 1, True, True), (5, 8, True, False), (9, 8, False, True)],
    ids=str,
)
def test_widths_and_optional_arguments(length, width, with_bias, silu):
    x, weight, bias = make(length, width, batch=1, channels=1)
    compare(x, weight, bias if with_bias else None, silu)


@inside
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_strided_memory(dtype):
    """Half of a projection's output, as the Mamba layer passes it, in half precision; weights and sums are float32."""
    x, weight, bias = make(15, channels=4, dtype=torch.float32)
    compare(x.to(dtype)[:, :2], weight[:2], bias[:2], True, 1e-2, "slices", 3, tolerance_sums=1e-6)


def run_gradients(*arguments):
    leaves = [t.detach().requires_grad_(True) for t in arguments]
    out = causal_conv1d(*leaves, silu=True)
    return torch.autograd.grad(out, leaves, torch.ones_like(out))


@inside
def test_nan_is_never_swallowed():
    x, weight, bias = make(20, batch=1, channels=2)
    x[0, 1, 9] = float("nan")
    leaf = x.requires_grad_(True)
    out = causal_conv1d(leaf, weight, bias, silu=True)
    expected = reference(leaf, weight, bias, silu=True)
    assert torch.equal(out.isnan(), expected.isnan())
    (grad,), (expected_grad,) = (torch.autograd.grad(y, leaf, torch.ones_like(y)) for y in (out, expected))
    assert torch.equal(grad.isnan(), expected_grad.isnan())


@inside
def test_empty_sequence():
    grad_x, grad_weight, grad_bias = run_gradients(*make(0))
    assert grad_x.shape == (2, 3, 0) and not grad_weight.any() and not grad_bias.any()


@inside
def test_registered_for_compilers(monkeypatch):
    """Schema, shapes and strides without data, and autograd: what torch.compile and DDP build on."""
    monkeypatch.undo()
    x, weight, bias = (t.requires_grad_(True) for t in make(7, width=1, batch=1, channels=2))
    for layout in (torch.Tensor.contiguous, channels_last):
        arguments = (layout(x), weight, bias, True, 0, 1)
        torch.library.opcheck(
            gpu._forward, arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )
        grad = torch.ones_like(x)
        torch.library.opcheck(
            gpu._backward, (*(t.detach() for t in arguments[:3]), True, 0, 1, grad), test_utils="test_faketensor"
        )


@outside
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("adjacent", ["token", "row"])
def test_compiles_for_a_gpu_that_is_not_there(adjacent, architecture):
    """To machine code, by the assembler that comes with Triton: what the interpreter takes, the compiler may refuse."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nnunet_ext.ops.causal_conv1d import triton_kernels as kernels

    tile = {"TOKENS": 512, "CHANNELS": 1} if adjacent == "token" else {"TOKENS": 16, "CHANNELS": 32}
    constants = {"WIDTH": 4, "SILU": True, "ORDER": 2, "COMPUTE": triton.language.float32, **tile}
    for kernel in (kernels.outputs, kernels.gradients):
        signature, constexprs = {}, {}
        for parameter in inspect.signature(kernel.fn).parameters:
            if parameter in constants or parameter.endswith(f"_{adjacent}"):
                signature[parameter], constexprs[parameter] = "constexpr", constants.get(parameter, 1)
            elif parameter in ("length", "channels", "num_slices") or "_" in parameter.replace("grad_", ""):
                signature[parameter] = "i32"
            else:
                signature[parameter] = "*fp32" if parameter in ("weight", "bias", "parts") else "*bf16"
        source = ASTSource(kernel, signature, constexprs)
        assert triton.compile(source, target=GPUTarget("cuda", architecture, 32)).asm["cubin"]
