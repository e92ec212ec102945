"""The causal convolution term by term: the definition the kernels are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, silu: bool = False) -> Tensor:
    """As `causal_conv1d`, forward: x (batch, channels, length), weight (channels, width), bias (channels,)."""
    width = weight.shape[1]
    padded = F.pad(x, (width - 1, 0))
    y = sum(weight[:, k, None] * padded[..., k : k + x.shape[2]] for k in range(width))
    assert isinstance(y, Tensor)
    if bias is not None:
        y = y + bias[:, None]
    return y * torch.sigmoid(y) if silu else y
