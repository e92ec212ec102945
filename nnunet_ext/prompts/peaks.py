"""Points read back from an interaction channel of a viewer, where each is a ball that is brightest in its middle."""

from __future__ import annotations

import cc3d
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Below this share of the channel's largest value, a peak on the border of the window is the rim of a ball whose middle
# lies outside: balls fall to 0.77 and less from the middle to its neighbours.
_RIM = 0.9


def points_of(channel: Tensor) -> list[tuple[int, int, int]]:
    """Voxels (z, y, x) of the points drawn into a channel (*grid); older points may be fainter.

    A point is a voxel no neighbour of which is brighter, so balls that overlap stay apart. Where several adjacent
    voxels are equally bright, as after zooming out, it is the one nearest to their middle.
    """
    channel = channel.float()
    if not channel.any():
        return []
    brightest = F.max_pool3d(channel[None, None], 3, 1, 1)[0, 0]
    peaks = ((channel == brightest) & (channel > 0)).cpu().numpy()
    values, largest = channel.cpu().numpy(), float(channel.max())
    components = cc3d.connected_components(peaks, connectivity=26)
    found = []
    for number in range(1, int(components.max()) + 1):
        voxels = np.argwhere(components == number)
        z, y, x = (int(i) for i in voxels[np.square(voxels - voxels.mean(0)).sum(1).argmin()])
        on_border = any(i in (0, n - 1) for i, n in zip((z, y, x), channel.shape, strict=True))
        if on_border and values[z, y, x] < _RIM * largest:
            continue
        found.append((z, y, x))
    return found


def as_tensor(points: list[tuple[int, int, int]], device: torch.device) -> Tensor:
    """Points as (1, n, 3) int64."""
    return torch.tensor(points, dtype=torch.int64, device=device).reshape(1, -1, 3)
