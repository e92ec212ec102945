"""The causal convolution's inner loops for the CPU, compiled by numba; `causal_conv1d` prepares their arguments.

Sequences are walked in the order of the scan, as in `selective_scan.cpu_kernels`: a table of blocks for the steps of a
block, and for a single step t the place `origin + (t mod period) step_stride + (t div period) run_stride`.
"""

# mypy: ignore-errors
# Kernels are in numba's dialect: compiled, intrinsics lose their first argument and arrays have other types.

from __future__ import annotations

import numpy as np

from nnunet_ext.ops.selective_scan.cpu_kernels import RUNS, START, STEPS, _gather, _longest, _scatter
from nnunet_ext.ops.selective_scan.simd import LANES, load, sigmoid, store, total


def forward(x, weight, bias, with_silu, blocks, origin, period, step_stride, run_stride, first, last, out):
    """out[t] = silu(bias + sum_k weight[k] x[t - width + 1 + k]) for the rows first <= row < last.

    x, out (batch, channels, length); weight (channels, width); bias (channels,).
    """
    channels, width = weight.shape
    past = width - 1
    room = _longest(blocks)
    window, y = np.zeros(past + room + LANES, x.dtype), np.zeros(room, x.dtype)
    for row in range(first, last):
        b, d = row // channels, row % channels
        window[:past] = 0
        for q in range(blocks.shape[0]):
            block = blocks[q]
            count = block[STEPS] * block[RUNS]
            _gather(x[b, d], block, step_stride, run_stride, window[past:])
            for t in range(0, count, LANES):
                value = load(window, t) * weight[d, 0] + bias[d]
                for k in range(1, width):
                    value = value + load(window, t + k) * weight[d, k]
                store(y, t, value * sigmoid(value) if with_silu else value)
            _scatter(y, block, step_stride, run_stride, out[b, d])
            for k in range(past):
                window[k] = window[count + k]


def backward(
    x, weight, bias, with_silu, blocks, origin, period, step_stride, run_stride, first, last,
    grad_out, grad_x, grad_weight, grad_bias,
):  # fmt: skip
    """Gradients of the rows first <= row < last; grad_weight (batch, channels, width), grad_bias (batch, channels)."""
    channels, width = weight.shape
    past = width - 1
    room = _longest(blocks)
    window, y = np.zeros(past + room + LANES, x.dtype), np.zeros(room, x.dtype)
    # The gradient of the sum before SiLU: the block's steps, then `past` steps of the following block.
    grad_sum, following = np.zeros(room + past + LANES, x.dtype), np.zeros(past + 1, x.dtype)
    for row in range(first, last):
        b, d = row // channels, row % channels
        following[:] = 0
        for q in range(blocks.shape[0] - 1, -1, -1):
            block = blocks[q]
            count = block[STEPS] * block[RUNS]
            for k in range(past):
                t = block[START] - past + k
                window[k] = x[b, d, origin + (t % period) * step_stride + (t // period) * run_stride] if t >= 0 else 0
            _gather(x[b, d], block, step_stride, run_stride, window[past:])
            _gather(grad_out[b, d], block, step_stride, run_stride, grad_sum)
            sum_bias = load(grad_sum, 0) * 0.0
            for t in range(0, count, LANES):
                grad = load(grad_sum, t)
                if with_silu:
                    value = load(window, t) * weight[d, 0] + bias[d]
                    for k in range(1, width):
                        value = value + load(window, t + k) * weight[d, k]
                    opening = sigmoid(value)
                    grad = grad * (opening * (1.0 + value * (1.0 - opening)))
                    store(grad_sum, t, grad)
                sum_bias = sum_bias + grad
            grad_bias[b, d] += total(sum_bias)
            for k in range(width):
                sum_weight = sum_bias * 0.0
                for t in range(0, count, LANES):
                    sum_weight = sum_weight + load(grad_sum, t) * load(window, t + k)
                grad_weight[b, d, k] += total(sum_weight)
            grad_sum[count : count + past] = following[:past]
            for t in range(0, count, LANES):
                value = load(grad_sum, t + past) * weight[d, 0]
                for k in range(1, width):
                    value = value + load(grad_sum, t + past - k) * weight[d, k]
                store(y, t, value)
            _scatter(y, block, step_stride, run_stride, grad_x[b, d])
            following[:past] = grad_sum[:past]
