"""Convolution blocks in the style of UNETR (Hatamizadeh et al., arXiv:2103.10504), in 2D and 3D.

Module names are those of the networks that use them, so published weights load by name. All instance norms are
without parameters and use the statistics of their own input, in training and in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_CONVOLUTIONS = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Convolution(nn.Module):
    """A convolution under the name `conv`, padded so that stride 1 keeps the grid."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int, bias: bool = False):
        super().__init__()
        self.conv = CONVOLUTIONS[spatial_dims](
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResidualBlock(nn.Module):
    """conv3 - norm - LeakyReLU - conv3 - norm, plus the input (through conv1 - norm where channels change)."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = Convolution(spatial_dims, in_channels, out_channels, 3)
        self.conv2 = Convolution(spatial_dims, out_channels, out_channels, 3)
        self.conv3 = Convolution(spatial_dims, in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(F.instance_norm(self.conv1(x)), 0.01)
        y = F.instance_norm(self.conv2(y))
        shortcut = x if self.conv3 is None else F.instance_norm(self.conv3(x))
        return F.leaky_relu(y + shortcut, 0.01)


class EncoderBlock(nn.Module):
    """One residual block under the name `layer` (UNETR's basic block)."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.layer = ResidualBlock(spatial_dims, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class UpBlock(nn.Module):
    """Transposed convolution with kernel = stride, concatenation with the skip, one residual block."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: Sequence[int]):
        super().__init__()
        stride = tuple(stride)
        self.transp_conv = nn.Module()
        self.transp_conv.conv = TRANSPOSED_CONVOLUTIONS[spatial_dims](
            in_channels, out_channels, kernel_size=stride, stride=stride, bias=False
        )
        self.conv_block = ResidualBlock(spatial_dims, 2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(torch.cat((self.transp_conv.conv(x), skip), dim=1))


def pad_to_multiple(x: Tensor, multiples: Sequence[int]) -> Tensor:
    """Zeros at the end of each axis of (batch, channels, *grid), up to multiples of the given voxels."""
    missing = [-size % multiple for size, multiple in zip(x.shape[2:], multiples, strict=True)]
    return F.pad(x, [n for size in reversed(missing) for n in (0, size)]) if any(missing) else x


def crop_to(x: Tensor, grid: Sequence[int]) -> Tensor:
    """The first voxels of each axis, which undoes the padding: contiguous (batch, channels, *grid)."""
    if x.shape[2:] == tuple(grid):
        return x
    return x[(slice(None), slice(None)) + tuple(slice(size) for size in grid)].contiguous()
