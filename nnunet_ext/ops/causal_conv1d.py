"""Causal depthwise convolution over a sequence, the short filter before Mamba's scan (arXiv:2312.00752, figure 3)."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.ops import conv_cpu
from nnunet_ext.ops.compiled import why_no_numba
from nnunet_ext.ops.order import check_orientation, reorder, restore


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    silu: bool = False,
    *,
    orientation: str = "forward",
    num_slices: int = 1,
) -> Tensor:
    """Convolve every channel with its own filter that sees only the present and the past.

    y[b, d, t] = bias[d] + sum_k weight[d, k] x[b, d, t - width + 1 + k], x being zero before the first step.
    Past and future are those of an order of `nnunet_ext.ops.order`; x and y lie in memory order. Uses the causal-conv1d
    package's kernel on CUDA where it works, a numba kernel on the CPU, else PyTorch's depthwise convolution.

    Args:
        x: (batch, channels, length).
        weight: (channels, width).
        bias: (channels,).
        silu: apply SiLU to the result.
        orientation: forward, reverse or slices.
        num_slices: how many equal parts the order `slices` interleaves.

    Returns:
        (batch, channels, length), in the type of `x`.

    Raises:
        ValueError: shapes do not fit, the orientation is unknown, or num_slices does not divide the length.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"x must be (batch, channels, length) and weight (channels, width), not {tuple(x.shape)}, "
            f"{tuple(weight.shape)}"
        )
    check_orientation(orientation, num_slices, x.shape[2])
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and why_no_numba() is None:
        return conv_cpu.convolve(x, weight.to(x.dtype), bias, silu, orientation, num_slices)
    ordered = reorder(x, orientation, num_slices)
    if x.is_cuda and 2 <= weight.shape[1] <= 4 and why_not(x.device) is None:
        from causal_conv1d import causal_conv1d_fn

        y = causal_conv1d_fn(ordered.contiguous(), weight, bias, activation="silu" if silu else None)
    else:
        width = weight.shape[1]
        y = F.conv1d(ordered, weight[:, None], bias, padding=width - 1, groups=x.shape[1])[..., : x.shape[2]]
        y = F.silu(y) if silu else y
    return restore(y, orientation, num_slices)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, silu: bool = False) -> Tensor:
    """The sum of the docstring above, term by term."""
    width = weight.shape[1]
    padded = F.pad(x, (width - 1, 0))
    y = sum(weight[:, k, None] * padded[..., k : k + x.shape[2]] for k in range(width))
    assert isinstance(y, Tensor)
    if bias is not None:
        y = y + bias[:, None]
    return y * torch.sigmoid(y) if silu else y


def why_not(device: torch.device) -> str | None:
    """None if causal-conv1d's kernel runs on `device`, else the reason in one line."""
    return _probe(device.type, device.index)


@functools.cache
def _probe(kind: str, index: int | None) -> str | None:
    if kind != "cuda":
        return "needs a CUDA device"
    # Broken builds raise many kinds of exceptions, at import or at the first call.
    try:
        from causal_conv1d import causal_conv1d_fn

        x = torch.ones(1, 8, 8, device=torch.device(kind, index))
        causal_conv1d_fn(x, torch.ones(8, 4, device=x.device), None, activation="silu")
        return None
    except Exception as error:
        return f"causal-conv1d does not work here ({(str(error).splitlines() or [type(error).__name__])[0]})"
