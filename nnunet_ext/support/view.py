"""The square view of a slice in which a few-shot network works, and the way back to the slice's own grid.

A slice is padded to a square around its centre and resized. Pixels are areas: pixel k of n covers [k, k + 1] / n of the
side, in both grids, so nothing shifts on the way there and back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def to_view(x: Tensor, size: int, spacing: Sequence[float] = (1.0, 1.0), side: int = 0, fill: float = 0.0) -> Tensor:
    """Pad to a square and resize with antialiasing; a mask becomes the share of each pixel that it covers.

    Args:
        x: (N, C, H, W), floating point.
        size: pixels of the view along each axis.
        spacing: of rows and columns, in any unit; the view is square in that unit.
        side: with equal spacing, least side of the square in pixels, so that slices of several sizes keep one scale.
        fill: value of the padding.

    Returns:
        (N, C, size, size).
    """
    top, bottom, left, right = _padding(x.shape[-2:], spacing, side)
    x = F.pad(x, (left, right, top, bottom), value=fill)
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)


def from_view(x: Tensor, grid: Sequence[int], spacing: Sequence[float] = (1.0, 1.0), side: int = 0) -> Tensor:
    """The inverse of `to_view` for soft values such as logits: (N, C, size, size) -> (N, C, *grid)."""
    height, width = grid
    top, bottom, left, right = _padding(grid, spacing, side)
    square = (height + top + bottom, width + left + right)
    x = F.interpolate(x, square, mode="bilinear", align_corners=False, antialias=True)
    return x[..., top : top + height, left : left + width].contiguous()


def _padding(grid: Sequence[int], spacing: Sequence[float], side: int) -> tuple[int, int, int, int]:
    """Pixels added at top, bottom, left and right; an odd one goes to the end, as in nnU-Net."""
    extent = max(max(n * step for n, step in zip(grid, spacing, strict=True)), side * max(spacing))
    missing = [max(round(extent / step) - n, 0) for n, step in zip(grid, spacing, strict=True)]
    before = [m // 2 for m in missing]
    return before[0], missing[0] - before[0], before[1], missing[1] - before[1]
