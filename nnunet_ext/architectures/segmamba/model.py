"""SegMamba (Xing, Ye, Yang, Liu & Zhu, MICCAI 2024, arXiv:2401.13560): state-space blocks in a U-shaped network.

Built as the authors' code has it, because published weights and figures come from the code. Where the paper says
otherwise:

* Gated spatial convolution: the paper normalises before each convolution and multiplies its two branches; the code
  normalises after, adds them, has one more 3x3x3 convolution in the first branch and ends with a 1x1x1 one.
* Blocks: the paper's block is a Mamba layer and an MLP, both with LayerNorm and residual; the code's is the Mamba
  layer alone, and one MLP per stage, without residual, feeds the skip only.
* The paper's feature-level uncertainty estimation on the skips is not in the code, and not here.
* Stem: depthwise 7x7x7 in the paper, dense in the code. The bottleneck of 768 channels sits at 1/16, not 1/32.

What is added, off unless asked for: deep supervision, gradient checkpointing, other strides than 2 (for anisotropic
patches), and a 2D form, in which the three orders are row by row, its reverse, and column by column. The paper is 3D
only. `num_slices` is a list of four constants in the code, right for patches of 128 slices; by default it is here
the first axis of each stage's own grid, which is the same there and fits every other patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_ext.architectures.blocks import CONVOLUTIONS, EncoderBlock, UpBlock, crop_to, pad_to_multiple
from nnunet_ext.architectures.segmamba.mamba import MambaLayer, TriOrientedMamba

OFFICIAL_NUM_SLICES = (64, 32, 16, 8)


class GatedSpatialConvolution(nn.Module):
    """GSC (section 2.3, as coded): two convolution branches added, projected, plus the input."""

    def __init__(self, spatial_dims: int, channels: int):
        super().__init__()
        conv = CONVOLUTIONS[spatial_dims]
        self.proj = conv(channels, channels, 3, padding=1)
        self.proj2 = conv(channels, channels, 3, padding=1)
        self.proj3 = conv(channels, channels, 1)
        self.proj4 = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        spatial = F.relu(F.instance_norm(self.proj(x)))
        spatial = F.relu(F.instance_norm(self.proj2(spatial)))
        pointwise = F.relu(F.instance_norm(self.proj3(x)))
        return F.relu(F.instance_norm(self.proj4(spatial + pointwise))) + x


class ChannelMLP(nn.Module):
    """Two 1x1 convolutions with a GELU between them."""

    def __init__(self, spatial_dims: int, channels: int):
        super().__init__()
        self.fc1 = CONVOLUTIONS[spatial_dims](channels, 2 * channels, 1)
        self.fc2 = CONVOLUTIONS[spatial_dims](2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MambaEncoder(nn.Module):
    """Stem and three downsamplings, each followed by a GSC and tri-orientated Mamba layers; returns four skips."""

    def __init__(
        self,
        in_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        num_slices: Sequence[int] | None,
        strides: Sequence[Sequence[int]],
        gradient_checkpointing: bool,
    ):
        super().__init__()
        spatial_dims = len(strides[0])
        conv = CONVOLUTIONS[spatial_dims]
        norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[spatial_dims]
        self.num_slices = num_slices
        self.gradient_checkpointing = gradient_checkpointing
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(conv(in_channels, dims[0], 7, stride=tuple(strides[0]), padding=3))]
        )
        for i in range(3):
            stride = tuple(strides[i + 1])
            self.downsample_layers.append(
                nn.Sequential(norm(dims[i]), conv(dims[i], dims[i + 1], kernel_size=stride, stride=stride))
            )
        self.stages = nn.ModuleList(
            nn.ModuleList(MambaLayer(dim) for _ in range(depth)) for dim, depth in zip(dims, depths, strict=True)
        )
        self.gscs = nn.ModuleList(GatedSpatialConvolution(spatial_dims, dim) for dim in dims)
        self.mlps = nn.ModuleList(ChannelMLP(spatial_dims, dim) for dim in dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for i, (down, gsc, stage, mlp) in enumerate(
            zip(self.downsample_layers, self.gscs, self.stages, self.mlps, strict=True)
        ):
            x = gsc(down(x))
            num_slices = x.shape[2] if self.num_slices is None else self.num_slices[i]
            for layer in stage:  # type: ignore[union-attr]
                if self.gradient_checkpointing and self.training:
                    x = checkpoint(layer, x, num_slices, use_reentrant=False)
                else:
                    x = layer(x, num_slices)
            skips.append(mlp(F.instance_norm(x)))
        return skips


class SegMamba(nn.Module):
    """SegMamba for any grid; the defaults are the published network (67.4 M parameters).

    Args:
        input_channels: channels of the image.
        num_classes: channels of the output.
        deep_supervision: in training, return a list of logits, finest first; needs `supervised_stages`.
        depths: Mamba layers per stage.
        dims: channels per stage.
        hidden_size: channels of the bottleneck.
        num_slices: per stage, parts of the inter-slice order; None takes the first axis of the stage's grid.
        strides: per stage, downsampling per axis; their length sets 2D or 3D.
        supervised_stages: extra heads for deep supervision, at the resolutions of the first stages (0 to 3).
        gradient_checkpointing: recompute the Mamba layers in backward: less memory, more time.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        depths: Sequence[int] = (2, 2, 2, 2),
        dims: Sequence[int] = (48, 96, 192, 384),
        hidden_size: int = 768,
        num_slices: Sequence[int] | None = None,
        strides: Sequence[Sequence[int]] = ((2, 2, 2),) * 4,
        supervised_stages: int = 0,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        for name, value in (("depths", depths), ("dims", dims), ("num_slices", num_slices), ("strides", strides)):
            if value is not None and len(value) != 4:
                raise ValueError(f"{name} must have one entry for each of the four stages, not {value!r}")
        spatial_dims = len(strides[0])
        if spatial_dims not in (2, 3) or any(len(stride) != spatial_dims for stride in strides):
            raise ValueError(f"strides must be four pairs or four triples, not {strides!r}")
        if not 0 <= supervised_stages <= 3:
            raise ValueError(f"supervised_stages must be 0 to 3, not {supervised_stages}")
        if deep_supervision and not supervised_stages:
            raise ValueError("deep_supervision needs supervised_stages of at least 1 when the network is built")
        self.deep_supervision = deep_supervision
        self.input_channels = input_channels
        # Voxels of the input per voxel of each stage, per axis.
        self.reductions = [*accumulate(strides, lambda a, b: tuple(x * y for x, y in zip(a, b, strict=True)))]
        self.vit = MambaEncoder(input_channels, dims, depths, num_slices, strides, gradient_checkpointing)
        widths = [*dims, hidden_size]
        self.encoder1 = EncoderBlock(spatial_dims, input_channels, widths[0])
        self.encoder2 = EncoderBlock(spatial_dims, widths[0], widths[1])
        self.encoder3 = EncoderBlock(spatial_dims, widths[1], widths[2])
        self.encoder4 = EncoderBlock(spatial_dims, widths[2], widths[3])
        self.encoder5 = EncoderBlock(spatial_dims, widths[3], widths[4])
        self.decoder5 = UpBlock(spatial_dims, widths[4], widths[3], strides[3])
        self.decoder4 = UpBlock(spatial_dims, widths[3], widths[2], strides[2])
        self.decoder3 = UpBlock(spatial_dims, widths[2], widths[1], strides[1])
        self.decoder2 = UpBlock(spatial_dims, widths[1], widths[0], strides[0])
        self.decoder1 = EncoderBlock(spatial_dims, widths[0], widths[0])
        conv = CONVOLUTIONS[spatial_dims]
        self.out = nn.Module()
        self.out.conv = nn.Module()
        self.out.conv.conv = conv(widths[0], num_classes, 1)
        # nnU-Net's fine-tuning skips parameters whose name holds `.seg_layers.`.
        self.supervision = nn.Module()
        self.supervision.seg_layers = nn.ModuleList(
            conv(widths[i + 1], num_classes, 1) for i in range(supervised_stages)
        )

    @property
    def deep_supervision_scales(self) -> list[list[float]]:
        """Size of each training output relative to the input, per axis, finest first."""
        scales = [[1.0] * len(self.reductions[0])]
        heads = len(self.supervision.seg_layers)  # type: ignore[arg-type]
        return scales + [[1.0 / r for r in reduction] for reduction in self.reductions[:heads]]

    def backends(self, device: torch.device) -> dict[str, str]:
        """What computes the Mamba layers' scan and convolution on a device; see `nnunet_ext.ops.backends`."""
        layer = next(module for module in self.vit.modules() if isinstance(module, TriOrientedMamba))
        return layer.backends(device)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment a batch.

        Args:
            x: (batch, input_channels, *grid), any grid; padded with zeros at the end to multiples of the strides.

        Returns:
            Logits (batch, num_classes, *grid); with deep supervision a list, finest first, of the sizes nnU-Net gives
            its targets: the grid times `deep_supervision_scales`, rounded.

        Raises:
            ValueError: wrong number of axes or channels.
        """
        if x.dim() != 2 + len(self.reductions[0]) or x.shape[1] != self.input_channels:
            expected = f"(batch, {self.input_channels}, {', '.join('DHW'[-len(self.reductions[0]) :])})"
            raise ValueError(f"SegMamba was built for input {expected}, not {tuple(x.shape)}")
        grid = x.shape[2:]
        x = pad_to_multiple(x, self.reductions[-1])
        skips = self.vit(x)
        decoded = [self.encoder5(skips[3])]
        decoded.append(self.decoder5(decoded[-1], self.encoder4(skips[2])))
        decoded.append(self.decoder4(decoded[-1], self.encoder3(skips[1])))
        decoded.append(self.decoder3(decoded[-1], self.encoder2(skips[0])))
        decoded.append(self.decoder2(decoded[-1], self.encoder1(x)))
        logits = crop_to(self.out.conv.conv(self.decoder1(decoded[-1])), grid)
        if not self.deep_supervision:
            return logits
        outputs = [logits]
        for i, head in enumerate(self.supervision.seg_layers):  # type: ignore[arg-type]
            scales = self.deep_supervision_scales[i + 1]
            coarse = [round(size * scale) for size, scale in zip(grid, scales, strict=True)]
            outputs.append(crop_to(head(decoded[3 - i]), torch.Size(coarse)))
        return outputs
