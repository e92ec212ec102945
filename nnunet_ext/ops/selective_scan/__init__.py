"""Selective scan, the recurrence of Mamba (Gu & Dao, arXiv:2312.00752, section 3.2 and algorithm 2).

For every batch entry b, channel d, state n and step t

    delta_t = softplus(delta_t + delta_bias)                     (softplus only if delta_softplus)
    h_t     = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   h_0 = 0
    y_t     = sum_n C_t h_t + D u_t
    out_t   = y_t * SiLU(z_t)                                    (only if z is given)

`selective_scan` has the arguments of mamba-ssm's `selective_scan_fn`. Where it runs:

| backend     | what it is                                             | runs on        |
|-------------|--------------------------------------------------------|----------------|
| `cpu`       | numba kernels, threads and vector registers            | CPU            |
| `reference` | the recurrence, step by step: the definition           | everywhere     |
| `triton`    | Triton kernels, parallel over the sequence as well     | CUDA           |
| `chunked`   | plain PyTorch, parallel over chunks of the sequence    | everywhere     |
| `mamba_ssm` | the CUDA kernel of mamba-ssm, when its build works     | CUDA           |

and, while a network is exported, `exported`, whose loops become those of the exported graph.

A backend is one module with `scan(...)` and `why_not(device)`; `_BACKENDS` names it here. All arithmetic is float32
(float64 for float64 inputs), also under autocast: the state decays over up to 262,144 steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ext.ops import backends
from nnunet_ext.ops.backends import HALVES, SINGLE_AND_DOUBLE, Backend
from nnunet_ext.ops.order import check_orientation, reorder, restore
from nnunet_ext.ops.selective_scan import chunked, cpu, exported, gpu, mamba_cuda, reference

ENVIRONMENT_VARIABLE = "NNUNET_EXT_SCAN"

# In the order of the automatic choice.
_BACKENDS = (
    Backend("mamba_ssm", mamba_cuda.scan, mamba_cuda.why_not, (torch.float32,)),
    Backend("cpu", cpu.scan, cpu.why_not, SINGLE_AND_DOUBLE, follows_order=True),
    Backend("triton", gpu.scan, gpu.why_not, SINGLE_AND_DOUBLE + HALVES, follows_order=True),
    Backend("chunked", chunked.scan, chunked.why_not, SINGLE_AND_DOUBLE),
    Backend("reference", reference.scan, reference.why_not, SINGLE_AND_DOUBLE),
)
_TABLE = {backend.name: backend for backend in _BACKENDS}
_EXPORTED = Backend("exported", exported.scan, exported.why_not, SINGLE_AND_DOUBLE)


def backend_status(device: torch.device | str = "cpu") -> dict[str, str | None]:
    """For every backend, None if it runs on `device`, else one line that says why it does not."""
    return backends.status(_BACKENDS, device)


@torch.compiler.assume_constant_result  # probing imports packages, which torch.compile cannot trace
def choose_backend(device: torch.device, backend: str | None = None, dtype: torch.dtype = torch.float32) -> str:
    """The name of the backend that inputs of this type get; see `backends.choose`.

    Raises:
        ValueError: the name is unknown, or that backend does not run on `device` or does not take such numbers.
    """
    return backends.choose(_BACKENDS, ENVIRONMENT_VARIABLE, device, _arithmetic(dtype), asked=backend)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed in single."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    orientation: str = "forward",
    num_slices: int = 1,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan over the last axis, in one of the orders of `nnunet_ext.ops.order`.

    Whatever the order of the scan, arguments and output lie in memory order.

    Args:
        u: input, (batch, channels, length).
        delta: step sizes, (batch, channels, length).
        A: real decay rates, (channels, states); negative for a stable recurrence.
        B: input weights, (batch, states, length), (batch, groups, states, length) or constant (channels, states).
        C: output weights, shaped like one of the forms of B.
        D: skip weights, (channels,).
        z: gate, (batch, channels, length).
        delta_bias: added to delta before the softplus, (channels,).
        delta_softplus: apply softplus to the step sizes.
        return_last_state: also return h after the last step.
        orientation: forward, reverse or slices.
        num_slices: how many equal parts the order `slices` interleaves.
        backend: see the module's table; None asks NNUNET_EXT_SCAN, then chooses automatically.

    Returns:
        The output, (batch, channels, length), in the type of `u`; with `return_last_state` also the last state,
        (batch, channels, states), in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes do not fit, A is complex, the orientation is unknown, num_slices does not divide the length,
            or the backend is unknown, does not run here or does not take such numbers.
    """
    B, C = _check(u, delta, A, B, C, D, z, delta_bias)
    check_orientation(orientation, num_slices, u.shape[2])
    exporting = torch.compiler.is_exporting()
    taken = _EXPORTED if exporting else _TABLE[choose_backend(u.device, backend, u.dtype)]
    compute = _arithmetic(u.dtype)
    stays = [dtype for dtype in HALVES if dtype in taken.dtypes]
    sequences = [x if x is None or x.dtype in stays else x.to(compute) for x in (u, delta, B, C, z)]
    A, D, delta_bias = (None if x is None else x.to(compute) for x in (A, D, delta_bias))
    order: tuple[str, int] | tuple[()] = (orientation, num_slices)
    with torch.autocast(u.device.type, enabled=False):
        if not taken.follows_order:
            sequences = [None if x is None else reorder(x, orientation, num_slices) for x in sequences]
            order = ()
        x, delta, B, C, z = sequences
        out, last_state = taken.function(x, delta, A, B, C, D, z, delta_bias, delta_softplus, *order)
        if not order:
            out = restore(out, orientation, num_slices)
    out = out.to(u.dtype)
    return (out, last_state) if return_last_state else out


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Check all shapes; return B and C as (batch, groups, states, length)."""
    if u.dim() != 3:
        raise ValueError(f"u must be (batch, channels, length), not {tuple(u.shape)}")
    batch, channels, length = u.shape
    for name, tensor in (("delta", delta), ("z", z)):
        if tensor is not None and tensor.shape != u.shape:
            raise ValueError(f"{name} must have the shape of u, {tuple(u.shape)}, not {tuple(tensor.shape)}")
    if A.is_complex():
        raise ValueError("A must be real: complex decay rates (S4) are not part of Mamba-1's layers")
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A must be (channels={channels}, states), not {tuple(A.shape)}")
    for name, tensor in (("D", D), ("delta_bias", delta_bias)):
        if tensor is not None and tensor.shape != (channels,):
            raise ValueError(f"{name} must be ({channels},), not {tuple(tensor.shape)}")
    states = A.shape[1]
    grouped = []
    for name, tensor in (("B", B), ("C", C)):
        shape = tuple(tensor.shape)
        if shape == (channels, states):  # the same at every step: one group per channel
            tensor = tensor[None, :, :, None].expand(batch, channels, states, length)
        elif shape == (batch, states, length):
            tensor = tensor[:, None]
        elif tensor.dim() != 4 or (shape[0], *shape[2:]) != (batch, states, length) or channels % shape[1]:
            raise ValueError(
                f"{name} must be ({batch}, {states}, {length}), ({batch}, groups, {states}, {length}) with groups "
                f"dividing {channels}, or ({channels}, {states}), not {shape}"
            )
        grouped.append(tensor)
    return grouped[0], grouped[1]
