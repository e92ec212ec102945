"""The causal convolution on a GPU by Triton kernels (`triton_kernels`): one pass, SiLU included, orders by index.

Before a device uses them, they are compared with plain PyTorch there (`triton_probe`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_ext.ops import triton_probe
from nnunet_ext.ops.backends import probed
from nnunet_ext.ops.causal_conv1d.reference import reference
from nnunet_ext.ops.order import ORIENTATIONS, reorder, restore

# The kernels unroll the filter.
WIDEST = 8
# Tokens times channels of one program's tile, and the channels among them where channels are neighbours in memory.
_TILE = 512
_CHANNELS = 32


def why_not(device: torch.device) -> str | None:
    """None if the kernels gave right results on this device, else the reason in one line."""
    return triton_probe.why_not(device, _probe)


@probed
def _probe(device: torch.device, channels: int = 40, length: int = 600) -> str | None:
    def arguments():
        g = torch.Generator().manual_seed(0)
        shapes = [(2, channels, length), (channels, 4), (channels,)]
        return [torch.randn(shape, generator=g, dtype=torch.float32).to(device) for shape in shapes]

    def kernels(x, weight, bias):
        outs = [convolve(x, weight, bias, True, orientation, 6) for orientation in ORIENTATIONS]
        channels_last = x.transpose(1, 2).contiguous().transpose(1, 2)
        return *outs, convolve(channels_last, weight, bias, True, "forward", 1)

    # Not PyTorch's convolution, which may compute in TF32.
    def written_out(x, weight, bias):
        ordered = ((reorder(x, orientation, 6), orientation) for orientation in ORIENTATIONS)
        outs = [restore(reference(x, weight, bias, True), orientation, 6) for x, orientation in ordered]
        return *outs, outs[0]

    return triton_probe.disagreement(kernels, written_out, arguments)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, orientation: str, num_slices: int) -> Tensor:
    """Arguments as `causal_conv1d`, at most WIDEST weights per channel, of any floating types and strides.

    The output has the type of `x` and lies in memory as `x` does.
    """
    bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
    return _forward(x, weight.contiguous(), bias.contiguous(), silu, ORIENTATIONS.index(orientation), num_slices)


@torch.library.custom_op(
    "nnunet_ext::causal_conv1d_triton",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, bool silu, int order, int num_slices) -> Tensor",
)
def _forward(x, weight, bias, silu, order, num_slices):
    out = torch.empty_like(x)
    _launch("outputs", x, weight, bias, silu, order, num_slices, [out])
    return out


@_forward.register_fake
def _(x, weight, bias, silu, order, num_slices):
    return torch.empty_like(x)


@torch.library.custom_op(
    "nnunet_ext::causal_conv1d_triton_backward",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, bool silu, int order, int num_slices, Tensor grad_out) -> "
    "(Tensor, Tensor, Tensor)",
)
def _backward(x, weight, bias, silu, order, num_slices, grad_out):
    grad_x, width = torch.empty_like(x), weight.shape[1]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    blocks = -(-x.shape[2] // _tile(x)[0])
    parts = x.new_empty(x.shape[0], blocks, x.shape[1], width + 1, dtype=compute)
    _launch("gradients", x, weight, bias, silu, order, num_slices, [grad_out, grad_x], parts)
    grad_weight, grad_bias = parts[..., :width].sum((0, 1)), parts[..., width].sum((0, 1))
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


@_backward.register_fake
def _(x, weight, bias, silu, order, num_slices, grad_out):
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _save(ctx, inputs, output):
    *tensors, ctx.silu, ctx.order, ctx.num_slices = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, grad_out):
    return *_backward(*ctx.saved_tensors, ctx.silu, ctx.order, ctx.num_slices, grad_out), None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _tile(x: Tensor) -> tuple[int, int]:
    """Tokens and channels of a tile: along the axis whose neighbours are neighbours in memory."""
    if x.stride(2) <= x.stride(1):
        return _TILE, 1
    channels = min(_CHANNELS, 1 << (x.shape[1] - 1).bit_length())
    return _TILE // channels, channels


def _launch(name, x, weight, bias, silu, order, num_slices, sequences, *parts):
    from triton import language as tl

    from nnunet_ext.ops.causal_conv1d import triton_kernels

    if x.numel() == 0:
        return
    batch, channels, length = x.shape
    tokens, at_once = _tile(x)
    grid = (-(-length // tokens), -(-channels // at_once), batch)
    strided = [argument for tensor in sequences for argument in (tensor, *tensor.stride())]
    # Triton launches on the current device.
    with torch.cuda.device_of(x):
        getattr(triton_kernels, name)[grid](
            x, *x.stride(), weight, bias, *strided, *parts, length, channels, num_slices,
            WIDTH=weight.shape[1], SILU=silu, ORDER=order, TOKENS=tokens, CHANNELS=at_once,
            COMPUTE=tl.float64 if x.dtype == torch.float64 else tl.float32,
        )  # fmt: skip
