"""The inner loops of blur, low resolution, contrast and gamma, compiled by numba; `intensity` prepares their arguments.

One channel each, in place; sums are accumulated in double precision, several at a time in an order of their own, so
that results do not depend on the width of a processor's registers.
"""

# mypy: ignore-errors
# Kernels are in numba's dialect: compiled, scalars have other types.

from __future__ import annotations

import numpy as np
from numba import njit

# Numbers that are summed side by side.
_LANES = 16


@njit(nogil=True)
def _weighted(rows, places, weights, out):
    """out = sum over k of weights[k] rows[places[k]], for rows of one length."""
    length = out.size
    for x in range(length):
        out[x] = rows[places[0], x] * weights[0]
    for k in range(1, weights.size):
        for x in range(length):
            out[x] += rows[places[k], x] * weights[k]


@njit(nogil=True)
def _reflected(place, size):
    """torch's reflection at the centres of the first and last voxel."""
    if place < 0:
        return -place
    return 2 * size - 2 - place if place >= size else place


@njit(nogil=True)
def _blur_axis(image, weights, room, columns):
    """Blur the middle axis of (before, size, after) in place, some columns at a time.

    Args:
        room: (size, columns): copy of what is blurred.
    """
    before, size, after = image.shape
    reach = weights.size // 2
    places = np.empty(weights.size, np.int64)
    for b in range(before):
        for begin in range(0, after, columns):
            length = min(columns, after - begin)
            for i in range(size):
                room[i, :length] = image[b, i, begin : begin + length]
            for i in range(size):
                for k in range(weights.size):
                    places[k] = _reflected(i + k - reach, size)
                _weighted(room[:, :length], places, weights, image[b, i, begin : begin + length])


@njit(nogil=True)
def _blur_rows(image, weights, padded):
    """Blur the last axis of (rows, size) in place.

    Args:
        padded: (size + weights - 1,): room for one row and its reflection.
    """
    rows, size = image.shape
    reach = weights.size // 2
    for r in range(rows):
        padded[reach : reach + size] = image[r]
        for k in range(reach):
            padded[reach - 1 - k] = image[r, 1 + k]
            padded[reach + size + k] = image[r, size - 2 - k]
        out = image[r]
        for x in range(size):
            out[x] = padded[x] * weights[0]
        for k in range(1, weights.size):
            weight, source = weights[k], padded[k:]
            for x in range(size):
                out[x] += source[x] * weight


def blur(image, weights_z, weights_y, weights_x):
    """Blur a channel (z, y, x) in place with a kernel per axis, edges reflected; one of one number does nothing."""
    depth, height, width = image.shape
    if weights_z.size > 1:
        columns = 512
        _blur_axis(image.reshape(1, depth, height * width), weights_z, np.empty((depth, columns), np.float32), columns)
    if weights_y.size > 1:
        _blur_axis(image, weights_y, np.empty((height, width), np.float32), width)
    if weights_x.size > 1:
        padded = np.empty(width + weights_x.size - 1, np.float32)
        _blur_rows(image.reshape(depth * height, width), weights_x, padded)


@njit(nogil=True)
def _between(a, b, weight, out):
    """out = (1 - weight) a + weight b."""
    other = np.float32(1) - weight
    for x in range(out.size):
        out[x] = a[x] * other + b[x] * weight


@njit(nogil=True)
def _enlarged(plane, lower_y, upper_y, weight_y, lower_x, upper_x, weight_x, wide, out):
    """Enlarge one plane linearly; wide: (rows of the plane, width of the result)."""
    for y in range(plane.shape[0]):
        for x in range(wide.shape[1]):
            w = weight_x[x]
            wide[y, x] = plane[y, lower_x[x]] * (np.float32(1) - w) + plane[y, upper_x[x]] * w
    for y in range(out.shape[0]):
        _between(wide[lower_y[y]], wide[upper_y[y]], weight_y[y], out[y])


def enlarge(small, lower_z, upper_z, weight_z, lower_y, upper_y, weight_y, lower_x, upper_x, weight_x, out):
    """Enlarge a channel (z, y, x) linearly.

    Args:
        lower, upper, weight: per axis and voxel of the result: the neighbours, and the weight of the upper.
    """
    depth, height, width = out.shape
    wide = np.empty((small.shape[1], width), np.float32)
    planes = np.empty((2, height, width), np.float32)
    held = np.full(2, -1, np.int64)
    for z in range(depth):
        for needed in (lower_z[z], upper_z[z]):
            if held[needed & 1] != needed:
                _enlarged(
                    small[needed], lower_y, upper_y, weight_y, lower_x, upper_x, weight_x, wide, planes[needed & 1]
                )
                held[needed & 1] = needed
        _between(
            planes[lower_z[z] & 1].reshape(-1), planes[upper_z[z] & 1].reshape(-1), weight_z[z], out[z].reshape(-1)
        )


@njit(nogil=True)
def _sums(image, offset):
    """Sum and sum of squares of image - offset."""
    sums, squares = np.zeros(_LANES), np.zeros(_LANES)
    whole = image.size // _LANES * _LANES
    for begin in range(0, whole, _LANES):
        for k in range(_LANES):
            value = np.float64(image[begin + k] - offset)
            sums[k] += value
            squares[k] += value * value
    total, square = 0.0, 0.0
    for k in range(_LANES):
        total += sums[k]
        square += squares[k]
    for k in range(whole, image.size):
        value = np.float64(image[k] - offset)
        total += value
        square += value * value
    return total, square


def moments(image, out):
    """Mean and standard deviation (of a sample) of a channel (voxels,)."""
    offset = image[0]
    total, square = _sums(image, offset)
    mean = total / image.size
    out[0] = offset + mean
    # As torch, the deviation of a single number is not a number.
    out[1] = np.sqrt(max(square - total * mean, 0.0) / (image.size - 1)) if image.size > 1 else np.nan


def stretch(image, centre, factor, shift, lowest, highest):
    """image = (image - centre) factor + shift, kept within bounds, in place; NaN stays."""
    for k in range(image.size):
        value = (image[k] - centre) * factor + shift
        value = lowest if value < lowest else value
        image[k] = highest if value > highest else value


def flip(image, flip_z, flip_y, flip_x):
    """Mirror a channel (z, y, x) in place."""
    depth, height, width = image.shape
    for z in range(depth):
        other_z = depth - 1 - z if flip_z else z
        if other_z < z:
            continue
        for y in range(height):
            other_y = height - 1 - y if flip_y else y
            if other_z == z and other_y < y:
                continue
            a, b = image[z, y], image[other_z, other_y]
            if other_z == z and other_y == y:
                if flip_x:
                    for x in range(width // 2):
                        a[x], a[width - 1 - x] = a[width - 1 - x], a[x]
            elif flip_x:
                for x in range(width):
                    a[x], b[width - 1 - x] = b[width - 1 - x], a[x]
            else:
                for x in range(width):
                    a[x], b[x] = b[x], a[x]
