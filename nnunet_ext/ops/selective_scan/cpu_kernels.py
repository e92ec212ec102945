"""The CPU backend's inner loops, compiled by numba; `cpu` prepares their arguments.

A call works through some rows (a row is one channel of one batch entry), block of steps by block of steps, all its
rows within a block before the next block, so that B and C of the block stay in the cache. Rows are read into small
buffers in the order of the scan, whatever the order in memory: block q has `runs` runs of `steps` steps, and its step
j steps + i lies at `origin + j run_stride + i step_stride` of the row. Sixteen states are one vector in registers;
with more states the block is walked once for every sixteen.

A is scaled by log2 e; A, B and C are padded with zeros to a multiple of sixteen states, which keeps the extra states at
zero. Results and sums over many blocks are collected in float64 where they are a sum over the sequence.
"""

# mypy: ignore-errors
# Kernels are in numba's dialect: compiled, intrinsics lose their first argument and arrays have other types.

from __future__ import annotations

import math

import numpy as np
from numba import njit

from nnunet_ext.ops.selective_scan.simd import (
    LANES,
    backwards,
    exp2,
    load,
    sigmoid,
    softplus,
    store,
    total,
    totals,
    without_tiny,
)

LN_2 = math.log(2)
# Columns of the table of blocks.
START, ORIGIN, STEPS, RUNS = range(4)


@njit(nogil=True)
def _gather(row, block, step_stride, run_stride, buffer):
    steps, runs = block[STEPS], block[RUNS]
    done = 0
    if runs == 1 and row.strides[0] == row.itemsize:
        # Neighbours in memory are read as vectors; element by element costs half as much as the scan itself.
        while done + LANES <= steps and step_stride == 1:
            store(buffer, done, load(row, block[ORIGIN] + done))
            done += LANES
        while done + LANES <= steps and step_stride == -1:
            store(buffer, done, backwards(load(row, block[ORIGIN] - done - LANES + 1)))
            done += LANES
    for i in range(done, steps):
        place = block[ORIGIN] + i * step_stride
        for j in range(runs):
            buffer[j * steps + i] = row[place + j * run_stride]
    # The last vector may reach past the end of the block; sums over the block find zeros there.
    buffer[steps * runs :] = 0


@njit(nogil=True)
def _scatter(buffer, block, step_stride, run_stride, row):
    steps, runs = block[STEPS], block[RUNS]
    done = 0
    if runs == 1 and row.strides[0] == row.itemsize:
        while done + LANES <= steps and step_stride == 1:
            store(row, block[ORIGIN] + done, load(buffer, done))
            done += LANES
        while done + LANES <= steps and step_stride == -1:
            store(row, block[ORIGIN] - done - LANES + 1, backwards(load(buffer, done)))
            done += LANES
    for i in range(done, steps):
        place = block[ORIGIN] + i * step_stride
        for j in range(runs):
            row[place + j * run_stride] = buffer[j * steps + i]


@njit(nogil=True)
def _step_sizes(x, bias, with_softplus, count, step):
    """step = softplus(x + bias), leaving x + bias in x."""
    for t in range(0, count, LANES):
        value = load(x, t) + bias
        store(x, t, value)
        store(step, t, softplus(value) if with_softplus else value)


@njit(nogil=True)
def _longest(blocks):
    """Room for the longest block, in whole vectors."""
    longest = 0
    for q in range(blocks.shape[0]):
        longest = max(longest, blocks[q, STEPS] * blocks[q, RUNS])
    return (longest + LANES - 1) // LANES * LANES


def forward(
    u, delta, A, B, C, D, z, bias, with_softplus, blocks, step_stride, run_stride, first, last, out, state, starts
):
    """Write `out` and `state` of the rows first <= batch * channels + channel < last.

    u, delta, out (batch, channels, length); z the same or empty; A (channels, states); B, C (batch, groups, length,
    states) in the order of the scan; D, bias (channels,); state (batch, channels, states), zero on entry;
    starts (blocks, batch, channels, states) receives the state before every block, or is empty.
    """
    channels, states = A.shape
    length = B.shape[2]
    room = _longest(blocks)
    inputs, steps, scaled = np.zeros(room, u.dtype), np.zeros(room, u.dtype), np.zeros(room, u.dtype)
    gate, y, rows = np.zeros(room, u.dtype), np.zeros(room, u.dtype), np.zeros(LANES * LANES, u.dtype)
    for b in range(first // channels, (last - 1) // channels + 1):
        for q in range(blocks.shape[0]):
            block = blocks[q]
            count = block[STEPS] * block[RUNS]
            whole = count // LANES * LANES
            for d in range(max(first - b * channels, 0), min(last - b * channels, channels)):
                at_B = ((b * B.shape[1] + d // (channels // B.shape[1])) * length + block[START]) * states
                at_C = ((b * C.shape[1] + d // (channels // C.shape[1])) * length + block[START]) * states
                _gather(u[b, d], block, step_stride, run_stride, inputs)
                _gather(delta[b, d], block, step_stride, run_stride, gate)
                _step_sizes(gate, bias[d], with_softplus, count, steps)
                for t in range(0, count, LANES):
                    value = load(inputs, t)
                    store(scaled, t, value * load(steps, t))
                    store(y, t, value * D[d])
                for n in range(0, states, LANES):
                    at = (b * channels + d) * states + n
                    h = load(state, at)
                    if starts.shape[0] > 0:
                        store(starts, q * state.size + at, h)
                    rate = load(A, d * states + n)
                    for begin in range(0, whole, LANES):
                        for i in range(LANES):
                            t = begin + i
                            h = exp2(rate * steps[t]) * h + load(B, at_B + t * states + n) * scaled[t]
                            store(rows, i * LANES, h * load(C, at_C + t * states + n))
                        store(y, begin, load(y, begin) + totals(rows))
                    for t in range(whole, count):
                        h = exp2(rate * steps[t]) * h + load(B, at_B + t * states + n) * scaled[t]
                        y[t] += total(h * load(C, at_C + t * states + n))
                    store(state, at, without_tiny(h))
                if z.shape[0] > 0:
                    _gather(z[b, d], block, step_stride, run_stride, gate)
                    for t in range(0, count, LANES):
                        value = load(gate, t)
                        store(y, t, load(y, t) * (value * sigmoid(value)))
                _scatter(y, block, step_stride, run_stride, out[b, d])


def backward(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    with_softplus,
    blocks,
    step_stride,
    run_stride,
    first,
    last,
    starts,
    from_block,
    to_block,
    grad_out,
    adjoint,
    grad_u,
    grad_delta,
    grad_A,
    grad_B,
    grad_C,
    grad_D,
    grad_z,
    grad_bias,
):
    """Gradients of the rows first <= row < last over the blocks from_block <= q < to_block, last block first.

    Arguments as `forward`; grad_out like out; adjoint (batch, channels, states) is the gradient of the state after the
    last of the blocks on entry, of the state before the first of them on return. Added to: grad_A (batch, channels,
    states), grad_D, grad_bias (batch, channels), all float64; grad_B, grad_C (batch, groups, steps of the blocks,
    states). Written: grad_u, grad_delta, grad_z, like u, delta, z.
    """
    channels, states = A.shape
    length, span = B.shape[2], grad_B.shape[2]
    room = _longest(blocks)
    dtype = u.dtype
    inputs, sizes, steps, scaled = (
        np.zeros(room, dtype),
        np.zeros(room, dtype),
        np.zeros(room, dtype),
        np.zeros(room, dtype),
    )
    grad_y, gate, y = np.zeros(room, dtype), np.zeros(room, dtype), np.zeros(room, dtype)
    grad_scaled, grad_rate = np.zeros(room, dtype), np.zeros(room, dtype)
    decays, history = np.zeros(room * LANES, dtype), np.zeros((room + 1) * LANES, dtype)
    lanes, rows, more_rows = np.zeros(LANES, dtype), np.zeros(LANES * LANES, dtype), np.zeros(LANES * LANES, dtype)
    for b in range(first // channels, (last - 1) // channels + 1):
        for q in range(to_block - 1, from_block - 1, -1):
            block = blocks[q]
            count = block[STEPS] * block[RUNS]
            whole = count // LANES * LANES
            for d in range(max(first - b * channels, 0), min(last - b * channels, channels)):
                group_B, group_C = d // (channels // B.shape[1]), d // (channels // C.shape[1])
                at_B = ((b * B.shape[1] + group_B) * length + block[START]) * states
                at_C = ((b * C.shape[1] + group_C) * length + block[START]) * states
                within = block[START] - blocks[from_block, START]
                at_grad_B = ((b * B.shape[1] + group_B) * span + within) * states
                at_grad_C = ((b * C.shape[1] + group_C) * span + within) * states
                _gather(u[b, d], block, step_stride, run_stride, inputs)
                _gather(delta[b, d], block, step_stride, run_stride, sizes)
                _gather(grad_out[b, d], block, step_stride, run_stride, grad_y)
                _step_sizes(sizes, bias[d], with_softplus, count, steps)
                for t in range(0, count, LANES):
                    store(scaled, t, load(inputs, t) * load(steps, t))
                if z.shape[0] > 0:
                    # out = y z sigmoid(z): `gate` becomes grad_out times the derivative of z sigmoid(z).
                    _gather(z[b, d], block, step_stride, run_stride, gate)
                    for t in range(0, count, LANES):
                        value, outer = load(gate, t), load(grad_y, t)
                        open_ = sigmoid(value)
                        store(gate, t, outer * (open_ * (1.0 + value * (1.0 - open_))))
                        store(grad_y, t, outer * (value * open_))
                y[:] = 0
                grad_scaled[:] = 0
                grad_rate[:] = 0
                for n in range(0, states, LANES):
                    at = (b * channels + d) * states + n
                    rate = load(A, d * states + n)
                    h = load(starts, q * adjoint.size + at)
                    store(history, 0, h)
                    for t in range(count):
                        decay = exp2(rate * steps[t])
                        h = decay * h + load(B, at_B + t * states + n) * scaled[t]
                        store(decays, t * LANES, decay)
                        store(history, (t + 1) * LANES, h)
                    if z.shape[0] > 0:
                        for begin in range(0, whole, LANES):
                            for i in range(LANES):
                                t = begin + i
                                store(rows, i * LANES, load(history, (t + 1) * LANES) * load(C, at_C + t * states + n))
                            store(y, begin, load(y, begin) + totals(rows))
                        for t in range(whole, count):
                            y[t] += total(load(history, (t + 1) * LANES) * load(C, at_C + t * states + n))
                    g = load(adjoint, at)
                    through_rate = rate * 0.0
                    # The last, incomplete sixteen steps come first; their rows beyond the end are zero.
                    rows[:] = 0
                    more_rows[:] = 0
                    for begin in range((count - 1) // LANES * LANES, -1, -LANES):
                        for i in range(min(LANES, count - begin) - 1, -1, -1):
                            t = begin + i
                            g = g + load(C, at_C + t * states + n) * grad_y[t]
                            place = at_grad_C + t * states + n
                            store(grad_C, place, load(grad_C, place) + load(history, (t + 1) * LANES) * grad_y[t])
                            place = at_grad_B + t * states + n
                            store(grad_B, place, load(grad_B, place) + g * scaled[t])
                            store(rows, i * LANES, g * load(B, at_B + t * states + n))
                            g = g * load(decays, t * LANES)
                            through_decay = g * load(history, t * LANES)
                            through_rate = through_rate + through_decay * steps[t]
                            store(more_rows, i * LANES, through_decay * rate)
                        store(grad_scaled, begin, load(grad_scaled, begin) + totals(rows))
                        store(grad_rate, begin, load(grad_rate, begin) + totals(more_rows))
                    store(adjoint, at, without_tiny(g))
                    store(lanes, 0, through_rate)
                    for lane in range(LANES):
                        grad_A[b, d, n + lane] += lanes[lane]
                sum_D, sum_bias = load(grad_y, 0) * 0.0, load(grad_y, 0) * 0.0
                for t in range(0, count, LANES):
                    value, step, outer, inner = load(inputs, t), load(steps, t), load(grad_y, t), load(grad_scaled, t)
                    sum_D = sum_D + outer * value
                    # rate is A log2 e.
                    grad_step = inner * value + load(grad_rate, t) * LN_2
                    if with_softplus:
                        grad_step = grad_step * sigmoid(load(sizes, t))
                    sum_bias = sum_bias + grad_step
                    store(gate, t, load(gate, t) * (load(y, t) + value * D[d]))
                    store(grad_scaled, t, inner * step + outer * D[d])
                    store(grad_rate, t, grad_step)
                grad_D[b, d] += total(sum_D)
                grad_bias[b, d] += total(sum_bias)
                _scatter(grad_scaled, block, step_stride, run_stride, grad_u[b, d])
                _scatter(grad_rate, block, step_stride, run_stride, grad_delta[b, d])
                if z.shape[0] > 0:
                    _scatter(gate, block, step_stride, run_stride, grad_z[b, d])
