"""From a network's logits to labels on the image's own grid, as nnU-Net exports them, without resizing every class.

nnU-Net resizes the logits of every class linearly to the size of the image and takes the largest. A linear weight is a
mean: where all neighbours on the coarse grid have one largest class, so has the result. Only voxels between classes, a
few in a hundred, need the logits of their neighbours. Regions, which nnU-Net thresholds, go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.errors import UserError
from nnunet_ext.ops.resample import linear_neighbours, nearest_slices
from nnunet_ext.plans.preprocessor import RESAMPLING, coarse_axis

# Numbers of interpolated logits held at once.
_HELD = 1 << 21


def check_finite(logits: torch.Tensor) -> None:
    """Refuse logits that are not finite, of which any label map could be made.

    Raises:
        UserError: there is a NaN or an infinity among them.
    """
    # The extremes of numbers with a NaN among them are NaN, and are found without further memory.
    if not all(bool(torch.isfinite(end)) for channel in logits for end in (channel.min(), channel.max())):
        raise UserError("the network's output is not finite; look at the image, or predict with --precision fp32")


def segmentation_of_logits(
    logits: np.ndarray | torch.Tensor,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    label_manager: LabelManager,
    properties: dict,
) -> np.ndarray:
    """The segmentation nnU-Net would export.

    Args:
        logits: (classes, *grid of the preprocessed image), as the predictor returns them.
        plans_manager, configuration_manager, label_manager: of the model.
        properties: what preprocessing noted about the image.

    Returns:
        (z, y, x) of the original image, uint8, or uint16 from 255 foreground labels on. Of half-precision logits, which
        predictors return, the labels are nnU-Net's, its ties included: both round resized logits to half precision.
    """
    arguments = configuration_manager.configuration["resampling_fn_probabilities_kwargs"]
    name = configuration_manager.configuration["resampling_fn_probabilities"]
    if name != RESAMPLING or (arguments.get("order", 3), arguments.get("order_z", 0)) != (1, 0):
        # Plans with another resampling ask for its result.
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans_manager, configuration_manager, label_manager, properties, num_threads_torch=1
        )
    spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    own = list(configuration_manager.spacing)
    own = own if len(own) == len(shape) else [spacing[0], *own]
    axis = coarse_axis(arguments, own, spacing)
    values = logits.cpu().numpy() if isinstance(logits, torch.Tensor) else logits
    if label_manager.has_regions:
        found = regions_of_logits(values, shape, label_manager.regions_class_order, axis)
    else:
        found = labels_of_logits(values, shape, axis)
    dtype = np.uint8 if len(label_manager.foreground_labels) < 255 else np.uint16
    whole = np.zeros(properties["shape_before_cropping"], dtype)
    whole[tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])] = found
    return whole.transpose(plans_manager.transpose_backward)


def labels_of_logits(logits: np.ndarray, shape: Sequence[int], separate_axis: int | None = None) -> np.ndarray:
    """The class of the largest linearly resized logit; the first of equal ones.

    Args:
        logits: (classes, z, y, x), float16 or float32.
        shape: voxels per axis of the result.
        separate_axis: axis of which the nearest slice is taken instead, or None.

    Returns:
        shape, uint8 or uint16.
    """
    coarse = _largest(logits)
    return _resized(coarse, logits, shape, separate_axis, lambda values: values.argmax(axis=0))


def regions_of_logits(
    logits: np.ndarray, shape: Sequence[int], class_order: Sequence[int], separate_axis: int | None = None
) -> np.ndarray:
    """The label of the last region whose resized logit is positive, which is where nnU-Net's sigmoid exceeds 0.5.

    Args:
        logits: (regions, z, y, x).
        shape, separate_axis: as `labels_of_logits`.
        class_order: the label each region paints, in the order in which they are painted.

    Returns:
        shape, uint8 or uint16.
    """
    out = np.zeros(shape, np.min_scalar_type(max(class_order)))
    for region, label in zip(logits, class_order, strict=True):
        inside = _resized((region > 0).astype(np.uint8), region[None], shape, separate_axis, lambda v: v[0] > 0)
        out[inside.astype(bool)] = label
    return out


def _largest(logits: np.ndarray) -> np.ndarray:
    """argmax over the first axis; half-precision numbers are compared by their bits, which is many times faster."""
    keys = _sortable(logits[0])
    winner = np.zeros(logits.shape[1:], np.min_scalar_type(len(logits) - 1))
    better = np.empty(logits.shape[1:], bool)
    for c in range(1, len(logits)):
        key = _sortable(logits[c])
        np.greater(key, keys, out=better)
        np.copyto(winner, winner.dtype.type(c), where=better)
        np.maximum(keys, key, out=keys)
    return winner


def _sortable(values: np.ndarray) -> np.ndarray:
    """A copy that sorts as the values do: for float16, integers."""
    if values.dtype != np.float16:
        return values.copy()
    bits = np.ascontiguousarray(values).view(np.int16)
    keys = bits ^ ((bits >> 15) & 0x7FFF)
    keys[keys == -1] = 0  # minus zero
    return keys


def _resized(
    coarse: np.ndarray,
    logits: np.ndarray,
    shape: Sequence[int],
    separate_axis: int | None,
    decide: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Resize decisions on the coarse grid; between different ones decide by interpolated logits.

    Args:
        coarse: (z, y, x) decisions.
        logits: (classes, z, y, x) they were made of.
        shape: of the result.
        separate_axis: axis of which the nearest slice is taken.
        decide: (classes, n) interpolated logits -> (n,) decisions.
    """
    shape = tuple(int(n) for n in shape)
    axes = [axis for axis in range(3) if axis != separate_axis and coarse.shape[axis] != shape[axis]]
    lowest = highest = coarse
    for axis in axes:
        lower, upper, _ = linear_neighbours(coarse.shape[axis], shape[axis])
        lowest = np.minimum(lowest.take(lower, axis), lowest.take(upper, axis))
        highest = np.maximum(highest.take(lower, axis), highest.take(upper, axis))
    out = lowest.copy() if lowest is coarse else lowest
    between = np.flatnonzero(lowest != highest)
    # A copy only where the image is smaller than the network's patch, whose border has been cut off.
    flat = np.ascontiguousarray(logits).reshape(len(logits), -1)
    half = torch.float16 if logits.dtype == np.float16 else None
    step = max(1, _HELD // len(logits))
    for begin in range(0, len(between), step):
        at = between[begin : begin + step]
        places = np.unravel_index(at, out.shape)
        # Position on the coarse grid and weight of every neighbour.
        neighbours: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(len(at), np.intp), np.ones(len(at), np.float32))]
        for axis, place in enumerate(places):
            lower, upper, of_upper = (x[place] for x in linear_neighbours(coarse.shape[axis], out.shape[axis]))
            sides = ((lower, 1 - of_upper), (upper, of_upper)) if axis in axes else ((place, np.ones(len(at))),)
            neighbours = [
                (position * coarse.shape[axis] + side, (weight * of_side).astype(np.float32))
                for position, weight in neighbours
                for side, of_side in sides
            ]
        values = torch.zeros(len(logits), len(at))
        for position, weight in neighbours:
            # Gathered by numpy and converted by torch, each several times faster than the other.
            values.addcmul_(torch.from_numpy(flat.take(position, axis=1)).float(), torch.from_numpy(weight))
        # nnU-Net keeps the result in the type of the logits, half precision, in which small differences are ties.
        out[places] = decide(values.to(half).float().numpy() if half is not None else values.numpy())
    if separate_axis is not None and out.shape[separate_axis] != shape[separate_axis]:
        out = out.take(nearest_slices(out.shape[separate_axis], shape[separate_axis]), axis=separate_axis)
    return out
