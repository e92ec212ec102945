"""The recurrence as it is written in the paper, one step at a time: slow, and the truth for the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def why_not(device: torch.device) -> str | None:
    """The reference runs on every device."""
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
    channels = u.shape[1]
    delta = step_sizes(delta, delta_bias, delta_softplus)
    B = B.repeat_interleave(channels // B.shape[1], dim=1)  # (batch, channels, states, length)
    C = C.repeat_interleave(channels // C.shape[1], dim=1)
    state = u.new_zeros(u.shape[0], channels, A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        decay = torch.exp(delta[:, :, t, None] * A)
        state = decay * state + (delta[:, :, t] * u[:, :, t])[..., None] * B[..., t]
        outputs.append((state * C[..., t]).sum(-1))
    y = torch.stack(outputs, dim=-1) if outputs else torch.zeros_like(u)
    return skip_and_gate(y, u, D, z), state


def step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """delta plus its bias, through softplus where asked for, (batch, channels, length)."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    return F.softplus(delta) if delta_softplus else delta


def skip_and_gate(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Add D u and multiply by SiLU(z), each where given."""
    if D is not None:
        y = y + D[:, None] * u
    return y if z is None else y * F.silu(z)
