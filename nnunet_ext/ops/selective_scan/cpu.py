"""The scan on the CPU: numba kernels (`cpu_kernels`), several times faster than plain PyTorch, without a compiler.

Compiled at the first call (some three seconds) and kept on disk. Uses torch.get_num_threads() threads. The forward pass
keeps the states between blocks of the sequence (a thirty-second of its output at sixteen states); the backward pass
recomputes the states within.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.ops.compiled import array, compile_kernel, empty, share_rows, thread_count, why_no_numba
from nnunet_ext.ops.order import blocks_of, reorder, restore

# Every thread sums the gradients of B and C for itself, over parts of the sequence that keep within this.
_PARTIAL_BYTES = 128 * 2**20


def why_not(device: torch.device) -> str | None:
    """None on the CPU if numba works, else the reason in one line."""
    if device.type != "cpu":
        return "needs a CPU"
    return why_no_numba()


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
    """Arguments as `selective_scan`, B and C as (batch, groups, states, length). Returns output and last state."""
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    out, state, _ = _forward(*inputs, delta_softplus, orientation, num_slices, keep)
    return out, state


@torch.library.custom_op(
    "nnunet_ext::selective_scan_cpu",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, str orientation, int num_slices, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orientation, num_slices, keep):
    """Output, last state and, with `keep`, the states before every block."""
    batch, channels, length = u.shape
    _, state, starts = _forward_shapes(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, orientation, num_slices, keep
    )
    out = empty((batch, channels, length), u)
    prepared, padded = _prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orientation, num_slices)
    states = np.zeros((batch, channels, padded), prepared[0].dtype)
    kernel = _kernel("forward", u.dtype)
    # As arrays before the threads start: in a new thread autograd would be on.
    results = (out.numpy(), states, starts.numpy())

    def part(_, first, last):
        kernel(*prepared, first, last, *results)

    rows = batch * channels
    share_rows(rows, thread_count(rows, rows * length * padded), part)
    state.copy_(torch.from_numpy(states)[..., : A.shape[1]])
    return out, state, starts


@_forward.register_fake
def _forward_shapes(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orientation, num_slices, keep):
    batch, channels, length = u.shape
    out = u.new_empty(batch, channels, length)
    blocks = len(blocks_of(orientation, num_slices, length)[0]) if keep else 0
    return out, u.new_empty(batch, channels, A.shape[1]), u.new_empty(blocks, batch, channels, _padded(A.shape[1]))


@torch.library.custom_op(
    "nnunet_ext::selective_scan_cpu_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, str orientation, int num_slices, Tensor starts, Tensor grad_out, Tensor grad_state) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, orientation, num_slices, starts, grad_out, grad_state
):
    """Gradients of u, delta, A, B, C, D, z, delta_bias, in that order; the one of a missing z is empty."""
    batch, channels, length = u.shape
    prepared, padded = _prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orientation, num_slices)
    blocks, dtype = prepared[9], prepared[0].dtype
    adjoint = np.zeros((batch, channels, padded), dtype)
    adjoint[..., : A.shape[1]] = grad_state.numpy()
    grad_u, grad_delta = empty(tuple(u.shape), u), empty(tuple(delta.shape), delta)
    grad_z = u.new_empty(0, 0, 0) if z is None else empty(tuple(z.shape), z)
    grad_A = np.zeros((batch, channels, padded))
    grad_D, grad_bias = np.zeros((2, batch, channels))
    grad_B, grad_C = u.new_empty(batch, B.shape[1], length, padded), u.new_empty(batch, C.shape[1], length, padded)

    rows = batch * channels
    threads = thread_count(rows, rows * length * padded)
    kernel = _kernel("backward", u.dtype)
    step_bytes = threads * batch * (B.shape[1] + C.shape[1]) * padded * dtype.itemsize
    span = max(1, int(_PARTIAL_BYTES // (step_bytes * max(1, length // max(1, len(blocks))))))

    arrays = [x.numpy() for x in (starts, grad_out, grad_u, grad_delta, grad_z)]

    def walk(from_block, to_block, partial_B, partial_C):
        starts_, grad_out_, grad_u_, grad_delta_, grad_z_ = arrays

        def part(thread, first, last):
            kernel(
                *prepared, first, last, starts_, from_block, to_block, grad_out_, adjoint, grad_u_, grad_delta_,
                grad_A, partial_B[thread], partial_C[thread], grad_D, grad_z_, grad_bias,
            )  # fmt: skip

        share_rows(rows, threads, part)

    for from_block in reversed(range(0, len(blocks), span)):
        to_block = min(from_block + span, len(blocks))
        begin, end = blocks[from_block, 0], blocks[to_block, 0] if to_block < len(blocks) else length
        partials = [np.zeros((threads, batch, x.shape[1], end - begin, padded), dtype) for x in (B, C)]
        walk(from_block, to_block, *partials)
        for grad, partial in zip((grad_B, grad_C), partials, strict=True):
            torch.sum(torch.from_numpy(partial), 0, out=grad[:, :, begin:end])

    def weights(grad):
        return restore(grad[..., : A.shape[1]].transpose(-1, -2), orientation, num_slices).contiguous()

    def summed(grad):
        return torch.from_numpy(grad.sum(0)).to(u.dtype)

    return (
        grad_u, grad_delta, summed(grad_A[..., : A.shape[1]]), weights(grad_B), weights(grad_C),
        summed(grad_D), grad_z, summed(grad_bias),
    )  # fmt: skip


_DENSE = {"memory_format": torch.contiguous_format}


@_backward.register_fake
def _backward_shapes(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, orientation, num_slices, starts, grad_out, grad_state
):
    dense = [torch.empty_like(x, **_DENSE) for x in (u, delta, A, B, C)]
    grad_z = u.new_empty(0, 0, 0) if z is None else torch.empty_like(z, **_DENSE)
    return (*dense, u.new_empty(A.shape[0]), grad_z, u.new_empty(A.shape[0]))


def _save(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.orientation, ctx.num_slices, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _gradients(ctx, grad_out, grad_state, _):
    *tensors, starts = ctx.saved_tensors
    u, A = tensors[0], tensors[2]
    grad_out = torch.zeros_like(u) if grad_out is None else grad_out
    grad_state = A.new_zeros(*u.shape[:2], A.shape[1]) if grad_state is None else grad_state
    grads = _backward(*tensors, ctx.delta_softplus, ctx.orientation, ctx.num_slices, starts, grad_out, grad_state)
    return (*(None if x is None else g for x, g in zip(tensors, grads, strict=True)), None, None, None, None)


_forward.register_autograd(_gradients, setup_context=_save)


def _prepare(u, delta, A, B, C, D, z, delta_bias, delta_softplus, orientation, num_slices):
    """The arguments both kernels begin with, and the number of states padded to whole vectors."""
    states = A.shape[1]
    padded = _padded(states)
    scaled_A = torch.zeros(A.shape[0], padded, dtype=torch.float64)
    scaled_A[:, :states] = A.double() / np.log(2)

    def by_step(weights):
        ordered = reorder(weights, orientation, num_slices).transpose(-1, -2)
        if padded == states:
            return ordered.contiguous().numpy()
        out = torch.zeros(*ordered.shape[:-1], padded, dtype=u.dtype)
        out[..., :states] = ordered
        return out.numpy()

    def per_channel(x):
        return np.zeros(A.shape[0], u.numpy().dtype) if x is None else x.contiguous().numpy()

    blocks, step_stride, run_stride = blocks_of(orientation, num_slices, u.shape[2])
    gate = u.new_empty(0, 0, 0) if z is None else z
    return (
        u.numpy(), delta.numpy(), scaled_A.to(u.dtype).numpy(), by_step(B), by_step(C), per_channel(D), gate.numpy(),
        per_channel(delta_bias), delta_softplus, blocks, step_stride, run_stride,
    ), padded  # fmt: skip


def _padded(states: int) -> int:
    return -(-states // 16) * 16


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> Any:
    """A kernel compiled for one type of numbers and any strides of the sequences."""
    from numba import boolean, int64

    from nnunet_ext.ops.selective_scan import cpu_kernels

    def contiguous(dimensions: int) -> Any:
        return array(dimensions, dtype)

    def sums(dimensions: int) -> Any:
        return array(dimensions, torch.float64)

    sequence = array(3, dtype, strided=True)
    signature = [
        sequence, sequence, contiguous(2), contiguous(4), contiguous(4), contiguous(1), sequence, contiguous(1),
        boolean, array(2, torch.int64), int64, int64, int64, int64,
    ]  # fmt: skip
    if name == "forward":
        signature += [sequence, contiguous(3), contiguous(4)]
    else:
        signature += [
            contiguous(4), int64, int64, sequence, contiguous(3),
            sequence, sequence, sums(3), contiguous(4), contiguous(4), sums(2), sequence, sums(2),
        ]  # fmt: skip
    return compile_kernel(getattr(cpu_kernels, name), signature)
