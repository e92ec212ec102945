"""The scan on a GPU without mamba-ssm: Triton kernels (`triton_kernels`), compiled at the first call.

Before the automatic choice takes this backend on a device, one small scan and its gradients are compared with plain
PyTorch there (`triton_probe`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.ops import triton_probe
from nnunet_ext.ops.backends import probed
from nnunet_ext.ops.order import ORIENTATIONS

# Steps and channels of one program's tile, and its warps: a row of channels fills lines of memory, and compiled for
# sm_90 the backward kernel just fits the registers (254 of 255, none spilled; twice the steps spill 744 bytes).
_STEPS = 64
_CHANNELS = 32
_WARPS = 8
# Chunks whose states are carried at once.
_CHUNKS = 64


def why_not(device: torch.device) -> str | None:
    """None if the kernels gave right results on this device, else the reason in one line."""
    return triton_probe.why_not(device, _probe)


@probed
def _probe(device: torch.device, channels: int = 40, length: int = 100) -> str | None:
    from nnunet_ext.ops.selective_scan import chunked

    def arguments():
        g = torch.Generator().manual_seed(0)
        sequence, weights, row = (1, channels, length), (1, 1, 16, length), (channels,)
        shapes = [sequence, sequence, (channels, 16), weights, weights, row, sequence, row]
        values = [torch.randn(shape, generator=g, dtype=torch.float32).to(device) for shape in shapes]
        values[2] = -values[2].exp()
        return values

    return triton_probe.disagreement(
        functools.partial(scan, delta_softplus=True), functools.partial(chunked.scan, delta_softplus=True), arguments
    )


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
    orientation: str = "forward",
    num_slices: int = 1,
) -> tuple[Tensor, Tensor]:
    """Arguments as `selective_scan`, B and C as (batch, groups, states, length). Returns output and last state.

    Sequences whose memory is (batch, length, channels) are read without a copy, and the output is laid out so.
    """
    groups = math.lcm(B.shape[1], C.shape[1])
    # (batch, groups, length, states): autograd undoes the repetition and the transposition.
    B, C = (x.repeat_interleave(groups // x.shape[1], 1).transpose(2, 3).contiguous() for x in (B, C))
    D = torch.zeros_like(A[:, 0]) if D is None else D
    delta_bias = torch.zeros_like(A[:, 0]) if delta_bias is None else delta_bias
    order = ORIENTATIONS.index(orientation)
    out, state, _, _ = _forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, num_slices)
    return out, state


@torch.library.custom_op(
    "nnunet_ext::selective_scan_triton",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor? z, Tensor delta_bias, "
    "bool delta_softplus, int order, int num_slices) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, num_slices):
    """Output, last state, state before every chunk, sums of step sizes of every chunk."""
    results = _forward_shapes(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, num_slices)
    out, state, starts, sums = results
    if u.numel() == 0:
        return out, state.zero_(), starts, sums
    launch, (u_, delta_, z_), A_t, constants = _prepare(u, delta, A, B, z, delta_softplus, order, num_slices)
    last = state.new_empty(u.shape[0], A.shape[1], u.shape[1])
    ends = torch.empty_like(starts)
    launch("chunk_ends", *u_, *delta_, *z_, delta_bias, A_t, B, ends, sums, **constants, BACKWARD=False)
    launch("carry", A_t, ends, sums, last, starts, BACKWARD=False)
    launch("outputs", *u_, *delta_, *z_, delta_bias, A_t, B, C, D, starts, out.transpose(1, 2), **constants)
    state.copy_(last.transpose(1, 2))
    return results


@_forward.register_fake
def _forward_shapes(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, num_slices):
    batch, channels, length = u.shape
    chunks, states, compute = -(-length // _STEPS), A.shape[1], _compute(u)
    return (
        u.new_empty(batch, length, channels).transpose(1, 2),
        u.new_empty(batch, channels, states, dtype=compute),
        u.new_empty(batch, chunks, states, channels, dtype=compute),
        u.new_empty(batch, chunks, channels, dtype=compute),
    )


@torch.library.custom_op(
    "nnunet_ext::selective_scan_triton_backward",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor? z, Tensor delta_bias, "
    "bool delta_softplus, int order, int num_slices, Tensor starts, Tensor sums, Tensor grad_out, Tensor grad_state) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, num_slices, starts, sums, grad_out, grad_state
):
    """Gradients of u, delta, A, B, C, D, z, delta_bias, in that order; the one of a missing z is empty."""
    grads = _backward_shapes(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, num_slices, starts, sums, grad_out, grad_state
    )
    if u.numel() == 0:
        return tuple(x.zero_() for x in grads)
    grad_u, grad_delta, _, _, _, _, grad_z, _ = grads
    launch, (u_, delta_, z_, grad_out_), A_t, constants = _prepare(
        u, delta, A, B, z, delta_softplus, order, num_slices, grad_out
    )
    batch, channels, length = u.shape
    ends, adjoints = torch.empty_like(starts), torch.empty_like(starts)
    last = grad_state.to(starts.dtype).transpose(1, 2).contiguous()
    part_A = torch.empty_like(starts)
    part_D, part_bias = torch.empty_like(sums), torch.empty_like(sums)
    blocks = -(-channels // constants["CHANNELS"])
    part_B, part_C = (starts.new_empty(batch, blocks, length, A.shape[1]) for _ in range(2))
    launch("chunk_ends", *grad_out_, *delta_, *z_, delta_bias, A_t, C, ends, sums, **constants, BACKWARD=True)
    launch("carry", A_t, ends, sums, last, adjoints, BACKWARD=True)
    launch(
        "gradients", *u_, *delta_, *z_, delta_bias, A_t, B, C, D, starts, adjoints, *grad_out_,
        *(x.transpose(1, 2) for x in (grad_u, grad_delta)), grad_u if z is None else grad_z.transpose(1, 2),
        part_B, part_C, part_A, part_D, part_bias, **constants,
    )  # fmt: skip

    def of_weights(part, weights):
        return part.unflatten(1, (weights.shape[1], -1)).sum(2).to(weights.dtype)

    return (
        grad_u, grad_delta, part_A.sum((0, 1)).t().contiguous().to(A.dtype), of_weights(part_B, B),
        of_weights(part_C, C), part_D.sum((0, 1)).to(D.dtype), grad_z, part_bias.sum((0, 1)).to(delta_bias.dtype),
    )  # fmt: skip


@_backward.register_fake
def _backward_shapes(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, order, num_slices, starts, sums, grad_out, grad_state
):
    def like_sequence(x):
        return x.new_empty(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)

    return (
        like_sequence(u), like_sequence(delta), torch.empty_like(A, memory_format=torch.contiguous_format),
        torch.empty_like(B), torch.empty_like(C), torch.empty_like(D),
        u.new_empty(0, 0, 0) if z is None else like_sequence(z), torch.empty_like(delta_bias),
    )  # fmt: skip


def _save(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.order, ctx.num_slices = inputs
    ctx.save_for_backward(*tensors, *output[2:])


def _gradients(ctx, grad_out, grad_state, *_):
    *tensors, starts, sums = ctx.saved_tensors
    u, A = tensors[0], tensors[2]
    grad_out = torch.zeros_like(u) if grad_out is None else grad_out
    grad_state = sums.new_zeros(*u.shape[:2], A.shape[1]) if grad_state is None else grad_state
    grads = _backward(*tensors, ctx.delta_softplus, ctx.order, ctx.num_slices, starts, sums, grad_out, grad_state)
    return (*(None if x is None else g for x, g in zip(tensors, grads, strict=True)), None, None, None)


_forward.register_autograd(_gradients, setup_context=_save)


def _compute(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _prepare(u, delta, A, B, z, delta_softplus, order, num_slices, grad_out=None) -> tuple[Any, ...]:
    """A launcher, sequences with their rows as the kernels take them, A as (states, channels), kernel constants."""
    from triton import language as tl

    from nnunet_ext.ops.selective_scan import triton_kernels

    batch, channels, length = u.shape
    chunks, group_channels = -(-length // _STEPS), channels // B.shape[1]
    # All channels of a program share their weights: with one group the last program may be partly empty.
    width = 1 << (channels - 1).bit_length() if B.shape[1] == 1 else group_channels & -group_channels
    sizes = {
        "STATES": A.shape[1],
        "CHANNELS": min(width, _CHANNELS),
        "COMPUTE": tl.float64 if u.dtype == torch.float64 else tl.float32,
    }
    constants = {
        **{"length": length, "channels": channels, "group_channels": group_channels},
        **{"num_slices": num_slices, "chunks": chunks, "SOFTPLUS": delta_softplus, "GATED": z is not None},
        **{"ORDER": order, "STEPS": _STEPS, "num_warps": _WARPS, **sizes},
    }

    def launch(name, *arguments, **keywords):
        blocks = -(-channels // sizes["CHANNELS"])
        grid = (chunks, blocks, batch)
        if name == "carry":
            grid = (blocks, A.shape[1], batch)
            keywords = {"channels": channels, "chunks": chunks, "CHUNKS": _CHUNKS, **sizes, **keywords}
        with torch.cuda.device_of(u):  # Triton launches on the current device
            getattr(triton_kernels, name)[grid](*arguments, **keywords)

    def rows(x):
        """Channels last in memory, with a whole number of rows between batch entries: copied where it is not so."""
        x = x.transpose(1, 2)
        fits = x.stride(2) == 1 and (batch == 1 or x.stride(0) == length * x.stride(1)) and x.stride(1) >= channels
        x = x if fits else x.contiguous()
        return x, x.stride(1)

    sequences = [rows(u), rows(delta), rows(u if z is None else z)]
    if grad_out is not None:
        sequences.append(rows(grad_out))
    return launch, sequences, A.t().contiguous(), constants
