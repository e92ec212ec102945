"""Causal depthwise convolution over a sequence, the short filter before Mamba's scan (arXiv:2312.00752, figure 3)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.ops.causal_conv1d import cpu, gpu
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
    Past and future are those of an order of `nnunet_ext.ops.order`; x and y lie in memory order. `choose_kernel` says
    what computes it.

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
    convolve, _ = KERNELS[choose_kernel(x.device, x.dtype, weight.shape[1])]
    return convolve(x, weight, bias, silu, orientation, num_slices)


@torch.compiler.assume_constant_result  # probing imports packages, which torch.compile cannot trace
def choose_kernel(device: torch.device, dtype: torch.dtype = torch.float32, width: int = 4) -> str:
    """The first that runs on `device` and takes this type of numbers and width of filter.

    `causal_conv1d`: the package's CUDA kernel. `cpu`: numba kernels. `triton`: Triton kernels. `plain`: PyTorch's
    depthwise convolution. The first and the last copy sequences into the order of the scan, the others read by index.
    """
    takes = {
        "causal_conv1d": 2 <= width <= 4 and dtype in (torch.float32, torch.float16, torch.bfloat16),
        "cpu": dtype in (torch.float32, torch.float64),
        "triton": 1 <= width <= gpu.WIDEST and dtype.is_floating_point,
        "plain": True,
    }
    return next(name for name, (_, refuses) in KERNELS.items() if takes[name] and refuses(device) is None)


def kernel_status(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """For every kernel, None if it runs on `device`, else one line that says why it does not."""
    return {name: refuses(torch.device(device)) for name, (_, refuses) in KERNELS.items()}


def _package(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, orientation: str, num_slices: int) -> Tensor:
    from causal_conv1d import causal_conv1d_fn

    ordered = reorder(x, orientation, num_slices).contiguous()
    return restore(
        causal_conv1d_fn(ordered, weight, bias, activation="silu" if silu else None), orientation, num_slices
    )


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, orientation: str, num_slices: int) -> Tensor:
    width = weight.shape[1]
    ordered = reorder(x, orientation, num_slices)
    y = F.conv1d(ordered, weight[:, None], bias, padding=width - 1, groups=x.shape[1])[..., : x.shape[2]]
    return restore(F.silu(y) if silu else y, orientation, num_slices)


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


KERNELS: dict[str, tuple[Callable[..., Tensor], Callable[[torch.device], str | None]]] = {
    "causal_conv1d": (_package, why_not),
    "cpu": (cpu.convolve, cpu.why_not),
    "triton": (gpu.convolve, gpu.why_not),
    "plain": (_plain, lambda device: None),
}
