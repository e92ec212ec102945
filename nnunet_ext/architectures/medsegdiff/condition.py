"""Condition model and anchor condition of MedSegDiff-V2 (section "Anchor Condition with U-SA")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from torch import Tensor, nn

from nnunet_ext.architectures.blocks import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS

INSTANCE_NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ConditionModel(nn.Module):
    """nnU-Net's plain U-Net on the image, with its own segmentation and the two features the diffusion model needs.

    Without a diffusion model it is the direct control.

    Args:
        input_channels: channels of the image.
        num_classes: channels of its segmentation.
        features: channels per stage.
        strides: per stage and axis, the first of them 1.
        kernel_sizes: per stage and axis.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
    ):
        super().__init__()
        spatial_dims, stages = len(strides[0]), len(features)
        conv = CONVOLUTIONS[spatial_dims]
        style = {
            "conv_bias": True,
            "norm_op": INSTANCE_NORMS[spatial_dims],
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": nn.LeakyReLU,
            "nonlin_kwargs": {"inplace": True},
        }
        self.encoder = PlainConvEncoder(
            input_channels, stages, list(features), conv, list(kernel_sizes), list(strides), 2, return_skips=True,
            **style,
        )  # fmt: skip
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for s in range(stages - 1, 0, -1):
            up = TRANSPOSED_CONVOLUTIONS[spatial_dims]
            self.ups.append(up(features[s], features[s - 1], tuple(strides[s]), tuple(strides[s])))
            self.blocks.append(
                StackedConvBlocks(2, conv, 2 * features[s - 1], features[s - 1], list(kernel_sizes[s - 1]), 1, **style)
            )
        # nnU-Net's fine-tuning skips parameters whose name holds `.seg_layers.`.
        self.head = nn.Module()
        self.head.seg_layers = conv(features[0], num_classes, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment an image.

        Args:
            image: (batch, input_channels, *grid), the grid a multiple of the strides.

        Returns:
            Logits (batch, num_classes, *grid); the last decoder feature f_c^-1 (batch, features[0], *grid); and
            the deepest embedding c0 (batch, features[-1], *grid / strides).
        """
        *skips, x = self.encoder(image)
        embedding = x
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = block(torch.cat((up(x), skips.pop()), 1))
        return self.head.seg_layers(x), x, embedding  # type: ignore[operator]


class SpatialAttention(nn.Module):
    """Plain spatial attention, the paper's ablation of U-SA: sigmoid of a 1x1 convolution to one channel."""

    def __init__(self, channels: int, spatial_dims: int):
        super().__init__()
        self.project = CONVOLUTIONS[spatial_dims](channels, 1, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Feature f_c^-1 (batch, channels, *grid) -> attention in (0, 1), (batch, 1, *grid)."""
        return self.project(feature).sigmoid()


class UncertainSpatialAttention(SpatialAttention):
    """U-SA: the feature widened by a learned Gaussian, so that the anchor is no harder than it is certain.

        f_anc = max(f_c^-1 * k_Gauss, f_c^-1)
        f_d'  = sigmoid(conv_1x1(f_anc)) . f_d^0 + f_d^0

    `forward` gives the sigmoid; `anchor` does the second line. The paper leaves open what of the Gaussian is learned.
    Here each channel learns its standard deviation, so that the kernel stays a Gaussian; it has 7 voxels per axis
    and begins at 1 voxel. At 0 it is a delta and the maximum the identity.
    """

    RADIUS = 3

    def __init__(self, channels: int, spatial_dims: int):
        super().__init__(channels, spatial_dims)
        self.log_sigma = nn.Parameter(torch.zeros(channels))

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(torch.maximum(self.smooth(feature), feature))

    def smooth(self, feature: Tensor) -> Tensor:
        """f * k_Gauss for (batch, channels, *grid), axis by axis, with zeros outside."""
        grid, radius = feature.shape[2:], self.RADIUS
        offsets = torch.arange(-radius, radius + 1, device=feature.device, dtype=torch.float32)
        kernel = (-0.5 * (offsets / self.log_sigma.exp()[:, None]).square()).softmax(1).to(feature.dtype)
        # As 2D convolutions of a reshaped grid, several times faster on a CPU than 3D ones with a thin kernel.
        for axis, n in enumerate(grid):
            before, channels = grid[:axis].numel(), len(kernel)
            if axis == len(grid) - 1:
                x, weight, padding = feature.reshape(-1, channels, before, n), kernel[:, None, None], (0, radius)
            else:
                x = feature.reshape(-1, channels * before, n, grid[axis + 1 :].numel())
                weight, padding = kernel.repeat_interleave(before, 0)[:, None, :, None], (radius, 0)
            feature = F.conv2d(x, weight, padding=padding, groups=x.shape[1]).reshape(feature.shape)
        return feature


def anchor(attention: Tensor, feature: Tensor) -> Tensor:
    """f_d' = attention . f_d^0 + f_d^0: (batch, 1, *grid) and (batch, channels, *grid)."""
    return attention * feature + feature
