"""Causal depthwise convolution over a sequence, the short filter before Mamba's scan (arXiv:2312.00752, figure 3)."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, silu: bool = False) -> Tensor:
    """Convolve every channel with its own filter that sees only the present and the past.

    y[b, d, t] = bias[d] + sum_k weight[d, k] x[b, d, t - width + 1 + k], x being zero before the first step.
    Uses the causal-conv1d package's kernel on CUDA where it works, else PyTorch's depthwise convolution.

    Args:
        x: (batch, channels, length).
        weight: (channels, width).
        bias: (channels,).
        silu: apply SiLU to the result.

    Returns:
        (batch, channels, length), in the type of `x`.

    Raises:
        ValueError: shapes do not fit.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"x must be (batch, channels, length) and weight (channels, width), not {tuple(x.shape)}, "
            f"{tuple(weight.shape)}"
        )
    if x.is_cuda and 2 <= weight.shape[1] <= 4 and why_not(x.device) is None:
        from causal_conv1d import causal_conv1d_fn

        return causal_conv1d_fn(x.contiguous(), weight, bias, activation="silu" if silu else None)
    width = weight.shape[1]
    y = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=x.shape[1])[..., : x.shape[2]]
    return F.silu(y) if silu else y


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
