"""Triton kernels of the scan; `gpu` launches them. Parallel over chunks of the sequence, channels and batch.

Sums over time inside a chunk and between chunks make the scan parallel (S is the sum of step sizes):

1. `chunk_ends`: every chunk's end state from a zero start, sum_t exp(A (S_end - S_t)) delta_t B_t u_t; backward, the
   gradient it sends to its start, sum_t exp(A S_t) grad_y_t C_t. Sums of positive steps lose no digits that matter:
   where such a sum is large its exponential is small.
2. `carry`: chunk by chunk, start of the next = exp(A S_chunk) start + end; backward the same from the other side.
3. `outputs` and `gradients`: with the right starts, an associative scan within the chunk.

A program holds a tile of (steps, channels) in registers and goes through the states one by one, so no tensor over
length, channels and states exists. Sequences are (batch, token, channels) with channels contiguous and `*_row` numbers
from token to token, so that every order of the scan reads whole lines; weights are (batch, groups, token, states),
contiguous, and all channels of a program are of one group. Arithmetic is float32 whatever the type of the inputs
(float64 for float64).
"""

# mypy: ignore-errors
# Triton's dialect: arguments are pointers, constants are annotated with objects that are no types.

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
FORWARD, REVERSE, SLICES = (tl.constexpr(k) for k in range(3))


@triton.jit
def _token(t, length, num_slices, ORDER: tl.constexpr):
    if ORDER == FORWARD:
        return t
    elif ORDER == REVERSE:
        return length - 1 - t
    else:
        return (t % num_slices) * (length // num_slices) + t // num_slices


@triton.jit
def _step_size(x, SOFTPLUS: tl.constexpr):
    """softplus(x) = max(x, 0) + log1p(e^-|x|), with Kahan's log1p: no such function is in every version of Triton."""
    if SOFTPLUS:
        e = tl.exp2(-tl.abs(x) * LOG2_E)
        one_plus = 1.0 + e
        rounded = one_plus - 1.0
        log1p = tl.where(rounded == 0, e, tl.log(one_plus) * (e / tl.where(rounded == 0, 1.0, rounded)))
        # NaN must survive, which maximum does not promise: 0 * NaN is NaN.
        return tl.where(x > 0, x, 0.0 * e) + log1p
    else:
        return x


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2_E))


@triton.jit
def _compose(decay_1, input_1, decay_2, input_2):
    """First h -> decay_1 h + input_1, then the second: again of that form."""
    return decay_1 * decay_2, decay_2 * input_1 + input_2


@triton.jit
def _load(pointer, row, batch, length, token, d, inside, COMPUTE: tl.constexpr):
    """A (steps, channels) tile of one sequence, zero outside."""
    start = batch.to(tl.int64) * length
    return tl.load(pointer + (start + token)[:, None] * row + d[None, :], inside, 0.0).to(COMPUTE)


@triton.jit
def _store(pointer, value, channels, batch, length, token, d, inside):
    start = batch.to(tl.int64) * length
    tl.store(pointer + (start + token)[:, None] * channels + d[None, :], value, inside)


@triton.jit
def _load_steps(delta, delta_row, bias, batch, length, token, d, d_ok, inside,
                SOFTPLUS: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    """delta + bias and the step size; outside, a step of size zero, which changes no state."""
    raw = _load(delta, delta_row, batch, length, token, d, inside, COMPUTE)
    raw += tl.load(bias + d, d_ok, 0.0).to(COMPUTE)[None, :]
    return raw, tl.where(inside, _step_size(raw, SOFTPLUS), 0.0)


@triton.jit
def chunk_ends(
    x, x_row, delta, delta_row, z, z_row, bias, A, weights, ends, sums,
    length, channels, group_channels, num_slices, chunks,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDER: tl.constexpr, BACKWARD: tl.constexpr,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """ends (batch, chunks, states, channels) and, forward, sums of step sizes (batch, chunks, channels).

    Forward, x is u and weights are B; backward, x is grad_out (gated by z where there is one) and weights are C.
    """
    k, batch = tl.program_id(0), tl.program_id(2)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    t = k * STEPS + tl.arange(0, STEPS)
    d_ok, t_ok = d < channels, t < length
    inside = t_ok[:, None] & d_ok[None, :]
    token = _token(t, length, num_slices, ORDER)
    group = batch.to(tl.int64) * (channels // group_channels) + tl.program_id(1) * CHANNELS // group_channels
    value = _load(x, x_row, batch, length, token, d, inside, COMPUTE)
    _, step = _load_steps(delta, delta_row, bias, batch, length, token, d, d_ok, inside, SOFTPLUS, COMPUTE)
    if BACKWARD:
        if GATED:
            gate = _load(z, z_row, batch, length, token, d, inside, COMPUTE)
            value = value * gate * _sigmoid(gate)
        between = tl.cumsum(step, 0)
    else:
        value = value * step
        # From after step t to the chunk's end: the sum from the end to t, without t itself.
        between = tl.cumsum(step, 0, reverse=True) - step
    place = batch.to(tl.int64) * chunks + k
    if not BACKWARD:
        tl.store(sums + place * channels + d, tl.sum(step, 0), d_ok)
    for n in range(STATES):
        rate = tl.load(A + n * channels + d, d_ok, 0.0).to(COMPUTE) * LOG2_E
        weight = tl.load(weights + (group * length + token) * STATES + n, t_ok, 0.0).to(COMPUTE)
        end = tl.sum(tl.exp2(rate[None, :] * between) * value * weight[:, None], 0)
        tl.store(ends + (place * STATES + n) * channels + d, end, d_ok)


@triton.jit
def carry(
    A, ends, sums, last, carried, channels, chunks,
    STATES: tl.constexpr, BACKWARD: tl.constexpr, CHUNKS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """carried: the state before every chunk; backward the gradient of the state after it. Both like `ends`.

    last (batch, states, channels): forward, receives the last state; backward, holds that state's gradient.
    CHUNKS of them are scanned at once: one after the other, each would wait for the memory.
    """
    n, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    d = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    d_ok = d < channels
    rate = tl.load(A + n * channels + d, d_ok, 0.0).to(COMPUTE) * LOG2_E
    row = tl.arange(0, CHUNKS)
    entering = tl.zeros((CHANNELS,), COMPUTE)
    if BACKWARD:
        entering = tl.load(last + (batch * STATES + n) * channels + d, d_ok, 0.0)
    outermost = batch * chunks
    if BACKWARD:
        outermost += chunks - 1
    tl.store(carried + (outermost * STATES + n) * channels + d, entering, d_ok)
    for begin in range(0, chunks, CHUNKS):
        ok = (begin + row < chunks)[:, None] & d_ok[None, :]
        k = begin + row
        if BACKWARD:
            k = chunks - 1 - k
        place = batch * chunks + k
        # Beyond the last chunk nothing decays and nothing enters, so the last row holds the state after the last chunk.
        end = tl.load(ends + ((place * STATES + n) * channels)[:, None] + d[None, :], ok, 0.0)
        decay = tl.exp2(rate[None, :] * tl.load(sums + (place * channels)[:, None] + d[None, :], ok, 0.0))
        end += tl.where((row == 0)[:, None], decay * entering[None, :], 0.0)
        _, state = tl.associative_scan((decay, end), 0, _compose)
        entering = tl.sum(tl.where((row == CHUNKS - 1)[:, None], state, 0.0), 0)
        next_place = place + 1
        if BACKWARD:
            next_place = place - 1
        ok = ok & (begin + row + 1 < chunks)[:, None]
        tl.store(carried + ((next_place * STATES + n) * channels)[:, None] + d[None, :], state, ok)
    if not BACKWARD:
        tl.store(last + (batch * STATES + n) * channels + d, entering, d_ok)


@triton.jit
def outputs(
    u, u_row, delta, delta_row, z, z_row, bias, A, B, C, D, starts, out,
    length, channels, group_channels, num_slices, chunks,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDER: tl.constexpr,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """out (batch, token, channels) from the state before every chunk."""
    k, batch = tl.program_id(0), tl.program_id(2)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    t = k * STEPS + tl.arange(0, STEPS)
    d_ok, t_ok = d < channels, t < length
    inside = t_ok[:, None] & d_ok[None, :]
    first = (tl.arange(0, STEPS) == 0)[:, None]
    token = _token(t, length, num_slices, ORDER)
    group = batch.to(tl.int64) * (channels // group_channels) + tl.program_id(1) * CHANNELS // group_channels
    value = _load(u, u_row, batch, length, token, d, inside, COMPUTE)
    _, step = _load_steps(delta, delta_row, bias, batch, length, token, d, d_ok, inside, SOFTPLUS, COMPUTE)
    y = value * tl.load(D + d, d_ok, 0.0).to(COMPUTE)[None, :]
    place = batch.to(tl.int64) * chunks + k
    for n in range(STATES):
        rate = tl.load(A + n * channels + d, d_ok, 0.0).to(COMPUTE) * LOG2_E
        at = (group * length + token) * STATES + n
        input_weight, output_weight = tl.load(B + at, t_ok, 0.0).to(COMPUTE), tl.load(C + at, t_ok, 0.0).to(COMPUTE)
        start = tl.load(starts + (place * STATES + n) * channels + d, d_ok, 0.0)
        decay = tl.exp2(rate[None, :] * step)
        entering = step * value * input_weight[:, None] + tl.where(first, decay * start[None, :], 0.0)
        _, state = tl.associative_scan((decay, entering), 0, _compose)
        y += state * output_weight[:, None]
    if GATED:
        gate = _load(z, z_row, batch, length, token, d, inside, COMPUTE)
        y = y * gate * _sigmoid(gate)
    _store(out, y, channels, batch, length, token, d, inside)


@triton.jit
def gradients(
    u, u_row, delta, delta_row, z, z_row, bias, A, B, C, D, starts, adjoints, grad_out, grad_out_row,
    grad_u, grad_delta, grad_z, grad_B, grad_C, grad_A, grad_D, grad_bias,
    length, channels, group_channels, num_slices, chunks,
    STATES: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr, ORDER: tl.constexpr,
    STEPS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """All gradients from the states before and the adjoints after every chunk.

    grad_u, grad_delta, grad_z are (batch, token, channels). The others are parts to be summed, always in the same
    order, so that results repeat exactly: grad_B, grad_C (batch, blocks of channels, token, states); grad_A (batch,
    chunks, states, channels); grad_D, grad_bias (batch, chunks, channels).
    """
    k, block, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    t = k * STEPS + tl.arange(0, STEPS)
    d_ok, t_ok = d < channels, t < length
    inside = t_ok[:, None] & d_ok[None, :]
    first = (tl.arange(0, STEPS) == 0)[:, None]
    last = (tl.arange(0, STEPS) == STEPS - 1)[:, None]
    token = _token(t, length, num_slices, ORDER)
    group = batch.to(tl.int64) * (channels // group_channels) + block * CHANNELS // group_channels
    value = _load(u, u_row, batch, length, token, d, inside, COMPUTE)
    raw, step = _load_steps(delta, delta_row, bias, batch, length, token, d, d_ok, inside, SOFTPLUS, COMPUTE)
    # The decay that a gradient passes on its way from step t + 1 to step t is that of step t + 1. The adjoint after the
    # chunk has passed the next chunk's first decay already.
    following_ok = (t + 1 < length)[:, None] & d_ok[None, :] & (last == 0)
    following = _token(tl.where(t + 1 < length, t + 1, t), length, num_slices, ORDER)
    _, following_step = _load_steps(
        delta, delta_row, bias, batch, length, following, d, d_ok, following_ok, SOFTPLUS, COMPUTE
    )
    skip = tl.load(D + d, d_ok, 0.0).to(COMPUTE)[None, :]
    outer = _load(grad_out, grad_out_row, batch, length, token, d, inside, COMPUTE)
    grad_y = outer
    if GATED:
        gate = _load(z, z_row, batch, length, token, d, inside, COMPUTE)
        opening = _sigmoid(gate)
        grad_y = outer * gate * opening
        y = skip * value
    grad_scaled = tl.zeros((STEPS, CHANNELS), COMPUTE)
    grad_step = tl.zeros((STEPS, CHANNELS), COMPUTE)
    place = batch.to(tl.int64) * chunks + k
    blocks = tl.num_programs(1)
    for n in range(STATES):
        coefficient = tl.load(A + n * channels + d, d_ok, 0.0).to(COMPUTE)
        rate = coefficient * LOG2_E
        at = (group * length + token) * STATES + n
        input_weight, output_weight = tl.load(B + at, t_ok, 0.0).to(COMPUTE), tl.load(C + at, t_ok, 0.0).to(COMPUTE)
        at_n = (place * STATES + n) * channels + d
        start, adjoint = tl.load(starts + at_n, d_ok, 0.0), tl.load(adjoints + at_n, d_ok, 0.0)

        decay = tl.exp2(rate[None, :] * step)
        driven = step * value * input_weight[:, None]
        _, state = tl.associative_scan((decay, driven + tl.where(first, decay * start[None, :], 0.0)), 0, _compose)
        entering = grad_y * output_weight[:, None] + tl.where(last, adjoint[None, :], 0.0)
        _, g = tl.associative_scan((tl.exp2(rate[None, :] * following_step), entering), 0, _compose, reverse=True)

        if GATED:
            y += state * output_weight[:, None]
        at_part = ((batch.to(tl.int64) * blocks + block) * length + token) * STATES + n
        tl.store(grad_C + at_part, tl.sum(grad_y * state, 1), t_ok)
        tl.store(grad_B + at_part, tl.sum(tl.where(inside, g * step * value, 0.0), 1), t_ok)
        grad_scaled += g * input_weight[:, None]
        through_decay = g * (state - driven)  # g decay h_{t-1}
        grad_step += through_decay * coefficient[None, :]
        tl.store(grad_A + at_n, tl.sum(through_decay * step, 0), d_ok)
    grad_step += grad_scaled * value
    if SOFTPLUS:
        grad_step = grad_step * _sigmoid(raw)
    grad_step = tl.where(inside, grad_step, 0.0)
    _store(grad_u, grad_scaled * step + grad_y * skip, channels, batch, length, token, d, inside)
    _store(grad_delta, grad_step, channels, batch, length, token, d, inside)
    tl.store(grad_D + place * channels + d, tl.sum(grad_y * value, 0), d_ok)
    tl.store(grad_bias + place * channels + d, tl.sum(grad_step, 0), d_ok)
    if GATED:
        grad_gate = outer * y * opening * (1.0 + gate * (1.0 - opening))
        _store(grad_z, grad_gate, channels, batch, length, token, d, inside)
