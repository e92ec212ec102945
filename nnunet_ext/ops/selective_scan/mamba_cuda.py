"""The CUDA kernel of the mamba-ssm package, used when it is installed and works.

Importing mamba-ssm proves nothing: builds without the kernel import and fail at the call. So the kernel is called
once on a tiny tensor, and whatever goes wrong is the reason that is reported.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from nnunet_ext.ops.backends import first_line, on_cuda, probed


def why_not(device: torch.device) -> str | None:
    """None if the kernel ran on this device, else the reason in one line."""
    return on_cuda(device, _probe)


@probed
def _probe(device: torch.device) -> str | None:
    # Any exception is an answer here: broken builds raise ImportError, RuntimeError, NameError and others.
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        x = torch.ones(1, 2, 4, dtype=torch.float32, device=device)
        weights = torch.ones_like(x[:, :1])
        out = selective_scan_fn(x, x, -torch.ones_like(x[0, :, :1]), weights, weights)
        torch.cuda.synchronize(device)
        return None if bool(torch.isfinite(out).all()) else "mamba-ssm's kernel returned values that are not finite"
    except ImportError as error:
        return f"mamba-ssm cannot be imported ({first_line(error)}); pip install 'nnunet-ext[mamba]'"
    except Exception as error:
        return f"mamba-ssm is installed but its kernel fails ({first_line(error)})"


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
    if isinstance(u, FakeTensor):  # the package tells nobody the shapes of its results
        return torch.empty_like(u), u.new_empty(*u.shape[:2], A.shape[1])
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

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
