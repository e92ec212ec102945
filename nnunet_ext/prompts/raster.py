"""Prompts drawn into label maps: how clicks reach the unmodified `nnUNetv2_predict -prev_stage_predictions`.

nnU-Net carries such a map to the network like a segmentation. Small components are clicks, larger ones a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np

# A component of at most so many voxels, on the grid the network sees, is a click; a ball of three voxels' radius has
# 123. Single voxels may vanish when a label map is resampled: draw balls of 1.5 target voxels or more.
CLICK_VOXELS = 125


@dataclass(frozen=True)
class Drawn:
    """What was found in one channel: clicks (voxel indices) and the mask of the larger components, or None."""

    clicks: tuple[tuple[int, int, int], ...]
    mask: np.ndarray | None

    def __bool__(self) -> bool:
        return bool(self.clicks) or self.mask is not None


def read_channel(channel: np.ndarray) -> Drawn:
    """Tell clicks from a mask in one bool volume.

    A click is the voxel of its component that is nearest to the component's centre of mass.
    """
    if not channel.any():
        return Drawn((), None)
    components = cc3d.connected_components(channel, connectivity=26)
    sizes = np.bincount(components.ravel())
    small = np.flatnonzero(sizes <= CLICK_VOXELS)
    clicks = []
    for number in small[small > 0]:
        voxels = np.argwhere(components == number)
        nearest = np.square(voxels - voxels.mean(0)).sum(1).argmin()
        x, y, z = (int(i) for i in voxels[nearest])
        clicks.append((x, y, z))
    mask = channel & ~np.isin(components, small[small > 0])
    return Drawn(tuple(clicks), mask if mask.any() else None)


def draw_ball(label_map: np.ndarray, index: Sequence[int], label: int, radius_mm: float, spacing_mm: Sequence[float]):
    """Write a ball of `label` around voxel `index` into `label_map`, in place; the voxel itself always counts."""
    reach = [int(radius_mm / spacing) for spacing in spacing_mm]
    box = tuple(slice(max(i - r, 0), min(i + r + 1, n)) for i, r, n in zip(index, reach, label_map.shape, strict=True))
    axes = [
        (np.arange(part.start, part.stop) - i) * spacing
        for part, i, spacing in zip(box, index, spacing_mm, strict=True)
    ]
    squared = sum(np.square(axis) for axis in np.meshgrid(*axes, indexing="ij"))
    label_map[box][squared <= radius_mm**2] = label
