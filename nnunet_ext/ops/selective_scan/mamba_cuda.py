"""The CUDA kernel of the mamba-ssm package, used when it is installed and works.

Importing mamba-ssm proves nothing: builds without the kernel import and fail at the call. So the kernel is called
once on a tiny tensor, and whatever goes wrong is the reason that is reported.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def why_not(device: torch.device) -> str | None:
    """None if the kernel ran on this device, else the reason in one line."""
    if device.type != "cuda":
        return "needs a CUDA device"
    return _probe(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _probe(index: int) -> str | None:
    # Any exception is an answer here: broken builds raise ImportError, RuntimeError, NameError and others.
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        x = torch.ones(1, 2, 4, device=f"cuda:{index}")
        weights = torch.ones(1, 1, 4, device=x.device)
        out = selective_scan_fn(x, x, -torch.ones(2, 1, device=x.device), weights, weights)
        torch.cuda.synchronize(index)
        return None if bool(torch.isfinite(out).all()) else "mamba-ssm's kernel returned values that are not finite"
    except ImportError as error:
        return f"mamba-ssm cannot be imported ({_first_line(error)}); pip install 'nnunet-ext[mamba]'"
    except Exception as error:
        return f"mamba-ssm is installed but its kernel fails ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Arguments as `selective_scan`, B and C as (batch, groups, states, length). Returns output and last state."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if u.dtype == torch.float64:
        raise ValueError("the mamba_ssm backend computes in float32; use chunked or reference for float64")
    return selective_scan_fn(
        u.contiguous(),
        delta.contiguous(),
        A.contiguous(),
        B.contiguous(),
        C.contiguous(),
        D=D,
        z=None if z is None else z.contiguous(),
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        return_last_state=True,
    )
