"""Clicks and a mask to embeddings.

Two habits of the published code that its weights were trained with are kept: the last third of a position's features
repeats the sines, and the features of the grid are those of points with their first two axes exchanged. The second
makes it harder to learn from scratch where a click is; `grid_positions="aligned"` goes without it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.precision import double_device
from nnunet_ext.architectures.sam_med3d.image_encoder import LayerNorm3d

GRID_POSITIONS = ("official", "aligned")


class PositionEmbedding(nn.Module):
    """Random Fourier features of positions in the unit cube."""

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, features))
        self.positional_encoding_gaussian_matrix: Tensor

    def forward(self, position: Tensor) -> Tensor:
        """Features (..., 3 * features) of positions (..., 3) in 0..1, of angles in double precision."""
        matrix = self.positional_encoding_gaussian_matrix
        device = double_device(matrix.device)
        # Autocast leaves double precision alone; half would move points by voxels.
        angle = 2 * math.pi * ((2 * position.to(device).double() - 1) @ matrix.to(device).double())
        return torch.cat([angle.sin(), angle.cos(), angle.sin()], -1).to(matrix.dtype).to(matrix.device)

    def grid(self, size: int, exchanged: bool) -> Tensor:
        """Features of the centres of a cube of `size` cells per axis, (1, 3 * features, size, size, size)."""
        device = double_device(self.positional_encoding_gaussian_matrix.device)
        centres = (torch.arange(size, device=device, dtype=torch.float64) + 0.5) / size
        first, second, third = torch.meshgrid(centres, centres, centres, indexing="ij")
        axes = [second, first, third] if exchanged else [first, second, third]
        return self(torch.stack(axes, -1)).movedim(-1, 0)[None]


class PromptEncoder(nn.Module):
    """Prompts to the two kinds of embeddings the mask decoder takes.

    Args:
        embed_dim: channels of both.
        grid: tokens per axis of the image embedding.
        img_size: voxels per axis of the image.
        mask_channels: width of the mask branch.
        grid_positions: `official` exchanges the first two axes of the grid's features, which published weights need;
            `aligned` gives a cell of the grid the features of a click on it.
    """

    def __init__(
        self, embed_dim: int, grid: int, img_size: int, mask_channels: int = 16, grid_positions: str = "official"
    ):
        super().__init__()
        if grid_positions not in GRID_POSITIONS:
            raise ValueError(f"grid_positions must be one of {', '.join(GRID_POSITIONS)}, not {grid_positions!r}")
        self.exchanged = grid_positions == "official"
        if embed_dim % 3:
            raise ValueError(f"out_channels {embed_dim} must be divisible by 3: positions have three equal parts")
        self.embed_dim, self.grid_size, self.img_size = embed_dim, grid, img_size
        self.pe_layer = PositionEmbedding(embed_dim // 3)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(2))  # negative, positive
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, mask_channels // 4, 2, 2),
            LayerNorm3d(mask_channels // 4),
            nn.GELU(),
            nn.Conv3d(mask_channels // 4, mask_channels, 2, 2),
            LayerNorm3d(mask_channels),
            nn.GELU(),
            nn.Conv3d(mask_channels, embed_dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def dense_position(self) -> Tensor:
        """Position features of the image embedding, (1, embed_dim, grid, grid, grid)."""
        return self.pe_layer.grid(self.grid_size, self.exchanged)

    def forward(self, points: Tensor | None, labels: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embed prompts.

        Args:
            points: (batch, n, 3) voxel indices of the image in the order of its axes, or None. A voxel's index means
                its centre.
            labels: (batch, n), 1 positive, 0 negative, -1 no point.
            mask: logits (batch, 1, 4 * grid, 4 * grid, 4 * grid), or None.

        Returns:
            Sparse (batch, n + 1, embed_dim), the last of them "not a point", or (batch, 0, embed_dim) without points;
            and dense (batch or 1, embed_dim, grid, grid, grid).
        """
        if mask is None:
            dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1, 1).expand(-1, -1, *(self.grid_size,) * 3)
        else:
            dense = self.mask_downscaling(mask)
        if points is None or labels is None:
            return dense.new_zeros(len(dense), 0, self.embed_dim), dense
        position = self.pe_layer((points.float() + 0.5) / self.img_size)
        kinds = torch.stack([e.weight[0] for e in (self.not_a_point_embed, *self.point_embeddings)])  # -1, 0, 1
        sparse = torch.where((labels >= 0)[..., None], position, 0.0) + kinds[labels.long() + 1]
        return torch.cat([sparse, kinds[:1].expand(len(sparse), 1, -1)], 1), dense
