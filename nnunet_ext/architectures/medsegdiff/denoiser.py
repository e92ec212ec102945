"""Diffusion model of MedSegDiff-V2: a U-Net of the noisy mask whose blocks know the time step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.blocks import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from nnunet_ext.architectures.precision import double_device


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of t at dim / 2 frequencies from 1 to 1/10000 (Ho et al. 2020): (batch,) -> (batch, dim).

    Single precision, of angles in double precision.
    """
    half, device = dim // 2, double_device(t.device)
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=device, dtype=torch.float64) / half)
    angles = t.to(device).double()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), 1).float().to(t.device)


class TimeEmbedding(nn.Module):
    """The time step for all that depends on it, U-Net and NBP-Filters alike: (batch,) -> (batch, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, self.dim))


class TimedBlock(nn.Module):
    """norm - SiLU - conv - norm, scaled and shifted by the time step - SiLU - conv, plus the input (through conv1).

    Args:
        in_channels, out_channels: of the block.
        embedding_dim: channels of the time embedding.
        kernel_size: per axis, odd.
        stride: of the first convolution, per axis; the input is taken at the same places.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] | None = None,
    ):
        super().__init__()
        conv = CONVOLUTIONS[len(kernel_size)]
        kernel, step = tuple(kernel_size), tuple(stride or (1,) * len(kernel_size))
        padding = tuple(k // 2 for k in kernel)
        self.norm1, self.norm2 = _group_norm(in_channels), _group_norm(out_channels)
        self.conv1 = conv(in_channels, out_channels, kernel, step, padding)
        self.conv2 = conv(out_channels, out_channels, kernel, 1, padding)
        self.time = nn.Linear(embedding_dim, 2 * out_channels)
        self.activation = nn.SiLU()
        self.kept = (slice(None), slice(None), *(slice(None, None, s) for s in step))
        changes = in_channels != out_channels or any(s > 1 for s in step)
        self.shortcut = conv(in_channels, out_channels, 1) if changes else nn.Identity()
        # Each block begins as its shortcut, which lets deep ones learn from the first step.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(batch, in_channels, *grid) and (batch or 1, embedding_dim) -> (batch, out_channels, *grid / stride)."""
        scale, shift = self.time(embedding).reshape(len(embedding), 2, -1, *(1,) * (x.dim() - 2)).unbind(1)
        h = self.conv1(self.activation(self.norm1(x)))
        h = self.conv2(self.activation(self.norm2(h) * (1 + scale) + shift))
        # Not a strided 1x1 convolution: in torch 2.15 its backward pass writes beyond its memory on CPUs (oneDNN,
        # channels last, 8 channels).
        return self.shortcut(x[self.kept]) + h


class Denoiser(nn.Module):
    """The U-Net: one timed block per stage and direction, at the strides of the condition model.

    Args:
        input_channels: of the image where it is shown to the diffusion model; 0 where it is not.
        num_classes: channels of the noisy mask and of the output.
        features: channels per stage.
        strides: per stage and axis, the first of them 1.
        kernel_sizes: per stage and axis.
        embedding_dim: channels of the time embedding.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        embedding_dim: int,
    ):
        super().__init__()
        spatial_dims = len(strides[0])
        conv, up = CONVOLUTIONS[spatial_dims], TRANSPOSED_CONVOLUTIONS[spatial_dims]
        kernel = tuple(kernel_sizes[0])
        padding = tuple(k // 2 for k in kernel)
        # One convolution of mask and image, in two parts: that of the image is the same in every step.
        self.stem_mask = conv(num_classes, features[0], kernel, padding=padding)
        self.stem_image = (
            conv(input_channels, features[0], kernel, padding=padding, bias=False) if input_channels else None
        )
        self.down, self.ups, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for s, width in enumerate(features):
            below = features[max(s - 1, 0)]
            self.down.append(TimedBlock(below, width, embedding_dim, kernel_sizes[s], strides[s]))
        for s in range(len(features) - 1, 0, -1):
            self.ups.append(up(features[s], features[s - 1], tuple(strides[s]), tuple(strides[s])))
            self.up.append(TimedBlock(2 * features[s - 1], features[s - 1], embedding_dim, kernel_sizes[s - 1]))
        self.norm = _group_norm(features[0])
        self.activation = nn.SiLU()
        self.seg_layers = conv(features[0], num_classes, 1)

    def forward(
        self,
        x_t: Tensor,
        embedding: Tensor,
        image: Tensor | None,
        anchor: Callable[[Tensor], Tensor],
        semantic: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """One evaluation.

        Args:
            x_t: noisy mask (batch, num_classes, *grid).
            embedding: of the time step, (batch or 1, embedding_dim).
            image: the image after `stem_image`, (batch or 1, features[0], *grid), or None.
            anchor: the first feature f_d^0 -> the same with the anchor condition.
            semantic: the deepest embedding e -> the same with the semantic condition.

        Returns:
            (batch, num_classes, *grid).
        """
        x = self.stem_mask(x_t)
        if image is not None:
            x = x + image
        x = anchor(x)
        skips = []
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
        x = semantic(skips.pop())
        for up, block in zip(self.ups, self.up, strict=True):
            x = block(torch.cat((up(x), skips.pop()), 1), embedding)
        return self.seg_layers(self.activation(self.norm(x)))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)
