"""Triton kernels of the causal convolution; `gpu` launches them. One pass forward, one backward, SiLU included.

A program takes a tile of tokens that are neighbours in memory, finds the step of the scan each of them is, and reads
the steps around it. So every order reads whole lines: the previous step of a token is, but for the ends of the slices,
the same number of tokens away for the whole tile. What neighbouring taps read twice comes from the cache.

Sequences have any strides (`*_batch`, `*_row` from channel to channel, `*_token`). Arithmetic is float32 whatever the
type of the inputs (float64 for float64).
"""

# mypy: ignore-errors
# Triton's dialect: arguments are pointers, constants are annotated with objects that are no types.

from __future__ import annotations

import triton
import triton.language as tl

from nnunet_ext.ops.selective_scan.triton_kernels import FORWARD, REVERSE, _sigmoid, _token


@triton.jit
def _step(token, length, num_slices, ORDER: tl.constexpr):
    """The inverse of `_token`."""
    if ORDER == FORWARD:
        return token
    elif ORDER == REVERSE:
        return length - 1 - token
    else:
        places = length // num_slices
        return (token % places) * num_slices + token // places


@triton.jit
def _load(pointer, row, token_stride, step, d, inside, length, num_slices, ORDER: tl.constexpr, COMPUTE: tl.constexpr):
    """A (tokens, channels) tile at these steps, zero before the first and after the last step."""
    inside = inside & ((step >= 0) & (step < length))[:, None]
    token = _token(step, length, num_slices, ORDER).to(tl.int64)
    return tl.load(pointer + token[:, None] * token_stride + d[None, :] * row, inside, 0.0).to(COMPUTE)


@triton.jit
def _tile(length, channels, num_slices, ORDER: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's batch entry, tokens and channels, the tokens' steps, and what of the tile exists."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (token < length)[:, None] & (d < channels)[None, :]
    step = _step(token, length, num_slices, ORDER)
    return tl.program_id(2).to(tl.int64), token.to(tl.int64), d.to(tl.int64), step, inside


@triton.jit
def outputs(
    x, x_batch, x_row, x_token, weight, bias, out, out_batch, out_row, out_token, length, channels, num_slices,
    WIDTH: tl.constexpr, SILU: tl.constexpr, ORDER: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """out[t] = silu(bias + sum_k weight[k] x[t - WIDTH + 1 + k]); weight (channels, WIDTH) and bias are contiguous."""
    batch, token, d, step, inside = _tile(length, channels, num_slices, ORDER, TOKENS, CHANNELS)
    x += batch * x_batch
    y = tl.zeros((TOKENS, CHANNELS), COMPUTE) + tl.load(bias + d, d < channels, 0.0).to(COMPUTE)[None, :]
    for k in tl.static_range(WIDTH):
        tap = tl.load(weight + d * WIDTH + k, d < channels, 0.0).to(COMPUTE)[None, :]
        y += tap * _load(x, x_row, x_token, step + (k + 1 - WIDTH), d, inside, length, num_slices, ORDER, COMPUTE)
    if SILU:
        y = y * _sigmoid(y)
    tl.store(out + batch * out_batch + token[:, None] * out_token + d[None, :] * out_row, y, inside)


@triton.jit
def gradients(
    x, x_batch, x_row, x_token, weight, bias, grad_out, grad_out_batch, grad_out_row, grad_out_token,
    grad_x, grad_x_batch, grad_x_row, grad_x_token, parts, length, channels, num_slices,
    WIDTH: tl.constexpr, SILU: tl.constexpr, ORDER: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """grad_x[t] = sum_k weight[k] g[t + WIDTH - 1 - k], g being the gradient of the sum before SiLU.

    parts (batch, blocks of tokens, channels, WIDTH + 1) receives this tile's gradients of the weights and the bias, to
    be summed always in the same order, so that results repeat exactly.
    """
    batch, token, d, step, inside = _tile(length, channels, num_slices, ORDER, TOKENS, CHANNELS)
    x += batch * x_batch
    grad_out += batch * grad_out_batch
    offset = tl.load(bias + d, d < channels, 0.0).to(COMPUTE)[None, :]
    grad_value = tl.zeros((TOKENS, CHANNELS), COMPUTE)
    # The steps that see this token are this one and the WIDTH - 1 that follow. Their sums are computed anew; of the
    # WIDTH^2 reads the compiler keeps the 2 WIDTH - 1 that differ, as long as nothing is stored between them.
    for ahead in tl.static_range(WIDTH):
        g = _load(grad_out, grad_out_row, grad_out_token, step + ahead, d, inside, length, num_slices, ORDER, COMPUTE)
        if SILU:
            y = tl.zeros((TOKENS, CHANNELS), COMPUTE) + offset
            for k in tl.static_range(WIDTH):
                value = _load(
                    x, x_row, x_token, step + (ahead + k + 1 - WIDTH), d, inside, length, num_slices, ORDER, COMPUTE
                )
                y += tl.load(weight + d * WIDTH + k, d < channels, 0.0).to(COMPUTE)[None, :] * value
            opening = _sigmoid(y)
            g = g * opening * (1.0 + y * (1.0 - opening))
        if ahead == 0:
            own = g
        tap = tl.load(weight + d * WIDTH + (WIDTH - 1 - ahead), d < channels, 0.0).to(COMPUTE)[None, :]
        grad_value += tap * g
    column = tl.arange(0, 16)  # room for eight weights and the bias
    sums = tl.where(column[None, :] == WIDTH, tl.sum(own, 0)[:, None], 0.0)
    for k in tl.static_range(WIDTH):
        value = _load(x, x_row, x_token, step + (k + 1 - WIDTH), d, inside, length, num_slices, ORDER, COMPUTE)
        sums += tl.where(column[None, :] == k, tl.sum(own * value, 0)[:, None], 0.0)
    place = (batch * tl.num_programs(0) + tl.program_id(0)) * channels + d
    tl.store(
        parts + place[:, None] * (WIDTH + 1) + column[None, :], sums,
        (d < channels)[:, None] & (column <= WIDTH)[None, :],
    )  # fmt: skip
    at = batch * grad_x_batch + token[:, None] * grad_x_token + d[None, :] * grad_x_row
    tl.store(grad_x + at, grad_value, inside)
