"""Simulated users who draw: points, 2D boxes, scribbles and lassos in a region that is to be marked or unmarked.

Pure functions of a region and a random generator. They see the reference: what follows from them is no score of
automatic use. Regions are bool (z, y, x), not empty; an interaction's corner counts from their first voxel.

Seen from `zoom` times as far, as AutoZoom does, balls and lines look larger than a `zoom`-th, because the session
widens what would vanish, and what fills one slice looks fainter.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from skimage.draw import line as pixels_of_line
from skimage.morphology import skeletonize

from nnunet_ext.prompts.channels import (
    POINT_RADIUS,
    SCRIBBLE_THICKNESS,
    Interaction,
    ball,
    box,
    lasso,
    scribble,
    widened,
)

# Distances to a region's outside are taken on a grid of at most so many voxels per axis: who clicks is not exact.
_COARSE = 40
STYLES = ("centre", "line", "contour")


def draw_point(
    region: np.ndarray, positive: bool, random: np.random.Generator, *, centred: bool, zoom: float = 1.0
) -> Interaction:
    """A click inside the region: anywhere, or the more likely the deeper inside."""
    index = _deep_voxel(region, random) if centred else _any_voxel(region, random)
    values = ball(POINT_RADIUS) if zoom == 1 else _far_ball(zoom)
    reach = len(values) // 2
    return Interaction("point", positive, tuple(int(i) - reach for i in index), values)


def draw_box(
    region: np.ndarray, positive: bool, random: np.random.Generator, *, jitter: float = 0.1, zoom: float = 1.0
) -> Interaction:
    """A rectangle around the region in one slice of any axis.

    Args:
        jitter: how far each side may be off, as a part of the rectangle's length there; always up to a voxel.
    """
    axis, number, plane = _slice(region, random)
    bounds = []
    for along, n in enumerate(plane.shape):
        low, high = _ends(np.asarray(plane.any(axis=1 - along)))
        off = random.uniform(-1, 1, 2) * (1 + jitter * (high - low))
        low, high = max(0, round(low + off[0])), min(n, round(high + off[1]))
        bounds.append((min(low, n - 1), max(high, low + 1)))
    bounds.insert(axis, (number, number + 1))
    return _fainter(box(bounds, positive), zoom)


def draw_lasso(region: np.ndarray, positive: bool, random: np.random.Generator, *, zoom: float = 1.0) -> Interaction:
    """A smooth line around the region in one slice, filled."""
    axis, number, plane = _slice(region, random)
    smooth = gaussian_filter(plane.astype(np.float32), random.uniform(0.5, 2.0))
    around = smooth > min(random.uniform(0.25, 0.6), 0.9 * float(smooth.max()))
    return _fainter(lasso(np.expand_dims(around, axis), positive, _corner(axis, number)), zoom)


def draw_scribble(
    region: np.ndarray,
    positive: bool,
    random: np.random.Generator,
    *,
    style: str,
    thickness: int = SCRIBBLE_THICKNESS,
    zoom: float = 1.0,
) -> Interaction:
    """A line inside the region in one slice, of which a part may be left out.

    Args:
        style: one of `STYLES`: along the middle, from voxel to voxel, or along the border.
        thickness: voxels of the image.
    """
    axis, number, plane = _slice(region, random)
    thin = _part(_LINES[style](plane, random), random)
    width = max(1, round((thickness + 2 * widened(zoom)) / zoom))
    drawn = _thick(thin, width) & plane
    marks = scribble(np.expand_dims(drawn if drawn.any() else thin, axis), positive, _corner(axis, number))
    return _thicker(marks, axis, zoom)


def _middle(plane: np.ndarray, random: np.random.Generator) -> np.ndarray:
    thin = skeletonize(plane)
    return thin if thin.any() else plane


def _from_voxel_to_voxel(plane: np.ndarray, random: np.random.Generator) -> np.ndarray:
    inside = np.argwhere(plane)
    corners = inside[random.integers(len(inside), size=int(random.integers(2, 5)))]
    thin = np.zeros_like(plane)
    for begin, end in itertools.pairwise(corners):
        thin[pixels_of_line(*begin, *end)] = True
    return thin & plane  # its corners are inside


def _border(plane: np.ndarray, random: np.random.Generator) -> np.ndarray:
    inner = binary_erosion(plane) if random.random() < 0.7 else plane
    inner = inner if inner.any() else plane
    return inner & ~binary_erosion(inner)


_LINES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "centre": _middle,
    "line": _from_voxel_to_voxel,
    "contour": _border,
}


def _part(thin: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Often not all of a line: what lies near one of its voxels."""
    if random.random() < 0.4:
        return thin
    voxels = np.argwhere(thin)
    squared = np.square(voxels - voxels[random.integers(len(voxels))]).sum(1)
    near = voxels[squared <= squared.max() * random.uniform(0.15, 0.8) ** 2]
    part = np.zeros_like(thin)
    part[tuple(near.T)] = True
    return part


def _thick(thin: np.ndarray, width: int) -> np.ndarray:
    """Every voxel drawn with a square pen."""
    thick = thin.copy()
    for axis in (0, 1):
        once = thick.copy()
        for step in range(1, width):
            there = [slice(None)] * 2
            here = [slice(None)] * 2
            there[axis], here[axis] = slice(step, None), slice(None, -step)
            thick[tuple(there)] |= once[tuple(here)]
    return thick


def _slice(region: np.ndarray, random: np.random.Generator) -> tuple[int, int, np.ndarray]:
    """Axis, number and (…, …) of a slice through the region, the more likely the more of the region it shows."""
    axis = int(random.integers(3))
    areas = region.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.int64)
    number = int(np.searchsorted(np.cumsum(areas), random.integers(areas.sum()), side="right"))
    return axis, number, region.take(number, axis)


def _corner(axis: int, number: int) -> tuple[int, int, int]:
    z, y, x = (number if a == axis else 0 for a in range(3))
    return z, y, x


def _ends(used: np.ndarray) -> tuple[int, int]:
    voxels = np.flatnonzero(used)
    return int(voxels[0]), int(voxels[-1]) + 1


def _any_voxel(region: np.ndarray, random: np.random.Generator) -> Sequence[int]:
    flat = np.flatnonzero(region)
    return [int(i) for i in np.unravel_index(flat[random.integers(len(flat))], region.shape)]


def _deep_voxel(region: np.ndarray, random: np.random.Generator) -> Sequence[int]:
    """A voxel with a likelihood that grows with the square of its distance to the outside."""
    step = [max(1, math.ceil(n / _COARSE)) for n in region.shape]
    coarse = region[tuple(slice(s // 2, None, s) for s in step)]
    if not coarse.any():
        return _any_voxel(region, random)
    depth = distance_transform_edt(np.pad(coarse, 1), sampling=step)[1:-1, 1:-1, 1:-1]
    weights = np.cumsum(np.square(depth).ravel())
    flat = np.searchsorted(weights, random.random() * weights[-1], side="right")
    return [int(i) * s + s // 2 for i, s in zip(np.unravel_index(flat, coarse.shape), step, strict=True)]


@functools.cache
def _far_ball(zoom: float) -> np.ndarray:
    """The ball of a click as it is seen from afar: widened, then averaged."""
    reach = POINT_RADIUS + widened(zoom)
    seen = 2 * math.ceil((reach / zoom - 0.5) if zoom > 1 else reach) + 1
    size = round(seen * zoom)
    whole = torch.zeros(1, 1, size + 2 * reach, size + 2 * reach, size + 2 * reach)
    begin = reach + (size - 1) // 2 - POINT_RADIUS
    inside = (..., *[slice(begin, begin + 2 * POINT_RADIUS + 1)] * 3)
    whole[inside] = torch.from_numpy(ball(POINT_RADIUS).copy())
    wide = F.max_pool3d(whole, 2 * widened(zoom) + 1, 1, widened(zoom))
    middle = (slice(None), slice(None), *[slice(reach, reach + size)] * 3)
    values = F.interpolate(wide[middle], (seen,) * 3, mode="area")[0, 0].numpy()
    values.flags.writeable = False
    return values


def _fainter(drawn: Interaction, zoom: float) -> Interaction:
    """What fills one slice, from afar."""
    if zoom == 1:
        return drawn
    return Interaction(drawn.kind, drawn.positive, drawn.corner, drawn.values.astype(np.float32) / np.float32(zoom))


def _thicker(drawn: Interaction, axis: int, zoom: float) -> Interaction:
    """A line in one slice, from afar: widened to its neighbours."""
    if zoom == 1:
        return drawn
    beside = max(0.0, ((1 + 2 * widened(zoom)) / zoom - 1) / 2)
    middle = min(1.0, (1 + 2 * widened(zoom)) / zoom)
    values = np.concatenate([drawn.values * np.float32(w) for w in (beside, middle, beside)], axis=axis)
    corner = tuple(c - (a == axis) for a, c in enumerate(drawn.corner))
    return Interaction(drawn.kind, drawn.positive, corner, values)
