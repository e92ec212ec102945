"""The inner loops of rotation, scaling and cropping, compiled by numba; `spatial` prepares their arguments.

One pass over the output: the place in the input is computed where it is needed, in the order of operations and in the
precision of batchgeneratorsv2 and of torch's `grid_sample`, so that the same labels come out bit by bit. Numbers are
float32; nothing is reordered or fused.

Labels are those of the largest weight among the corners, their weights rounded to half precision as batchgeneratorsv2
does, which makes near ties exact ones; ties go to the nearest voxel if it is among them, else to the smallest label.
Where all corners have one label, it wins without a sum. What lies outside the input has the label `padding`.
"""

# mypy: ignore-errors
# Kernels are in numba's dialect: compiled, scalars have other types.

from __future__ import annotations

import numpy as np
from numba import njit

_ZERO, _ONE, _TWO, _SCORE = np.float32(0), np.float32(1), np.float32(2), np.float32(1000)
# Adding and subtracting this rounds to half precision's spacing in [512, 1024), [256, 512) and [128, 256).
_ROUND_512, _ROUND_256, _ROUND_128 = np.float32(1.5 * 2**22), np.float32(1.5 * 2**21), np.float32(1.5 * 2**20)
_ROUND_64 = np.float32(1.5 * 2**19)

_BLOCK, _ROW = 16, 64


@njit(nogil=True, inline="always")
def _to_half(score):
    """A score of up to 1024 in half precision; those below 64 cannot win against seven others and stay."""
    if score >= np.float32(512):
        return (score + _ROUND_512) - _ROUND_512
    if score >= np.float32(256):
        return (score + _ROUND_256) - _ROUND_256
    if score >= np.float32(128):
        return (score + _ROUND_128) - _ROUND_128
    if score >= np.float32(64):
        return (score + _ROUND_64) - _ROUND_64
    return score


@njit(nogil=True)
def _score(label, found, inside, weights, padding, reaches):
    total = _ZERO
    if reaches and label == padding:
        # The padding's indicator is one outside: what is not padding is taken off the whole.
        for k in range(found.size):
            if inside[k] and found[k] != label:
                total += -_SCORE * weights[k]
        return _to_half(total + _SCORE)
    for k in range(found.size):
        if inside[k] and found[k] == label:
            total += _SCORE * weights[k]
    return _to_half(total)


@njit(nogil=True)
def _winner(found, inside, weights, nearest, padding, reaches, two, low, high):
    """The label of one voxel between labels.

    Args:
        found, inside, weights: label, whether inside the input, and weight of each corner.
        nearest: label of the nearest voxel.
        padding, reaches: label of what is outside, and whether any voxel of the patch looks there.
        two, low, high: whether the input has just these two labels, which batchgeneratorsv2 decides by one score.
    """
    if two:
        score = _score(high, found, inside, weights, padding, reaches)
        if score == np.float32(500):
            return nearest
        return high if score > np.float32(500) else low
    # Mostly only two labels meet, and neither is the padding's.
    one = other = found[0]
    of_one, of_other, pair = _ZERO, _ZERO, True
    for k in range(found.size):
        if found[k] == one:
            of_one += _SCORE * weights[k]
        elif other == one or found[k] == other:
            other = found[k]
            of_other += _SCORE * weights[k]
        else:
            pair = False
    if pair and not (reaches and (one == padding or other == padding)):
        of_one, of_other = _to_half(of_one), _to_half(of_other)
        if of_one == of_other:
            return nearest
        return one if of_one > of_other else other
    best, winner, of_nearest = -_ONE, nearest, -_TWO
    for k in range(found.size):
        label = found[k]
        seen = False
        for j in range(k):
            seen |= found[j] == label
        if seen:
            continue
        score = _score(label, found, inside, weights, padding, reaches)
        if score > best or (score == best and label < winner):
            best, winner = score, label
        if label == nearest:
            of_nearest = score
    return nearest if of_nearest == best else winner


@njit(nogil=True)
def _outside(values, classes, first, near, box, size, origin, weights, found, inside, padding, reaches,
             two, low, high, image_out, labels_out):  # fmt: skip
    """A voxel that looks outside the input, image and labels.

    Args:
        first, near: (axes,) the first corner and the nearest voxel, in the input.
        box, size, origin: shape of what is in memory, size of the input, and where in it the memory begins.
    """
    corners, axes = weights.size, size.size
    anywhere, near_inside, start, to_near = False, True, 0, 0
    for k in range(corners):
        inside[k] = True
        for d in range(axes):
            place = first[d] + (k >> (axes - 1 - d) & 1)
            inside[k] &= 0 <= place < size[d]
        anywhere |= inside[k]
    for d in range(axes):
        start = start * box[d] + first[d] - origin[d]
        to_near = to_near * box[d] + near[d] - first[d]
        near_inside &= 0 <= near[d] < size[d]
    for c in range(values.shape[0]):
        value = _ZERO
        for k in range(corners):
            if inside[k]:
                value += values[c, start + _step(k, box)] * weights[k]
        image_out[c] = value
    for m in range(classes.shape[0]):
        labels_out[m] = padding
        if anywhere:
            for k in range(corners):
                found[k] = classes[m, start + _step(k, box)] if inside[k] else padding
            closest = classes[m, start + to_near] if near_inside else padding
            labels_out[m] = _winner(found, inside, weights, closest, padding, reaches, two[m], low[m], high[m])


@njit(nogil=True)
def _step(corner, box):
    """How far a corner lies from the first in memory."""
    axes, step = box.size, 0
    for d in range(axes):
        step = step * box[d] + (corner >> (axes - 1 - d) & 1)
    return step


@njit(nogil=True)
def _line(axis, begin, slope, constant, shift, half, size, out):
    """torch's voxel, along one axis of a volume, of each place of a row of the output."""
    for k in range(out.size):
        grid = ((constant + axis[begin + k] * slope) + shift) / half
        out[k] = ((grid + _ONE) * size - _ONE) / _TWO


def sample_3d(
    image, labels, z_axis, y_axis, x_axis, affine, shift, half, size, origin, padding, reaches, two, low, high,
    image_out, labels_out,
):  # fmt: skip
    """Sample a volume at an affine grid, linearly; zeros outside.

    Args:
        image, labels: (channels, box) and (maps, box): the part of the input that the patch looks at, contiguous.
        z_axis, y_axis, x_axis: coordinates of the output's voxels, from its centre.
        affine: (3, 3), rows are the axes of the output, columns those of the input.
        shift: the output's centre from the input's.
        half: half the size of the input.
        size, origin: of the input, and of the box in it.
        padding, reaches: see `_winner`.
        two, low, high: per map of labels; see `_winner`.
        image_out, labels_out: (channels, patch), (maps, patch).
    """
    channels, depth, height, width = image.shape
    maps = labels.shape[0]
    values, classes = image.reshape(channels, -1), labels.reshape(maps, -1)
    zs, ys, xs = np.empty(_ROW, np.float32), np.empty(_ROW, np.float32), np.empty(_ROW, np.float32)
    weights, inside, found = np.empty(8, np.float32), np.ones(8, np.bool_), np.empty(8, labels.dtype)
    found_inside = np.empty(8, np.bool_)
    box = np.array((depth, height, width))
    first, near = np.empty(3, np.int64), np.empty(3, np.int64)
    last_z, last_y, last_x = np.float32(size[0] - 1), np.float32(size[1] - 1), np.float32(size[2] - 1)
    # Unsigned, so that no index is taken from the end.
    one, y_step, z_step = np.uintp(1), np.uintp(width), np.uintp(height * width)
    # In blocks, whose part of a rotated input stays in the cache.
    depths, rows, columns = z_axis.size, y_axis.size, x_axis.size
    blocks_y, blocks_x = (rows + _BLOCK - 1) // _BLOCK, (columns + _ROW - 1) // _ROW
    for block in range((depths + _BLOCK - 1) // _BLOCK * blocks_y * blocks_x):
        block_z, block_y, begin = block // (blocks_y * blocks_x), block // blocks_x % blocks_y, block % blocks_x * _ROW
        length = min(_ROW, columns - begin)
        for line in range(_BLOCK * _BLOCK):
            i, j = block_z * _BLOCK + line // _BLOCK, block_y * _BLOCK + line % _BLOCK
            if i >= depths or j >= rows:
                continue
            for d, out in ((0, zs), (1, ys), (2, xs)):
                constant = z_axis[i] * affine[0, d] + y_axis[j] * affine[1, d]
                _line(x_axis, begin, affine[2, d], constant, shift[d], half[d], np.float32(size[d]), out[:length])
            for k in range(length):
                z, y, x = zs[k], ys[k], xs[k]
                z_low, y_low, x_low = np.floor(z), np.floor(y), np.floor(x)
                # Whole numbers below 2^24 are exact in float32, so these are torch's weights.
                z0, y0, x0 = (z_low + _ONE) - z, (y_low + _ONE) - y, (x_low + _ONE) - x
                z1, y1, x1 = z - z_low, y - y_low, x - x_low
                w0, w1, w2, w3 = x0 * y0 * z0, x1 * y0 * z0, x0 * y1 * z0, x1 * y1 * z0
                w4, w5, w6, w7 = x0 * y0 * z1, x1 * y0 * z1, x0 * y1 * z1, x1 * y1 * z1
                at = begin + k
                if (
                    (z_low >= _ZERO) & (z_low < last_z) & (y_low >= _ZERO) & (y_low < last_y)
                    & (x_low >= _ZERO) & (x_low < last_x)
                ):  # fmt: skip
                    start = (np.int64(z_low) - origin[0]) * height + (np.int64(y_low) - origin[1])
                    p = np.uintp(start * width + (np.int64(x_low) - origin[2]))
                    for c in range(channels):
                        value = values[c, p] * w0
                        value += values[c, p + one] * w1
                        value += values[c, p + y_step] * w2
                        value += values[c, p + y_step + one] * w3
                        value += values[c, p + z_step] * w4
                        value += values[c, p + z_step + one] * w5
                        value += values[c, p + z_step + y_step] * w6
                        value += values[c, p + z_step + y_step + one] * w7
                        image_out[c, i, j, at] = value
                    for m in range(maps):
                        label = classes[m, p]
                        l1, l2, l3 = classes[m, p + one], classes[m, p + y_step], classes[m, p + y_step + one]
                        l4, l5 = classes[m, p + z_step], classes[m, p + z_step + one]
                        l6, l7 = classes[m, p + z_step + y_step], classes[m, p + z_step + y_step + one]
                        if not (
                            (l1 == label) & (l2 == label) & (l3 == label) & (l4 == label)
                            & (l5 == label) & (l6 == label) & (l7 == label)
                        ):  # fmt: skip
                            weights[0], weights[1], weights[2], weights[3] = w0, w1, w2, w3
                            weights[4], weights[5], weights[6], weights[7] = w4, w5, w6, w7
                            found[0], found[1], found[2], found[3] = label, l1, l2, l3
                            found[4], found[5], found[6], found[7] = l4, l5, l6, l7
                            nearest = 0
                            if np.rint(x) > x_low:
                                nearest += 1
                            if np.rint(y) > y_low:
                                nearest += 2
                            if np.rint(z) > z_low:
                                nearest += 4
                            label = _winner(
                                found, inside, weights, found[nearest], padding, reaches, two[m], low[m], high[m]
                            )
                        labels_out[m, i, j, at] = label
                elif not (
                    (z_low >= -_ONE) & (z_low <= last_z) & (y_low >= -_ONE) & (y_low <= last_y)
                    & (x_low >= -_ONE) & (x_low <= last_x)
                ):  # fmt: skip
                    image_out[:, i, j, at], labels_out[:, i, j, at] = _ZERO, padding
                else:
                    weights[0], weights[1], weights[2], weights[3] = w0, w1, w2, w3
                    weights[4], weights[5], weights[6], weights[7] = w4, w5, w6, w7
                    first[0], first[1], first[2] = np.int64(z_low), np.int64(y_low), np.int64(x_low)
                    near[0], near[1], near[2] = np.int64(np.rint(z)), np.int64(np.rint(y)), np.int64(np.rint(x))
                    _outside(
                        values, classes, first, near, box, size, origin, weights, found, found_inside, padding,
                        reaches, two, low, high, image_out[:, i, j, at], labels_out[:, i, j, at],
                    )  # fmt: skip


@njit(nogil=True)
def _line_2d(axis, begin, slope, constant, shift, half, out):
    """The same along one axis of a plane; rounded once at the end, as where torch has fused multiply-add."""
    for k in range(out.size):
        grid = ((constant + axis[begin + k] * slope) + shift) / half
        out[k] = np.float32(np.float64(grid + _ONE) * np.float64(half) - 0.5)


def sample_2d(
    image, labels, y_axis, x_axis, affine, shift, half, size, origin, padding, reaches, two, low, high,
    image_out, labels_out,
):  # fmt: skip
    """The same for planes, all alike: image (channels, planes, box), and so on; affine (2, 2), vectors of two.

    torch computes places and weights of planes in another order than those of volumes.
    """
    channels, planes, height, width = image.shape
    rows, columns = y_axis.size, x_axis.size
    values, classes = image.reshape(channels * planes, -1), labels.reshape(labels.shape[0] * planes, -1)
    values_out = image_out.reshape(channels * planes, rows, columns)
    classes_out = labels_out.reshape(labels.shape[0] * planes, rows, columns)
    ys, xs = np.empty(_ROW, np.float32), np.empty(_ROW, np.float32)
    weights, inside, found = np.empty(4, np.float32), np.ones(4, np.bool_), np.empty(4, labels.dtype)
    found_inside = np.empty(4, np.bool_)
    box, first, near = np.array((height, width)), np.empty(2, np.int64), np.empty(2, np.int64)
    last_y, last_x = np.float32(size[0] - 1), np.float32(size[1] - 1)
    one, y_step = np.uintp(1), np.uintp(width)
    blocks_x = (columns + _ROW - 1) // _ROW
    for block in range((rows + _BLOCK - 1) // _BLOCK * blocks_x):
        begin = block % blocks_x * _ROW
        length = min(_ROW, columns - begin)
        for j in range(block // blocks_x * _BLOCK, min(rows, (block // blocks_x + 1) * _BLOCK)):
            for d, out in ((0, ys), (1, xs)):
                _line_2d(x_axis, begin, affine[1, d], y_axis[j] * affine[0, d], shift[d], half[d], out[:length])
            for k in range(length):
                y, x = ys[k], xs[k]
                y_low, x_low = np.floor(y), np.floor(x)
                y1, x1 = y - y_low, x - x_low
                y0, x0 = _ONE - y1, _ONE - x1
                w0, w1, w2, w3 = x0 * y0, x1 * y0, x0 * y1, x1 * y1
                at = begin + k
                if (y_low >= _ZERO) & (y_low < last_y) & (x_low >= _ZERO) & (x_low < last_x):
                    p = np.uintp((np.int64(y_low) - origin[0]) * width + (np.int64(x_low) - origin[1]))
                    for c in range(channels * planes):
                        value = values[c, p] * w0
                        value += values[c, p + one] * w1
                        value += values[c, p + y_step] * w2
                        value += values[c, p + y_step + one] * w3
                        values_out[c, j, at] = value
                    for m in range(classes.shape[0]):
                        label = classes[m, p]
                        l1, l2, l3 = classes[m, p + one], classes[m, p + y_step], classes[m, p + y_step + one]
                        if not ((l1 == label) & (l2 == label) & (l3 == label)):
                            weights[0], weights[1], weights[2], weights[3] = w0, w1, w2, w3
                            found[0], found[1], found[2], found[3] = label, l1, l2, l3
                            nearest = 0
                            if np.rint(x) > x_low:
                                nearest += 1
                            if np.rint(y) > y_low:
                                nearest += 2
                            label = _winner(
                                found, inside, weights, found[nearest], padding, reaches, two[m], low[m], high[m]
                            )
                        classes_out[m, j, at] = label
                elif not ((y_low >= -_ONE) & (y_low <= last_y) & (x_low >= -_ONE) & (x_low <= last_x)):
                    values_out[:, j, at], classes_out[:, j, at] = _ZERO, padding
                else:
                    weights[0], weights[1], weights[2], weights[3] = w0, w1, w2, w3
                    first[0], first[1] = np.int64(y_low), np.int64(x_low)
                    near[0], near[1] = np.int64(np.rint(y)), np.int64(np.rint(x))
                    _outside(
                        values, classes, first, near, box, size, origin, weights, found, found_inside, padding,
                        reaches, two, low, high, values_out[:, j, at], classes_out[:, j, at],
                    )  # fmt: skip


def two_labels(labels, out):
    """The first two labels of a map, smaller first; out[0] says how many there are: 1, 2, or 3 for more.

    Args:
        labels: (voxels,).
        out: (3,): count and labels.
    """
    first = second = labels[0]
    count = 1
    size, step = labels.size, 1 << 12
    for begin in range(0, size, step):
        end = min(size, begin + step)
        new = 0
        for k in range(begin, end):
            new += (labels[k] != first) & (labels[k] != second)
        if new:
            for k in range(begin, end):
                if labels[k] != first and labels[k] != second:
                    if count == 2:
                        count = 3
                        break
                    second = labels[k]
                    count = 2
        if count == 3:
            break
    out[0] = count
    out[1], out[2] = min(first, second), max(first, second)
