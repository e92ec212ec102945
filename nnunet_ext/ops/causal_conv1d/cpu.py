"""The causal convolution on the CPU by numba kernels (`cpu_kernels`): one pass, SiLU included, orders by index."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.ops.compiled import array, compile_kernel, empty, share_rows, thread_count, why_no_numba
from nnunet_ext.ops.order import blocks_of, places_of


def why_not(device: torch.device) -> str | None:
    """None if the kernels run on this device, else the reason in one line."""
    return why_no_numba() if device.type == "cpu" else "needs a CPU"


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, orientation: str, num_slices: int) -> Tensor:
    """Arguments as `causal_conv1d`, x in float32 or float64."""
    bias = x.new_zeros(x.shape[1]) if bias is None else bias.to(x.dtype)
    return _forward(x, weight.to(x.dtype), bias, silu, orientation, num_slices)


@torch.library.custom_op(
    "nnunet_ext::causal_conv1d_cpu",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor bias, bool silu, str orientation, int num_slices) -> Tensor",
)
def _forward(x, weight, bias, silu, orientation, num_slices):
    out = empty(tuple(x.shape), x)
    _run("forward", x, weight, bias, silu, orientation, num_slices, out.numpy())
    return out


@_forward.register_fake
def _(x, weight, bias, silu, orientation, num_slices):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "nnunet_ext::causal_conv1d_cpu_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor bias, bool silu, str orientation, int num_slices, Tensor grad_out) -> "
    "(Tensor, Tensor, Tensor)",
)
def _backward(x, weight, bias, silu, orientation, num_slices, grad_out):
    grad_x = empty(tuple(x.shape), x)
    grad_weight, grad_bias = np.zeros((x.shape[0], *weight.shape)), np.zeros(x.shape[:2])
    results = (grad_out.numpy(), grad_x.numpy(), grad_weight, grad_bias)
    _run("backward", x, weight, bias, silu, orientation, num_slices, *results)
    return grad_x, *(torch.from_numpy(grad.sum(0)).to(x.dtype) for grad in (grad_weight, grad_bias))


@_backward.register_fake
def _(x, weight, bias, silu, orientation, num_slices, grad_out):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weight, bias))


def _save(ctx, inputs, output):
    *tensors, ctx.silu, ctx.orientation, ctx.num_slices = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, grad_out):
    return *_backward(*ctx.saved_tensors, ctx.silu, ctx.orientation, ctx.num_slices, grad_out), None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _run(name, x, weight, bias, silu, orientation, num_slices, *results):
    batch, channels, length = x.shape
    blocks, _, _ = blocks_of(orientation, num_slices, length)
    places = places_of(orientation, num_slices, length)
    arrays = (x.numpy(), weight.contiguous().numpy(), bias.contiguous().numpy())
    kernel = _kernel(name, x.dtype)

    def part(_, first, last):
        kernel(*arrays, silu, blocks, *places, first, last, *results)

    rows = batch * channels
    share_rows(rows, thread_count(rows, rows * length * weight.shape[1]), part)


@functools.cache
def _kernel(name: str, dtype: torch.dtype) -> Any:
    """A kernel compiled for one type of numbers and any strides of the sequences."""
    from numba import boolean, int64

    from nnunet_ext.ops.causal_conv1d import cpu_kernels

    sequence, sums = array(3, dtype, strided=True), torch.float64
    signature = [sequence, array(2, dtype), array(1, dtype), boolean, array(2, torch.int64), *[int64] * 6, sequence]
    if name == "backward":
        signature += [sequence, array(3, sums), array(2, sums)]
    return compile_kernel(getattr(cpu_kernels, name), signature)
