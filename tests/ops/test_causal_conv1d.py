"""The causal convolution against its written-out sum, gradients included."""

from __future__ import annotations

import pytest
import torch

from nnunet_ext.ops.causal_conv1d import causal_conv1d, reference


@pytest.mark.parametrize("length", [1, 3, 4, 50])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_reference(length, silu, with_bias):
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(s, generator=g, dtype=torch.float64) for s in [(2, 5, length), (5, 4), (5,)]]
    if not with_bias:
        leaves = leaves[:2]
    results = []
    for function in (causal_conv1d, reference):
        own = [x.clone().requires_grad_(True) for x in leaves]
        out = function(*own, silu=silu)
        (out**2).sum().backward()
        results.append([out.detach(), *[x.grad for x in own]])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)


def test_sees_no_future():
    x = torch.randn(1, 3, 20)
    weight = torch.randn(3, 4)
    changed = x.clone()
    changed[..., 10:] += 1
    torch.testing.assert_close(causal_conv1d(x, weight)[..., :10], causal_conv1d(changed, weight)[..., :10])


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="weight"):
        causal_conv1d(torch.zeros(1, 3, 8), torch.zeros(4, 4))
