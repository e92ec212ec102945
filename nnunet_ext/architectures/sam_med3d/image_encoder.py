"""The vision transformer of SAM-Med3D: patches of the volume to a grid of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.sam_med3d.attention import WindowAttention


class LayerNorm3d(nn.Module):
    """LayerNorm over the channels of (batch, channels, *grid)."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class MLPBlock(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, hidden: int, activation: type[nn.Module] = nn.GELU):
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class Block(nn.Module):
    """Attention and MLP, each after a norm and added to its input.

    Args:
        dim, num_heads, mlp_ratio: sizes.
        grid: tokens per axis of the input.
        window: tokens per axis of the windows attention is confined to; 0 for attention over all tokens.
        relative_positions: see `WindowAttention`.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, grid: int, window: int, relative_positions: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = WindowAttention(dim, num_heads, window or grid, relative_positions)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, int(dim * mlp_ratio))
        # One window, padded or not, needs no cutting. Tests and benchmarks set this to True to compare both ways.
        self.cuts_windows = 0 < window < grid

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + (self._attend_in_windows(normed) if self.cuts_windows else self.attn(normed))
        return x + self.mlp(self.norm2(x))

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        """Pad to whole windows at the end of each axis, attend in each, and crop: the general way."""
        batch, grid, dim, window = x.shape[0], x.shape[1], x.shape[-1], self.attn.window
        missing = -grid % window
        n = (grid + missing) // window
        x = F.pad(x, (0, 0) + (0, missing) * 3)
        x = x.reshape(batch, n, window, n, window, n, window, dim).permute(0, 1, 3, 5, 2, 4, 6, 7)
        x = self.attn(x.reshape(-1, window, window, window, dim))
        x = x.reshape(batch, n, n, n, window, window, window, dim).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(batch, n * window, n * window, n * window, dim)[:, :grid, :grid, :grid]


class PatchEmbedding(nn.Module):
    """Non-overlapping cubes of voxels to tokens."""

    def __init__(self, in_channels: int, dim: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv3d(in_channels, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, D, H, W) to (batch, D / p, H / p, W / p, dim)."""
        # The convolution as one matrix product: the same sums, and quicker than a kernel of 16x16x16 on a CPU.
        p = self.proj.kernel_size[0]
        batch, channels, *size = x.shape
        d, h, w = (n // p for n in size)
        cubes = x.reshape(batch, channels, d, p, h, p, w, p).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return F.linear(cubes.reshape(batch, d, h, w, -1), self.proj.weight.flatten(1), self.proj.bias)


class ImageEncoder(nn.Module):
    """Volume to image embedding; the sizes are those of `SAMMed3D`."""

    def __init__(
        self,
        in_channels: int,
        img_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        out_channels: int,
        window_size: int,
        global_attention: Sequence[int],
        relative_positions: str,
    ):
        super().__init__()
        self.img_size, self.in_channels = img_size, in_channels
        grid = img_size // patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, embed_dim))
        self.patch_embed = PatchEmbedding(in_channels, embed_dim, patch_size)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim, num_heads, mlp_ratio, grid, 0 if i in global_attention else window_size, relative_positions
            )
            for i in range(depth)
        )  # fmt: skip
        self.neck = nn.Sequential(
            nn.Conv3d(embed_dim, out_channels, 1, bias=False),
            LayerNorm3d(out_channels),
            nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
            LayerNorm3d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Encode (batch, in_channels, img_size, img_size, img_size) to (batch, out_channels, grid, grid, grid).

        Raises:
            ValueError: another shape.
        """
        expected = (self.in_channels, *(self.img_size,) * 3)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"SAM-Med3D was built for volumes of shape {expected}, not {tuple(x.shape[1:])}")
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.movedim(-1, 1))
