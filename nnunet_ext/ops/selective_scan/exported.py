"""The scan as loops that survive an export: ONNX's `Scan` in the place of thousands of unrolled steps.

The scheme of `chunked`: T steps over all chunks at once, a carry over the chunks, T steps more for the output. No
gradient, and nothing in place, which exported loops do not allow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ext.ops.selective_scan.chunked import _chunk_length
from nnunet_ext.ops.selective_scan.reference import skip_and_gate, step_sizes


def why_not(device: torch.device) -> str | None:
    """Only while a network is exported."""
    return None if torch.compiler.is_exporting() else "is for networks that are exported"


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
    """Arguments as `selective_scan`, B and C as (batch, 1, states, length). Returns output and last state.

    Raises:
        ValueError: B or C have more than one group.
    """
    from torch._higher_order_ops.scan import scan as loop

    batch, channels, length = u.shape
    if B.shape[1] != 1 or C.shape[1] != 1:
        raise ValueError(f"a scan can be exported with one group of B and C, not {B.shape[1]} and {C.shape[1]}")
    delta = step_sizes(delta, delta_bias, delta_softplus)
    steps = _chunk_length(length)
    # (steps, rows, channels or states), a row being a chunk of a batch entry: loops broadcast over no axis of size 1.
    delta_t, u_t, B_t, C_t = (_to_rows(x, steps) for x in (delta, u, B[:, 0], C[:, 0]))

    def advance(state: Tensor, delta: Tensor, u: Tensor, B: Tensor) -> Tensor:
        return state * torch.exp(delta[..., None] * A) + (delta * u)[..., None] * B[:, None]

    def to_end(state: Tensor, step: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        # Every loop has an output of each step; this one is not used.
        return advance(state, *step), step[0][0, 0].clone()

    def to_next(carry: Tensor, chunk: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        decay, end = chunk
        return decay * carry + end, carry.clone()

    def emit(state: Tensor, step: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        *inputs, C = step
        state = advance(state, *inputs)
        return state, (state * C[:, None]).sum(-1)

    zero = delta_t.new_zeros(delta_t.shape[1], *A.shape)
    ends, _ = loop(to_end, zero, (delta_t, u_t, B_t))
    decay = torch.exp(delta_t.sum(0)[..., None] * A)
    by_chunk = [x.unflatten(0, (batch, -1)).transpose(0, 1).flatten(1, 2).contiguous() for x in (decay, ends)]
    last, starts = loop(to_next, torch.zeros_like(by_chunk[0][0]), tuple(by_chunk))
    starts = starts.unflatten(1, (batch, channels)).transpose(0, 1).flatten(0, 1).contiguous()
    _, y_t = loop(emit, starts, (delta_t, u_t, B_t, C_t))
    y = y_t.unflatten(1, (batch, -1)).permute(1, 3, 2, 0).flatten(2)[..., :length]
    return skip_and_gate(y, u, D, z), last.reshape(batch, channels, -1)


def _to_rows(x: Tensor, steps: int) -> Tensor:
    """(batch, n, length) -> (steps, batch * chunks, n), the end padded with steps of size zero."""
    chunks = torch.nn.functional.pad(x, (0, -x.shape[-1] % steps)).unflatten(2, (-1, steps))
    return chunks.permute(3, 0, 2, 1).flatten(1, 2).contiguous()
