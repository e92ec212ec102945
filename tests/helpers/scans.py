"""Random arguments of a selective scan, one run with all gradients, and the comparison of two."""

from __future__ import annotations

import torch

from nnunet_ext.ops.selective_scan import selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def make(batch=2, channels=6, states=4, length=37, groups=None, dtype=torch.float64, seed=0) -> dict[str, torch.Tensor]:
    """Random arguments with long and short memory side by side."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    weights = (batch, states, length) if groups is None else (batch, groups, states, length)
    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(*weights),
        "C": normal(*weights),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels) - 2,
    }


def run(arguments, backend, **options):
    leaves = {k: v.clone().requires_grad_(True) for k, v in arguments.items()}
    out, last = selective_scan(**leaves, return_last_state=True, backend=backend, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    ((out * weight).sum() + (last * last).sum()).backward()
    return out.detach(), last.detach(), {k: v.grad for k, v in leaves.items()}


def assert_close(actual, expected, name, tolerance):
    """Within a share of the largest entry.

    Double precision rounds by 1e-16, and a few hundred steps and sums leave 1e-14; a backward pass multiplies what
    forward left. Single precision rounds by 6e-8, which the same sums make 1e-6.
    """
    error = (actual - expected).abs().max().item()
    scale = expected.abs().max().item()
    assert error <= tolerance * max(scale, 1e-30), f"{name}: off by {error:.3g} of {scale:.3g}"
