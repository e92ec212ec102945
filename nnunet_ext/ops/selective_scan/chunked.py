"""The scan in plain PyTorch, parallel over chunks of the sequence, on any device.

The sequence is cut into K chunks of T steps. T Python steps, each vectorised over batch, chunks, channels and states,
give every chunk's end state from a zero start; K short steps carry the states from chunk to chunk (a chunk decays its
start by exp(A sum delta)); T more steps emit the output from the right starts. Only factors exp(delta A) appear, at
most one for negative A, so nothing overflows and nothing is divided. The backward pass runs the same scheme in
reverse and recomputes the states chunk group by chunk group, so no (batch, channels, length, states) tensor exists.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_ext.ops.selective_scan.reference import skip_and_gate, step_sizes

# Longer chunks mean more Python steps, shorter ones a longer carry; both cost the same at the square root of the
# length, and beyond 512 steps the states of all chunks fit the cache anyway.
_LONGEST_CHUNK = 512
# States recomputed at once in the backward pass.
_BACKWARD_BYTES = 128 * 2**20


def why_not(device: torch.device) -> str | None:
    """Plain PyTorch runs on every device."""
    return None


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
    delta = step_sizes(delta, delta_bias, delta_softplus)
    # One group count for both: a group of channels shares its B and C.
    groups = math.lcm(B.shape[1], C.shape[1])
    B = B.repeat_interleave(groups // B.shape[1], dim=1)
    C = C.repeat_interleave(groups // C.shape[1], dim=1)
    if u.shape[2] == 0:
        return torch.zeros_like(u), u.new_zeros(*u.shape[:2], A.shape[1])
    y, last_state = _Scan.apply(u, delta, A, B, C)
    return skip_and_gate(y, u, D, z), last_state


class _Scan(torch.autograd.Function):
    """y and last state from u, step sizes, A, B, C; first-order gradients only."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C):  # type: ignore[override]
        steps = _chunk_length(u.shape[2])
        groups = B.shape[1]
        delta_t, u_t = _to_steps(delta, steps, groups), _to_steps(u, steps, groups)
        A_g = A.reshape(groups, -1, A.shape[1])
        B_t, C_t = _to_steps(B, steps)[..., None, :], _to_steps(C, steps)[..., None, :]
        starts, last_state = _start_states(delta_t, u_t, A_g, B_t)
        y_t = torch.empty_like(u_t)
        state = starts.clone()
        for t in range(steps):
            _advance(state, delta_t[t], u_t[t], A_g, B_t[t])
            torch.sum(state * C_t[t], dim=-1, out=y_t[t])
        ctx.save_for_backward(u, delta, A, B, C, starts)
        return _from_steps(y_t, u.shape), last_state.reshape(u.shape[0], u.shape[1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_last):  # type: ignore[override]
        u, delta, A, B, C, starts = ctx.saved_tensors
        batch, channels, length = u.shape
        steps, groups, states = _chunk_length(length), B.shape[1], A.shape[1]
        delta_t, u_t, gy_t = (_to_steps(x, steps, groups) for x in (delta, u, grad_y))
        B_t, C_t = _to_steps(B, steps)[..., None, :], _to_steps(C, steps)[..., None, :]
        A_g = A.reshape(groups, -1, states)
        ends = _end_adjoints(delta_t, gy_t, A_g, C_t, grad_last.reshape(batch, 1, groups, -1, states))

        grad_u, grad_delta = torch.empty_like(u_t), torch.empty_like(delta_t)
        grad_A = torch.zeros_like(A_g)
        grad_B, grad_C = torch.empty_like(B_t[..., 0, :]), torch.empty_like(C_t[..., 0, :])
        chunks = starts.shape[1]
        per_chunk = steps * batch * channels * states * u.element_size()
        size = max(1, _BACKWARD_BYTES // per_chunk)
        for first in range(0, chunks, size):
            part = slice(first, min(first + size, chunks))
            history = starts.new_empty(steps + 1, batch, part.stop - first, *starts.shape[2:])
            history[0] = starts[:, part]
            for t in range(steps):
                history[t + 1] = history[t]
                _advance(history[t + 1], delta_t[t, :, part], u_t[t, :, part], A_g, B_t[t, :, part])
            adjoint = ends[:, part].clone()  # of the state after the step, without that step's own output
            for t in reversed(range(steps)):
                step_delta, step_u, step_gy = delta_t[t, :, part], u_t[t, :, part], gy_t[t, :, part]
                adjoint += step_gy[..., None] * C_t[t, :, part]
                torch.sum(step_gy[..., None] * history[t + 1], dim=-2, out=grad_C[t, :, part])
                scaled_u = (step_delta * step_u)[..., None]
                torch.sum(adjoint * scaled_u, dim=-2, out=grad_B[t, :, part])
                grad_input = torch.sum(adjoint * B_t[t, :, part], dim=-1)
                adjoint *= torch.exp(step_delta[..., None] * A_g)
                through_decay = adjoint * history[t]
                grad_A += (through_decay * step_delta[..., None]).sum((0, 1))
                grad_u[t, :, part] = grad_input * step_delta
                grad_delta[t, :, part] = grad_input * step_u + (through_decay * A_g).sum(-1)
        return (
            _from_steps(grad_u, u.shape),
            _from_steps(grad_delta, u.shape),
            grad_A.reshape(A.shape),
            _weights_from_steps(grad_B, B.shape),
            _weights_from_steps(grad_C, C.shape),
        )


def _chunk_length(length: int) -> int:
    return min(_LONGEST_CHUNK, max(1, math.isqrt(length)))


def _to_steps(x: Tensor, steps: int, groups: int | None = None) -> Tensor:
    """Cut the last axis into chunks and put the step within the chunk first.

    (batch, channels, length) -> (steps, batch, chunks, groups, channels / groups), or, without `groups`,
    (batch, groups, states, length) -> (steps, batch, chunks, groups, states). The end is padded with zeros: a step
    of size zero changes no state.
    """
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % steps))
    batch, first = x.shape[:2]
    if groups is None:
        return padded.reshape(batch, first, x.shape[2], -1, steps).permute(4, 0, 3, 1, 2).contiguous()
    return padded.reshape(batch, groups, first // groups, -1, steps).permute(4, 0, 3, 1, 2).contiguous()


def _from_steps(x: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `_to_steps` with groups: back to (batch, channels, length)."""
    return x.permute(1, 3, 4, 2, 0).reshape(shape[0], shape[1], -1)[..., : shape[2]].contiguous()


def _weights_from_steps(x: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `_to_steps` without groups: back to (batch, groups, states, length)."""
    return x.permute(1, 3, 4, 2, 0).reshape(*shape[:3], -1)[..., : shape[3]].contiguous()


def _advance(state: Tensor, delta: Tensor, u: Tensor, A: Tensor, B: Tensor) -> None:
    """One step in place: state (batch, chunks, groups, channels, states), delta and u without the states."""
    state *= torch.exp(delta[..., None] * A)
    state += (delta * u)[..., None] * B


def _start_states(delta_t: Tensor, u_t: Tensor, A: Tensor, B_t: Tensor) -> tuple[Tensor, Tensor]:
    """Every chunk's state before its first step, and the state after the last chunk."""
    steps, batch, chunks, groups, channels = delta_t.shape
    state = delta_t.new_zeros(batch, chunks, groups, channels, A.shape[-1])
    for t in range(steps):
        _advance(state, delta_t[t], u_t[t], A, B_t[t])
    decay = torch.exp(delta_t.sum(0)[..., None] * A)
    starts = torch.empty_like(state)
    carry = torch.zeros_like(state[:, 0])
    for k in range(chunks):
        starts[:, k] = carry
        carry = decay[:, k] * carry + state[:, k]
    return starts, carry


def _end_adjoints(delta_t: Tensor, gy_t: Tensor, A: Tensor, C_t: Tensor, last: Tensor) -> Tensor:
    """The gradient every chunk receives from the chunks after it, at its end state: the carry in reverse."""
    steps, batch, chunks, groups, channels = delta_t.shape
    adjoint = delta_t.new_zeros(batch, chunks, groups, channels, A.shape[-1])
    for t in reversed(range(steps)):
        adjoint += gy_t[t][..., None] * C_t[t]
        adjoint *= torch.exp(delta_t[t][..., None] * A)
    decay = torch.exp(delta_t.sum(0)[..., None] * A)
    ends = torch.empty_like(adjoint)
    carry = last[:, 0].clone()
    for k in reversed(range(chunks)):
        ends[:, k] = carry
        carry = decay[:, k] * carry + adjoint[:, k]
    return ends
