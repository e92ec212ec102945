"""The causal convolution against its written-out sum, in every order, gradients included."""

from __future__ import annotations

import pytest
import torch

from nnunet_ext.ops import order
from nnunet_ext.ops.causal_conv1d import causal_conv1d, choose_backend
from nnunet_ext.ops.causal_conv1d.reference import reference
from nnunet_ext.ops.order import reorder, restore


@pytest.fixture(params=["cpu", "plain"])
def way(request, monkeypatch):
    """The numba kernels in blocks shorter than the filter as well as longer, and PyTorch's convolution."""
    monkeypatch.setattr(order, "_BLOCK", 20)
    monkeypatch.setattr(order, "_LONGEST_BLOCK", 20)
    # Named, not left to the choice: without numba that would be PyTorch's convolution a second time.
    monkeypatch.setenv("NNUNET_EXT_CONVOLUTION", request.param)


def compare(leaves, tolerance=1e-12, silu=False, orientation="forward", num_slices=1):
    results = []
    for ours in (True, False):
        own = [x.clone().requires_grad_(True) for x in leaves]
        if ours:
            out = causal_conv1d(*own, silu=silu, orientation=orientation, num_slices=num_slices)
        else:
            ordered = reorder(own[0], orientation, num_slices)
            out = restore(reference(ordered, *own[1:], silu=silu), orientation, num_slices)
        (out**2).sum().backward()
        results.append([out.detach(), *[x.grad for x in own]])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)


def make(length, width=4):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in [(2, 5, length), (5, width), (5,)]]


@pytest.mark.parametrize("length", [1, 3, 4, 50])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_reference(length, silu, with_bias, way):
    leaves = make(length)
    compare(leaves if with_bias else leaves[:2], silu=silu)


@pytest.mark.parametrize("width", [1, 4, 23])
@pytest.mark.parametrize(("orientation", "num_slices"), [("reverse", 1), ("slices", 4), ("slices", 30), ("slices", 60)])
def test_orders(orientation, num_slices, width, way):
    compare(make(60, width), silu=True, orientation=orientation, num_slices=num_slices)


def test_strided_single_precision(way):
    leaves = [x.float() for x in make(50)]
    leaves[0] = torch.cat([leaves[0], leaves[0]], 1)[:, :5]
    compare(leaves, 1e-4, silu=True)  # sums of 100 products in single precision, in two orders


def test_sees_no_future():
    x = torch.randn(1, 3, 20)
    weight = torch.randn(3, 4)
    changed = x.clone()
    changed[..., 10:] += 1
    torch.testing.assert_close(causal_conv1d(x, weight)[..., :10], causal_conv1d(changed, weight)[..., :10])


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="weight"):
        causal_conv1d(torch.zeros(1, 3, 8), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="num_slices=3 does not divide"):
        causal_conv1d(torch.zeros(1, 3, 8), torch.zeros(3, 4), orientation="slices", num_slices=3)
    with pytest.raises(ValueError, match="orientation='sideways'"):
        causal_conv1d(torch.zeros(1, 3, 8), torch.zeros(3, 4), orientation="sideways")


def test_argument_then_variable_then_what_takes_the_input(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_backend(cpu) == "cpu" and choose_backend(cpu, dtype=torch.bfloat16) == "plain"
    monkeypatch.setenv("NNUNET_EXT_CONVOLUTION", "plain")
    assert choose_backend(cpu) == "plain" and choose_backend(cpu, "cpu") == choose_backend(cpu, "auto") == "cpu"
    monkeypatch.setenv("NNUNET_EXT_CONVOLUTION", "cpu")
    with pytest.raises(ValueError, match=r"CONVOLUTION='cpu' does not run on cpu: takes float32, float64, not float16"):
        causal_conv1d(torch.zeros(1, 3, 8).half(), torch.zeros(3, 4).half())
    with pytest.raises(ValueError, match="backend='causal_conv1d' does not run on cpu: takes filters of 2 to 4 steps"):
        causal_conv1d(torch.zeros(1, 3, 8), torch.zeros(3, 5), backend="causal_conv1d")
    with pytest.raises(ValueError, match="backend='numba' is no backend; use auto or one of causal_conv1d, cpu"):
        causal_conv1d(torch.zeros(1, 3, 8), torch.zeros(3, 4), backend="numba")
