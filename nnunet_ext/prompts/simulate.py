"""Simulated users: where would someone click who sees the reference?

Such clicks know the truth. Scores that follow from them are not comparable with automatic segmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cc3d
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from nnunet_ext.prompts.types import Clicks

# A user: (reference, prediction) -> clicks; both (batch, *grid) bool.
User = Callable[[Tensor, Tensor], Clicks]


def uniform_clicks(reference: Tensor, prediction: Tensor, generator: torch.Generator | None = None) -> Clicks:
    """A voxel drawn uniformly from all that are wrong: the training of SAM-Med3D.

    Args:
        reference, prediction: (batch, *grid) bool.
        generator: source of randomness, on the tensors' device.
    """
    wrong = (reference != prediction).flatten(1)
    score = torch.rand(wrong.shape, generator=generator, device=wrong.device).masked_fill_(~wrong, -1.0)
    flat = score.argmax(1)
    index = torch.stack(torch.unravel_index(flat, reference.shape[1:]), 1)
    return Clicks(index, _at(reference, flat), wrong.any(1))


def centre_clicks(reference: Tensor, prediction: Tensor, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Clicks:
    """The innermost voxel of the largest 26-connected component of missed or of wrongly marked voxels.

    This is the user of the CVPR 2025 challenge, with distances in mm instead of voxels. Deterministic: of equally
    deep voxels the first.

    Args:
        reference, prediction: (batch, *grid) bool.
        spacing_mm: voxel size per axis of the grid.
    """
    index, found = torch.zeros(len(reference), 3, dtype=torch.int64), torch.zeros(len(reference), dtype=torch.bool)
    for i, (truth, guess) in enumerate(zip(reference.cpu().numpy(), prediction.cpu().numpy(), strict=True)):
        largest = max((_largest_component(region) for region in (truth & ~guess, guess & ~truth)), key=np.count_nonzero)
        if largest.any():
            index[i], found[i] = torch.from_numpy(innermost(largest, spacing_mm)), True
    index = index.to(reference.device)
    flat = (index * index.new_tensor(_strides(reference.shape[1:]))).sum(1)
    return Clicks(index, _at(reference, flat), found.to(reference.device))


def innermost(region: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Index of the voxel of `region` farthest from its outside; the border of the array counts as outside."""
    corner = [
        np.flatnonzero(region.any(axis=tuple(b for b in range(region.ndim) if b != a))) for a in range(region.ndim)
    ]
    box: tuple[slice, ...] = tuple(slice(used[0], used[-1] + 1) for used in corner)
    depth = distance_transform_edt(np.pad(region[box], 1), sampling=spacing_mm)
    inside = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([i - 1 + s.start for i, s in zip(inside, box, strict=True)], dtype=np.int64)


def _largest_component(region: np.ndarray) -> np.ndarray:
    if not region.any():
        return region
    components = cc3d.connected_components(region, connectivity=26)
    return components == np.bincount(components.ravel())[1:].argmax() + 1


def _at(volume: Tensor, flat: Tensor) -> Tensor:
    return volume.flatten(1).gather(1, flat[:, None])[:, 0]


def _strides(shape: Sequence[int]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
