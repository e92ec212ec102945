"""Causal depthwise convolution over a sequence, the short filter before Mamba's scan (arXiv:2312.00752, figure 3).

Where it runs:

| backend         | what it is                                                  | runs on    |
|-----------------|-------------------------------------------------------------|------------|
| `causal_conv1d` | the CUDA kernel of the causal-conv1d package, if that works | CUDA       |
| `cpu`           | numba kernels                                               | CPU        |
| `triton`        | Triton kernels                                              | CUDA       |
| `plain`         | PyTorch's depthwise convolution                             | everywhere |

A backend is one module with `convolve(...)` and `why_not(device)`; `_BACKENDS` names it here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ext.ops import backends
from nnunet_ext.ops.backends import HALVES, SINGLE_AND_DOUBLE, Backend
from nnunet_ext.ops.causal_conv1d import conv_cuda, cpu, gpu, plain
from nnunet_ext.ops.order import check_orientation, reorder, restore

ENVIRONMENT_VARIABLE = "NNUNET_EXT_CONVOLUTION"

_ANY = SINGLE_AND_DOUBLE + HALVES
# In the order of the automatic choice.
_BACKENDS = (
    Backend("causal_conv1d", conv_cuda.convolve, conv_cuda.why_not, (torch.float32, *HALVES), widths=range(2, 5)),
    Backend("cpu", cpu.convolve, cpu.why_not, SINGLE_AND_DOUBLE, follows_order=True),
    Backend("triton", gpu.convolve, gpu.why_not, _ANY, follows_order=True, widths=range(1, gpu.WIDEST + 1)),
    Backend("plain", plain.convolve, plain.why_not, _ANY),
)
_TABLE = {backend.name: backend for backend in _BACKENDS}


def backend_status(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """For every backend, None if it runs on `device`, else one line that says why it does not."""
    return backends.status(_BACKENDS, device)


@torch.compiler.assume_constant_result  # probing imports packages, which torch.compile cannot trace
def choose_backend(
    device: torch.device, backend: str | None = None, dtype: torch.dtype = torch.float32, width: int = 4
) -> str:
    """The name of the backend that an input of this type and a filter of this width get; see `backends.choose`.

    Raises:
        ValueError: the name is unknown, or that backend does not run on `device` or does not take the input.
    """
    return backends.choose(_BACKENDS, ENVIRONMENT_VARIABLE, device, dtype, width, asked=backend)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    silu: bool = False,
    *,
    orientation: str = "forward",
    num_slices: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Convolve every channel with its own filter that sees only the present and the past.

    y[b, d, t] = bias[d] + sum_k weight[d, k] x[b, d, t - width + 1 + k], x being zero before the first step.
    Past and future are those of an order of `nnunet_ext.ops.order`; x and y lie in memory order.

    Args:
        x: (batch, channels, length).
        weight: (channels, width).
        bias: (channels,).
        silu: apply SiLU to the result.
        orientation: forward, reverse or slices.
        num_slices: how many equal parts the order `slices` interleaves.
        backend: see the module's table; None asks NNUNET_EXT_CONVOLUTION, then chooses automatically.

    Returns:
        (batch, channels, length), in the type of `x`.

    Raises:
        ValueError: shapes do not fit, the orientation is unknown, num_slices does not divide the length, or the
            backend is unknown, does not run here or does not take such numbers or filters.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"x must be (batch, channels, length) and weight (channels, width), not {tuple(x.shape)}, "
            f"{tuple(weight.shape)}"
        )
    check_orientation(orientation, num_slices, x.shape[2])
    if torch.compiler.is_exporting():  # the others' kernels are no part of any exported graph
        backend = "plain"
    taken = _TABLE[choose_backend(x.device, backend, x.dtype, weight.shape[1])]
    if taken.follows_order:
        return taken.function(x, weight, bias, silu, orientation, num_slices)
    ordered = reorder(x, orientation, num_slices)
    return restore(taken.function(ordered, weight, bias, silu), orientation, num_slices)
