"""UNETR++ (Shaker et al., IEEE TMI 2024, arXiv:2212.04497): a U-shaped network of efficient paired attention.

Positions and projections of its attention are matrices over the tokens of each stage, so a network belongs to one
patch size. The authors' code has one copy per data set with the sizes written in; here the sizes follow from the
patch by `fit_geometry`, which gives back the published geometry at the published sizes.

Built as the code has it (github.com/Amshaker/unetr_plus_plus at dcba1c6), because published weights and figures come
from there. What the paper does not say: skips are added, not concatenated; the position is added in every block; each
block ends with convolutions that hold most of the arithmetic; there are three heads, at full resolution and at the
first two stages; only the encoder's linear layers are initialised with a truncated normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.blocks import Convolution
from nnunet_ext.architectures.unetrpp.blocks import ResidualBlock, logits, pointwise, tokens, volume
from nnunet_ext.architectures.unetrpp.epa import EPA, Fusion, Projection
from nnunet_ext.architectures.unetrpp.geometry import Geometry, fit_geometry, given_geometry

# What the four published networks differ in, beside their sizes. `auto` is `synapse`, the smallest of those with the
# paper's fusion.
VARIANTS: dict[str, dict] = {
    "auto": {"projection": "shared", "fusion": "concat", "convolutions": 1, "dropout": 0.15},
    "synapse": {"projection": "shared", "fusion": "concat", "convolutions": 1, "dropout": 0.15},
    "acdc": {"projection": "separate", "fusion": "concat", "convolutions": 2, "dropout": 0.1},
    "lung": {"projection": "separate", "fusion": "concat", "convolutions": 2, "dropout": 0.1},
    "tumor": {"projection": "matrix", "fusion": "sum", "convolutions": 1, "dropout": 0.1},
}


class TransformerBlock(nn.Module):
    """Position, paired attention with residual, then convolutions with residual (figure 2 of the paper)."""

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        proj_size: int,
        num_heads: int,
        *,
        projection: Projection,
        fusion: Fusion,
        convolutions: int,
        dropout: float,
        scramble: bool,
    ):
        super().__init__()
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, dim))
        self.norm = nn.LayerNorm(dim)
        self.epa_block = EPA(
            num_tokens, dim, proj_size, num_heads,
            projection=projection, fusion=fusion, dropout=dropout, scramble=scramble,
        )  # fmt: skip
        self.conv51 = ResidualBlock(dim, dim, "batch")
        self.conv52 = ResidualBlock(dim, dim, "batch") if convolutions == 2 else None
        self.conv8 = nn.Sequential(nn.Dropout3d(0.1), nn.Conv3d(dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = tokens(x).contiguous() + self.pos_embed
        rows = torch.addcmul(rows, self.gamma, self.epa_block(self.norm(rows)))
        attended = volume(rows, x.shape[2:])
        y = self.conv51(attended)
        if self.conv52 is not None:
            y = self.conv52(y)
        dropout, conv = self.conv8
        return attended + pointwise(dropout(y), conv)


class Encoder(nn.Module):
    """Stem and three reductions, each followed by transformer blocks; returns the four stages' outputs."""

    def __init__(self, in_channels: int, geometry: Geometry, dims, depths, proj_sizes, num_heads: int, options: dict):
        super().__init__()
        self.downsample_layers = nn.ModuleList()
        for stride, channels, dim in zip(geometry.strides, [in_channels, *dims[:-1]], dims, strict=True):
            conv = nn.Conv3d(channels, dim, kernel_size=stride, stride=stride, bias=False)
            wrapped = nn.Module()
            wrapped.conv = conv
            self.downsample_layers.append(nn.Sequential(wrapped, nn.GroupNorm(math.gcd(channels, dim), dim)))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(TransformerBlock(math.prod(grid), dim, proj_size, num_heads, **options) for _ in range(depth))
            )
            for grid, dim, depth, proj_size in zip(geometry.grids, dims, depths, proj_sizes, strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for (reduce, norm), stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(norm(reduce.conv(x)))
            outputs.append(x)
        return outputs


class UpBlock(nn.Module):
    """Transposed convolution with kernel = stride, addition of the skip, then the given block."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int], block: nn.Module):
        super().__init__()
        stride = tuple(stride)
        self.transp_conv = nn.Module()
        self.transp_conv.conv = nn.ConvTranspose3d(in_channels, out_channels, stride, stride, bias=False)
        self.decoder_block = nn.ModuleList([block])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.transp_conv.conv(x)
        x += skip
        return self.decoder_block[0](x)


class UNETRPP(nn.Module):
    """UNETR++ for one patch size; the defaults are the published widths and depths.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the output.
        deep_supervision: return three outputs instead of one; may be switched later, the weights are the same.
        patch_size: voxels per axis of every input.
        variant: a row of `VARIANTS`.
        strides: stem and three reductions, instead of those of `fit_geometry`.
        dims: channels per stage.
        depths: transformer blocks per stage of the encoder.
        decoder_depth: transformer blocks per stage of the decoder.
        num_heads: heads of the attention, in all stages.
        feature_size: channels at full resolution.
        proj_sizes: tokens of the projected keys and values, per stage of the encoder.
        decoder_proj_size: the same, in the decoder.
        scramble: keep the official order of tokens in spatial attention, which published weights need; see `epa`.

    Raises:
        ValueError: an unknown variant, or sizes that do not fit together.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        *,
        patch_size: Sequence[int],
        variant: str = "auto",
        strides: Sequence[Sequence[int]] | None = None,
        dims: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (3, 3, 3, 3),
        decoder_depth: int = 3,
        num_heads: int = 4,
        feature_size: int = 16,
        proj_sizes: Sequence[int] = (64, 64, 64, 32),
        decoder_proj_size: int = 64,
        scramble: bool = True,
    ):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"no variant {variant!r} of UNETR++; known: {', '.join(VARIANTS)}")
        for name, value in (("dims", dims), ("depths", depths), ("proj_sizes", proj_sizes)):
            if len(value) != 4:
                raise ValueError(f"{name} must have one entry for each of the four stages, not {value!r}")
        self.input_channels = input_channels
        self.geometry = fit_geometry(patch_size) if strides is None else given_geometry(patch_size, strides)
        options = {**VARIANTS[variant], "scramble": scramble}
        self.unetr_pp_encoder = Encoder(input_channels, self.geometry, dims, depths, proj_sizes, num_heads, options)
        self.encoder1 = ResidualBlock(input_channels, feature_size, "instance")

        def up(stage: int) -> UpBlock:
            """From `stage` to the one before it."""
            num_tokens, dim = math.prod(self.geometry.grids[stage - 1]), dims[stage - 1]
            blocks = (
                TransformerBlock(num_tokens, dim, decoder_proj_size, num_heads, **options) for _ in range(decoder_depth)
            )
            return UpBlock(dims[stage], dim, self.geometry.strides[stage], nn.Sequential(*blocks))

        self.decoder5, self.decoder4, self.decoder3 = up(3), up(2), up(1)
        self.decoder2 = UpBlock(
            dims[0], feature_size, self.geometry.strides[0], ResidualBlock(feature_size, feature_size, "instance")
        )
        self.out1, self.out2, self.out3 = (
            nn.ModuleDict({"conv": Convolution(3, channels, num_classes, 1, bias=True)})
            for channels in (feature_size, dims[0], dims[1])
        )
        self.deep_supervision = deep_supervision

    @property
    def deep_supervision(self) -> bool:
        """Whether forward returns three outputs. The coarse heads are frozen while it does not: no unused gradient."""
        return self._deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, on: bool) -> None:
        self._deep_supervision = bool(on)
        for head in (self.out2, self.out3):
            head.requires_grad_(self._deep_supervision)

    @property
    def deep_supervision_scales(self) -> list[list[float]]:
        """Size of each output relative to the patch, per axis, finest first."""
        patch = self.geometry.patch
        return [[1.0] * 3] + [[n / p for n, p in zip(self._coarse(i), patch, strict=True)] for i in (0, 1)]

    def _coarse(self, stage: int) -> tuple[int, ...]:
        """Grid of a coarse output: the tokens of `stage` that lie inside the patch."""
        return tuple(max(1, p // r) for p, r in zip(self.geometry.patch, self.geometry.reductions[stage], strict=True))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment a batch.

        Args:
            x: (batch, input_channels, *patch_size).

        Returns:
            Logits (batch, num_classes, *patch_size); with deep supervision a list of three, finest first.

        Raises:
            ValueError: another shape. The official code takes any shape with as many tokens and mixes up its axes.
        """
        expected = (self.input_channels, *self.geometry.patch)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"UNETR++ was built for input (batch, {', '.join(map(str, expected))}), not {tuple(x.shape)}; "
                "its projections belong to one patch size"
            )
        if self.geometry.padded != self.geometry.patch:
            missing = [a - b for a, b in zip(self.geometry.padded, self.geometry.patch, strict=True)]
            x = F.pad(x, [n for size in reversed(missing) for n in (0, size)])
        if x.device.type == "cpu":
            # A third faster convolutions, and tokens without copies. Copied, as PyTorch counts a single channel in
            # plain memory as channels-last but does not treat it so.
            x = x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
        stages = self.unetr_pp_encoder(x)
        decoded2 = self.decoder5(stages[3], stages[2])
        decoded1 = self.decoder4(decoded2, stages[1])
        decoded0 = self.decoder3(decoded1, stages[0])
        full = self.decoder2(decoded0, self.encoder1(x))
        finest = _logits(self.out1["conv"].conv, full, self.geometry.patch)
        if not self.deep_supervision:
            return finest
        return [
            finest,
            _logits(self.out2["conv"].conv, decoded0, self._coarse(0)),
            _logits(self.out3["conv"].conv, decoded1, self._coarse(1)),
        ]


def _logits(head: nn.Conv3d, x: Tensor, grid: Sequence[int]) -> Tensor:
    """Class scores of the first voxels of each axis: what was padded at the end is cut off."""
    scores = logits(x, head)
    return scores[:, :, : grid[0], : grid[1], : grid[2]].contiguous()
