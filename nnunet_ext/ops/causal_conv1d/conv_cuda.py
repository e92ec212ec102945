"""The CUDA kernel of the causal-conv1d package, used when it is installed and works."""

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
    # Broken builds raise many kinds of exceptions, at import or at the first call.
    try:
        from causal_conv1d import causal_conv1d_fn

        x = torch.ones(1, 8, 8, dtype=torch.float32, device=device)
        causal_conv1d_fn(x, torch.ones_like(x[0, :, :4]), None, activation="silu")
        torch.cuda.synchronize(device)
        return None
    except Exception as error:
        return f"causal-conv1d does not work here ({first_line(error)})"


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Arguments as `causal_conv1d`, x in the order of the scan."""
    if isinstance(x, FakeTensor):  # the package tells nobody the shapes of its results
        return torch.empty_like(x)
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn(x.contiguous(), weight, bias, activation="silu" if silu else None)
