"""nnU-Net's resampling of images and label maps, exactly and in a fraction of the time.

nnU-Net resizes with scikit-image (spline zoom, edges continued, values clipped to the input's range), label maps one
indicator image per label, and anisotropic volumes slice by slice. Two facts make the same result cheap:

* A spline zoom on a regular grid, prefilter included, is linear and works on each axis for itself. Its matrix is what
  scipy makes of unit vectors; a volume then takes one matrix product per axis.
* Linear interpolation is a weighted mean. Where all eight neighbours have one label, so has the result; only the
  voxels between labels, a few in a hundred, need weights.

`plain_image` and `plain_labels` are the definitions the fast functions are tested against: nnU-Net's own function.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

# Scores of labels that differ by less are equal but for rounding; a weight is a product of three fractions.
_TIE = 1e-9
# Voxels between labels that are resolved at once: bounds the memory of their scores.
_CHUNK = 1 << 13


def resample_image(
    image: np.ndarray, shape: Sequence[int], order: int = 3, separate_axis: int | None = None, order_z: int = 0
) -> np.ndarray:
    """Resize an image as nnU-Net's `resample_data_or_seg` does.

    Args:
        image: (channels, z, y, x), floating point.
        shape: voxels per axis of the result.
        order: degree of the spline, 0 to 5.
        separate_axis: the coarse axis of anisotropic data, 0 to 2: slices across it are resized, and clipped, one by
            one with `order`, then it is resized with `order_z`, which is not clipped. None treats all axes alike.
        order_z: degree of the spline along `separate_axis`.

    Returns:
        (channels, *shape) in the input's dtype; the input itself where no axis changes. Products are float32 for
        float32 and smaller, after subtraction of the middle of the range, which keeps their error at a few 1e-6 of it.
    """
    shape = tuple(int(n) for n in shape)
    if image.shape[1:] == shape:
        return image
    plane = tuple(axis for axis in range(3) if axis != separate_axis)
    out = np.empty((len(image), *shape), image.dtype)
    for channel, result in zip(image, out, strict=True):
        values = np.ascontiguousarray(channel, np.float64 if channel.dtype == np.float64 else np.float32)
        lowest, highest = (f(values, axis=plane, keepdims=True) for f in (np.min, np.max))
        middle = (lowest.min() + highest.max()) / 2
        values = values - middle
        # The axis that shrinks most comes first: the later products are smaller.
        for axis in sorted(plane, key=lambda axis: shape[axis] / channel.shape[axis]):
            values = _along(values, axis, shape[axis], order)
        np.clip(values, lowest - middle, highest - middle, out=values)
        if separate_axis is not None:
            values = _along(values, separate_axis, shape[separate_axis], order_z, clipped_input=False)
        np.add(values, middle, out=result, casting="same_kind")
    return out


def resample_labels(labels: np.ndarray, shape: Sequence[int], separate_axis: int | None = None) -> np.ndarray:
    """Resize label maps as nnU-Net does: linearly, the label of largest weight wins; nearest along `separate_axis`.

    Equal weights go to the label of the nearest voxel if it is among them, else to the smallest, as in
    batchgenerators 0.25.5.

    Args:
        labels: (channels, z, y, x), whole numbers of any dtype.
        shape: voxels per axis of the result.
        separate_axis: the coarse axis of anisotropic data, or None.

    Returns:
        (channels, *shape) in the input's dtype; the input itself where no axis changes.
    """
    shape = tuple(int(n) for n in shape)
    if labels.shape[1:] == shape:
        return labels
    plane = [axis for axis in range(3) if axis != separate_axis and labels.shape[1 + axis] != shape[axis]]
    out = np.empty((len(labels), *shape), labels.dtype)
    for channel, result in zip(labels, out, strict=True):
        values = _between_labels(np.ascontiguousarray(_as_integers(channel)), shape, plane)
        if separate_axis is not None:
            values = values.take(nearest_slices(channel.shape[separate_axis], shape[separate_axis]), axis=separate_axis)
        result[...] = values
    return out


def _as_integers(labels: np.ndarray) -> np.ndarray:
    """In the smallest type that holds them: less to move."""
    lowest, highest = int(labels.min()), int(labels.max())
    return labels.astype(np.promote_types(np.min_scalar_type(lowest), np.min_scalar_type(highest)), copy=False)


def _along(values: np.ndarray, axis: int, size: int, order: int, clipped_input: bool = True) -> np.ndarray:
    """Resize one axis."""
    old = values.shape[axis]
    if old == size:
        return values
    if order == 0:
        return values.take((_nearest if clipped_input else nearest_slices)(old, size), axis=axis)
    matrix = (_zoom if clipped_input else _zoom_z)(old, size, order).astype(values.dtype)
    if axis == 0:
        return (matrix @ values.reshape(old, -1)).reshape(size, *values.shape[1:])
    if axis == 1:
        return matrix @ values
    return values @ matrix.T


@functools.lru_cache(maxsize=64)
def _zoom(old: int, new: int, order: int) -> np.ndarray:
    """(new, old): the zoom of scikit-image's `resize` along one axis, with continued edges."""
    return _read_only(ndimage.zoom(np.eye(old), (1 / (old / new), 1), order=order, mode="nearest", grid_mode=True))


@functools.lru_cache(maxsize=64)
def _nearest(old: int, new: int) -> np.ndarray:
    """(new,): which voxel that zoom takes at order 0."""
    places: np.ndarray = np.arange(old, dtype=np.float64)
    return _read_only(ndimage.zoom(places, 1 / (old / new), order=0, mode="nearest", grid_mode=True).astype(np.intp))


def _z_coordinates(old: int, new: int) -> np.ndarray:
    """(1, new): where nnU-Net samples the coarse axis."""
    return (float(old) / new * (np.arange(new) + 0.5) - 0.5)[None]


@functools.lru_cache(maxsize=64)
def _zoom_z(old: int, new: int, order: int) -> np.ndarray:
    """(new, old): nnU-Net's `map_coordinates` along the coarse axis, with continued edges."""
    columns = [
        ndimage.map_coordinates(unit, _z_coordinates(old, new), order=order, mode="nearest") for unit in np.eye(old)
    ]
    return _read_only(np.stack(columns, axis=1))


@functools.lru_cache(maxsize=64)
def nearest_slices(old: int, new: int) -> np.ndarray:
    """(new,): which slice `map_coordinates` takes at order 0."""
    places: np.ndarray = np.arange(old, dtype=np.float64)
    return _read_only(
        ndimage.map_coordinates(places, _z_coordinates(old, new), order=0, mode="nearest").astype(np.intp)
    )


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@functools.lru_cache(maxsize=64)
def linear_neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `new` voxel centres along an axis of `old` voxels: lower and upper neighbour, weight of the upper."""
    places = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    lower = places.astype(np.intp)
    return _read_only(lower), _read_only(np.minimum(lower + 1, old - 1)), _read_only(places - lower)


def _between_labels(labels: np.ndarray, shape: tuple[int, ...], axes: Sequence[int]) -> np.ndarray:
    """Resize the given axes of one label map (z, y, x) linearly."""
    lowest = highest = labels
    for axis in axes:
        lower, upper, _ = linear_neighbours(labels.shape[axis], shape[axis])
        lowest = np.minimum(lowest.take(lower, axis), lowest.take(upper, axis))
        highest = np.maximum(highest.take(lower, axis), highest.take(upper, axis))
    out = lowest
    between = np.flatnonzero(lowest != highest)
    for begin in range(0, len(between), _CHUNK):
        places = tuple(np.asarray(i) for i in np.unravel_index(between[begin : begin + _CHUNK], out.shape))
        out[places] = _heaviest(labels, places, shape, axes)
    return out


def _heaviest(
    labels: np.ndarray, places: tuple[np.ndarray, ...], shape: tuple[int, ...], axes: Sequence[int]
) -> np.ndarray:
    """The label of largest weight among the neighbours of each place."""
    index, weight = [list(places)], [np.ones(len(places[0]))]
    closest = list(places)
    for axis in axes:
        lower, upper, of_upper = (x[places[axis]] for x in linear_neighbours(labels.shape[axis], shape[axis]))
        index = [[*i[:axis], side, *i[axis + 1 :]] for i in index for side in (lower, upper)]
        weight = [w * side for w in weight for side in (1 - of_upper, of_upper)]
        closest[axis] = _nearest(labels.shape[axis], shape[axis])[places[axis]]
    corners, weights = np.stack([labels[tuple(i)] for i in index]), np.stack(weight)  # (corners, places)
    nearest = labels[tuple(closest)]
    smallest, largest = corners.min(axis=0), corners.max(axis=0)
    of_smallest, of_largest = ((weights * (corners == label)).sum(axis=0) for label in (smallest, largest))
    winner = np.where(of_largest > of_smallest, largest, smallest)
    winner = np.where(np.abs(of_largest - of_smallest) <= _TIE, nearest, winner)
    # Between two labels that is all; the rest lies where more of them meet.
    more = of_smallest + of_largest < 1 - _TIE
    winner[more] = _heaviest_of_many(corners[:, more], weights[:, more], nearest[more])
    return winner


def _heaviest_of_many(corners: np.ndarray, weights: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Any number of labels; corners and weights (corners, places), nearest (places,)."""
    scores = np.stack([(weights * (corners == label)).sum(axis=0) for label in corners])
    tied = scores >= scores.max(axis=0) - _TIE
    smallest = np.where(tied, corners, np.iinfo(corners.dtype).max).min(axis=0)
    return np.where((tied & (corners == nearest)).any(axis=0), nearest, smallest)


def plain_image(
    image: np.ndarray, shape: Sequence[int], order: int = 3, separate_axis: int | None = None, order_z: int = 0
) -> np.ndarray:
    """What `resample_image` must equal: nnU-Net's function."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

    return resample_data_or_seg(image, shape, False, separate_axis, order, separate_axis is not None, order_z)


def plain_labels(labels: np.ndarray, shape: Sequence[int], separate_axis: int | None = None) -> np.ndarray:
    """What `resample_labels` must equal, except at exact ties: nnU-Net's function."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

    return resample_data_or_seg(labels, shape, True, separate_axis, 1, separate_axis is not None, 0)
