"""Distances between the borders of two label maps, for all labels at once.

A voxel lies on the border of its label when one of its neighbours across a face (6 in 3D, 4 in 2D) has another
label or is outside the image: the voxels that `mask ^ binary_erosion(mask)` leaves for every label. For every border
voxel of one map the distance in mm to the nearest border voxel of the same label in the other map is found, between
voxel centres. HD95, ASSD and NSD all follow from these distances (`nnunet_ext.evaluation.metrics`).

Computing a distance transform per label wastes nearly all of its work, because a usable segmentation is close to its
reference almost everywhere. So: find the borders of all labels in one sweep, look up the few voxels around each border
voxel in order of their physical distance (the first hit is exact), and ask a k-d tree for the few points that are left.
`surface_distances_plain` is the same definition, written for reading; the tests hold the two together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

# Voxels per step of the border search: two copies and the temporaries stay in a core's L2 cache.
_CHUNK = 1 << 16
# Border points looked up together; they lie close to each other, so their neighbourhoods stay in the cache too.
_POINTS = 1 << 15
# A label map may hold one voxel of 2147483650: values beyond this are searched for, not looked up.
_LARGEST_TABLE = 1 << 16
# How many neighbours are looked up before the k-d tree takes over: about three voxels around, isotropic.
_WINDOW = 122


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from every border voxel of one map to the border of the same label in the other.

    Attributes:
        reference_to_prediction: float64, one value per border voxel of the reference; infinite when the label is
            absent from the prediction, empty when it is absent from the reference.
        prediction_to_reference: the other direction.
    """

    reference_to_prediction: np.ndarray
    prediction_to_reference: np.ndarray


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], labels: Sequence[int]
) -> dict[int, SurfaceDistances]:
    """Border distances of each label between two label maps.

    Args:
        reference: integer label map, any number of axes. Axes of length 1 are dropped, so a single slice is measured
            in its plane (with them, each of its voxels would be border).
        prediction: integer label map of the same shape.
        spacing_mm: voxel size per axis of the arrays, in the arrays' axis order.
        labels: values to compare, none of them 0. Every other value counts as background.

    Returns:
        The distances of each label, in the order of `labels`.

    Raises:
        ValueError: the shapes differ, the spacing does not fit, or 0 is among the labels.

    Example:
        >>> reference = np.zeros((8, 8), int); reference[2:5, 2:5] = 1
        >>> distances = surface_distances(reference, np.roll(reference, 2, axis=1), (1.0, 0.5), [1])
        >>> float(distances[1].reference_to_prediction.max())
        1.0
    """
    reference, prediction, spacing_mm = _checked(reference, prediction, spacing_mm)
    if any(label <= 0 for label in labels):
        raise ValueError(f"labels must be positive (0 is the background, which has no surface), got {tuple(labels)}")
    box = foreground_box(reference, prediction)
    ascending = sorted(labels)
    code_of: np.ndarray = np.zeros(len(labels) + 1, dtype=np.uint8 if len(labels) < 256 else np.uint16)
    code_of[[ascending.index(label) for label in labels]] = np.arange(1, len(labels) + 1)
    codes = [look_up(code_of, places_of(ascending, m[box])) for m in (reference, prediction)]
    found = distances_of_codes(codes[0], codes[1], spacing_mm, len(labels))
    return dict(zip(labels, found, strict=True))


def surface_distances_plain(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], labels: Sequence[int]
) -> dict[int, SurfaceDistances]:
    """`surface_distances` by erosion and a Euclidean distance transform per label: slow, short, the yardstick."""
    reference, prediction, spacing_mm = _checked(reference, prediction, spacing_mm)
    result = {}
    for label in labels:
        borders = [mask ^ ndimage.binary_erosion(mask) for mask in (reference == label, prediction == label)]
        fields = [
            ndimage.distance_transform_edt(~border, sampling=spacing_mm)
            if border.any()
            else np.full(border.shape, np.inf)
            for border in borders
        ]
        result[label] = SurfaceDistances(fields[1][borders[0]], fields[0][borders[1]])
    return result


def foreground_box(*maps: np.ndarray) -> tuple[slice, ...]:
    """The smallest box, as one slice per axis, that holds every voxel that is not 0 in any of the maps."""
    ndim, size = maps[0].ndim, maps[0].size
    if size == 0 or ndim == 0:
        return (slice(0, 0),) * ndim
    # A bitwise-or along the first axis runs at memory speed; the other axes are then small.
    lines = [np.logical_or.reduce([m.reshape(len(m), -1).any(axis=1) for m in maps])]
    plane = np.logical_or.reduce([np.bitwise_or.reduce(m, axis=0) != 0 for m in maps])
    for axis in range(ndim - 1):
        lines.append(plane.any(axis=tuple(a for a in range(ndim - 1) if a != axis)))
    box = []
    for line in lines:
        used = np.flatnonzero(line)
        box.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0))
    return tuple(box)


def places_of(values: Sequence[int], array: np.ndarray) -> np.ndarray:
    """The place of every label in `values`; `len(values)` where it is not among them.

    Args:
        values: ascending, at least 0, at most 2^63 - 1.
        array: of integers.

    Returns:
        uint8 (uint16 beyond 255 values), same shape; `array` itself where that is the same.
    """
    kind = np.uint8 if len(values) < 256 else np.uint16
    if not len(values) or not array.size:
        return np.zeros(array.shape, dtype=kind)
    smallest, limit = int(array.min()), values[-1]
    if limit <= _LARGEST_TABLE and smallest >= 0:
        # One entry beyond the last, to which larger values are clipped.
        table: np.ndarray = np.full(limit + 2, len(values), dtype=kind)
        table[list(values)] = np.arange(len(values))
        return look_up(table, array)
    ascending = np.array(values, dtype=np.int64)
    flat = array.reshape(-1)
    result: np.ndarray = np.empty(flat.size, dtype=kind)
    for start in range(0, flat.size, _CHUNK):
        stop = min(start + _CHUNK, flat.size)
        own = flat[start:stop]
        known: np.ndarray | bool = True
        if own.dtype == np.uint64:  # may hold what int64 cannot
            known = own <= limit
            own = np.where(known, own, 0).astype(np.int64)
        place = np.searchsorted(ascending, own).clip(max=len(values) - 1)
        result[start:stop] = np.where(known & (ascending[place] == own), place, len(values))
    return result.reshape(array.shape)


def look_up(table: np.ndarray, array: np.ndarray) -> np.ndarray:
    """`table[array]` with indices beyond either end clipped to it; `array` itself where that changes nothing."""
    top = int(array.max(initial=0))
    if array.dtype == table.dtype and np.array_equal(table[: top + 1], np.arange(top + 1)):
        return array
    # In steps, because numpy makes all indices int64.
    flat = array.reshape(-1)
    result: np.ndarray = np.empty(flat.size, dtype=table.dtype)
    for start in range(0, flat.size, _CHUNK):
        stop = min(start + _CHUNK, flat.size)
        table.take(flat[start:stop].astype(np.intp), mode="clip", out=result[start:stop])
    return result.reshape(array.shape)


def distances_of_codes(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], count: int
) -> list[SurfaceDistances]:
    """`surface_distances` of maps that hold exactly 0 (background) and the codes 1 to `count`.

    The maps may be cropped to the foreground: what lies outside is taken as background.
    """
    groups = _window(spacing_mm)
    reach = np.max([np.abs(offsets).max(axis=0) for _, offsets in groups], axis=0).clip(min=1)
    # Rows lie one after another in memory, so one stretch of zeros separates a row from both of its neighbours: the
    # padding at the end of an axis also guards the start of the next row. One block in front guards the first.
    shape = tuple(int(n + r) for n, r in zip(reference.shape, reach, strict=True))
    strides = np.array([int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))])
    front = int(reach @ strides) + 1
    flat_groups = [(length, [int(o) for o in offsets @ strides]) for length, offsets in groups]

    borders = [_Border.of(m, shape, strides, front, count) for m in (reference, prediction)]
    directed = [
        _directed(own, other, flat_groups, strides, front, spacing_mm)
        for own, other in (borders, reversed(borders))  # both directions
    ]
    return [SurfaceDistances(*both) for both in zip(*directed, strict=True)]


@dataclass(frozen=True)
class _Border:
    """The border voxels of one map, in a flat padded volume."""

    volume: np.ndarray  # code of the label on border voxels, else 0
    index: np.ndarray  # positions of the border voxels in `volume`, grouped by label
    code: np.ndarray  # their codes, ascending
    ends: np.ndarray  # ends[c] = number of border voxels with codes up to c; ends[0] = 0

    @classmethod
    def of(cls, labels: np.ndarray, shape: tuple[int, ...], strides: np.ndarray, front: int, count: int) -> _Border:
        inner = int(np.prod(shape))
        padded = np.zeros(inner + 2 * front, dtype=labels.dtype)
        padded[front : front + inner].reshape(shape)[tuple(slice(0, n) for n in labels.shape)] = labels
        volume = np.zeros_like(padded)
        found: list[np.ndarray] = []
        for start in range(front, front + inner, _CHUNK):
            stop = min(start + _CHUNK, front + inner)
            here = padded[start:stop]
            differs: np.ndarray = np.zeros(stop - start, dtype=bool)
            for step in strides.tolist():
                differs |= here != padded[start - step : stop - step]
                differs |= here != padded[start + step : stop + step]
            differs &= here != 0
            np.multiply(here, differs, out=volume[start:stop])
            found.append(np.flatnonzero(differs) + start)
        index = np.concatenate(found) if found else np.zeros(0, dtype=np.intp)
        code = volume[index]
        order = np.argsort(code, kind="stable")  # a radix sort for such small integers
        ends = np.cumsum(np.bincount(code, minlength=count + 1))
        return cls(volume, index[order], code[order], ends)

    def slice_of(self, code: int) -> slice:
        return slice(int(self.ends[code - 1]), int(self.ends[code]))


def _directed(
    own: _Border,
    other: _Border,
    groups: list[tuple[float, list[int]]],
    strides: np.ndarray,
    front: int,
    spacing_mm: Sequence[float],
) -> list[np.ndarray]:
    """Distance of every border voxel of `own` to `other`, one array per code."""
    distance = np.full(len(own.index), np.inf)
    in_other: np.ndarray = np.diff(other.ends, prepend=0) > 0
    present = np.flatnonzero(in_other[own.code])  # a label absent from the other map stays at infinity
    far: list[np.ndarray] = [np.zeros(0, dtype=np.intp)]
    for start in range(0, len(present), _POINTS):
        position = present[start : start + _POINTS]
        index, code = own.index[position], own.code[position]
        for length, offsets in groups:
            if len(index) == 0:
                break
            hit = other.volume.take(index + offsets[0]) == code
            for offset in offsets[1:]:
                hit |= other.volume.take(index + offset) == code
            distance[position[hit]] = length
            missed = ~hit
            position, index, code = position[missed], index[missed], code[missed]
        far.append(position)
    position = np.concatenate(far)
    index, code = own.index[position], own.code[position]

    count = len(own.ends) - 1
    left = np.cumsum(np.bincount(code, minlength=count + 1))
    for label in range(1, count + 1):
        rest = slice(int(left[label - 1]), int(left[label]))
        if rest.start == rest.stop:
            continue
        # Points come in raster order, hence the tree needs no balancing.
        tree = cKDTree(
            _points(other.index[other.slice_of(label)], strides, front, spacing_mm),
            leafsize=32,
            balanced_tree=False,
            compact_nodes=False,
        )
        distance[position[rest]] = tree.query(_points(index[rest], strides, front, spacing_mm))[0]
    return [distance[own.slice_of(label)] for label in range(1, count + 1)]


def _points(index: np.ndarray, strides: np.ndarray, front: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """Coordinates in mm, (n, axes), of flat positions."""
    points = np.empty((len(index), len(strides)))
    rest: np.ndarray = index - front
    for axis, step in enumerate(strides.tolist()):
        along, rest = np.divmod(rest, step)
        points[:, axis] = along * spacing_mm[axis]
    return points


def _window(spacing_mm: Sequence[float]) -> list[tuple[float, np.ndarray]]:
    """Offsets around a voxel in order of physical length: [(length in mm, offsets (k, axes))], from 0 outwards.

    Complete up to its last length, hence the first hit is the nearest; that is why it ends before the shortest
    step out of the box that it is taken from.
    """
    reach = 4
    spacing = np.asarray(spacing_mm, dtype=float)
    offsets = np.array(list(itertools.product(range(-reach, reach + 1), repeat=len(spacing))))
    lengths = np.round(np.sqrt(((offsets * spacing) ** 2).sum(axis=1)), 12)
    complete = lengths < (reach + 1) * spacing.min() * (1 - 1e-9)
    offsets, lengths = offsets[complete], lengths[complete]
    limit = np.sort(lengths)[min(_WINDOW, len(lengths) - 1)]
    return [(float(length), offsets[lengths == length]) for length in np.unique(lengths[lengths <= limit])]


def _checked(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, tuple]:
    """The maps and the spacing without axes of length 1."""
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    if reference.shape != prediction.shape:
        raise ValueError(f"reference has shape {reference.shape}, prediction {prediction.shape}; they must agree")
    if len(spacing_mm) != reference.ndim or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing must be {reference.ndim} positive numbers in mm, got {tuple(spacing_mm)}")
    for name, array in (("reference", reference), ("prediction", prediction)):
        if array.dtype.kind not in "iub":
            raise ValueError(f"the {name} has type {array.dtype}; label maps hold integers")
    kept = [axis for axis, n in enumerate(reference.shape) if n != 1] or list(range(reference.ndim))[:1]
    shape = tuple(reference.shape[axis] for axis in kept)
    return reference.reshape(shape), prediction.reshape(shape), tuple(float(spacing_mm[axis]) for axis in kept)
