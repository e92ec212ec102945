"""Whether Triton kernels can be trusted on a device: they must reproduce plain PyTorch there, gradients included.

Triton comes with PyTorch on Linux; one that does not fit the driver or computes wrongly is refused with the reason.
With TRITON_INTERPRET=1 the kernels run on the CPU in Triton's interpreter, for tests only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnunet_ext.ops.backends import WhyNot, first_line, on_cuda

Function = Callable[..., tuple[Tensor, ...]]

_TOLERANCE = 1e-3


def why_not(device: torch.device, probe: WhyNot) -> str | None:
    """None if kernels run on `device`, else the reason in one line; `probe` answers for a CUDA device with an index."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return on_cuda(device, probe)


def disagreement(kernels: Function, plain: Function, arguments: Callable[[], Sequence[Tensor]]) -> str | None:
    """None if both give the same outputs and gradients of all arguments, else the reason in one line."""
    # Any exception is an answer here: missing compilers, drivers and ptxas raise all kinds.
    try:
        results = []
        for function in (kernels, plain):
            leaves = [x.clone().requires_grad_(True) for x in arguments()]
            outputs = function(*leaves)
            torch.stack([x.square().sum() for x in outputs]).sum().backward()
            results.append([*(x.detach() for x in outputs), *(x.grad for x in leaves)])
        # Python's max would pass over NaN.
        worst = torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(*results, strict=True)]).max().item()
        return None if worst < _TOLERANCE else f"Triton's results are off by {worst:.2g} on this device"
    except Exception as error:
        return f"Triton does not work here ({first_line(error)})"
