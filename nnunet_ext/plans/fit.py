"""Patch and batch that fill a GPU's memory, by the rules of nnU-Net and the estimate of a real training step.

nnU-Net (`ExperimentPlanner.get_plans_for_configuration`) begins with a patch of 256^3 voxels at most and shrinks it,
always along the axis that covers most of the median image, until the feature maps of its own U-Net, in units of a
reference network, fit. Here the beginning is the median image itself, the steps are the same, and what has to fit is
the memory of a training step of the network that will be trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props, pad_shape

from nnunet_ext import models
from nnunet_ext.errors import TrainingError
from nnunet_ext.models.model import Model
from nnunet_ext.plans.estimate import estimate
from nnunet_ext.plans.memory import StepMemory, fits_gpu, on_gpu
from nnunet_ext.plans.network import arguments_for_patch

# nnU-Net's: the least edge of the deepest grid; the least batch, for which a patch must leave room; and the largest
# share of the data set's voxels in a batch.
MIN_EDGE, MIN_BATCH, MAX_COVERED = 4, 2, 0.05


@dataclass(frozen=True)
class Data:
    """What a configuration's patch depends on.

    Attributes:
        spacing_mm: per axis, in the plan's order.
        median_shape: voxels per axis of the images at that spacing.
        voxels: of all training images together.
        input_channels, num_classes: of the network.
    """

    spacing_mm: tuple[float, ...]
    median_shape: tuple[int, ...]
    voxels: float
    input_channels: int
    num_classes: int


@dataclass(frozen=True)
class Patch:
    """A patch and nnU-Net's strides for it, the first of them 1 on every axis."""

    size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def voxels(self) -> int:
        return math.prod(self.size)


@dataclass(frozen=True)
class Fit:
    """A configuration that fits.

    Attributes:
        patch_size: voxels per axis.
        batch_size: samples per step.
        arguments: of the network.
        gigabytes: estimated of the GPU's memory, 1e9 bytes each.
        limit: what keeps patch and batch from growing where it is not the memory; "" where it is.
    """

    patch_size: tuple[int, ...]
    batch_size: int
    arguments: dict[str, Any]
    gigabytes: float
    limit: str = ""


def fit(
    model: str | models.Model,
    size: str,
    data: Data,
    gpu_gigabytes: float,
    *,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Fit:
    """The largest patch, then the largest batch, whose training step fits.

    Args:
        model, size: network and preset.
        data: what is trained on.
        gpu_gigabytes: of the whole GPU, 1e9 bytes each.
        patch_size: keep this patch and choose the batch alone.
        batch_size: take this batch and choose the patch alone.

    Raises:
        TrainingError: not even the smallest patch fits.
    """
    row = models.find(model)
    budget = fits_gpu(gpu_gigabytes * 1e9)
    if patch_size is None:
        # More than the cube that a network resizes patches to would lose resolution.
        candidates = patches(data.spacing_mm, data.median_shape, row.poolings, row.resized_to.get(size))
    else:
        candidates = [_with_strides(data.spacing_mm, patch_size)]
    least = batch_size or MIN_BATCH
    if row.batch_size:  # resizes every image to its own grid: the patch means nothing to its memory
        candidates, least = candidates[:1], batch_size or 1

    def memory(patch: Patch, batch: int) -> StepMemory:
        arguments = arguments_for_patch(model, size, list(patch.size), [list(s) for s in patch.strides])
        return estimate(model, arguments, data.input_channels, data.num_classes, patch.size, batch)

    position = first_fitting([c.voxels for c in candidates], lambda i: memory(candidates[i], least), budget)
    if position is None:
        smallest = candidates[-1]
        raise TrainingError(
            f"{f'{row.title} {size}'.strip()} needs {on_gpu(memory(smallest, least).total) / 1e9:.1f} GB for a batch "
            f"of {least} with the smallest patch {'x'.join(map(str, smallest.size))}, more than {gpu_gigabytes:g} GB; "
            "raise the memory target or choose a smaller preset with nnunet_ext plan --size"
        )
    chosen = candidates[position]
    largest = batch_size or row.batch_size or max(least, round(data.voxels * MAX_COVERED / chosen.voxels))
    batches = range(largest, least - 1, -1)
    batch = batches[first_fitting(batches, lambda i: memory(chosen, batches[i]), budget) or 0]
    arguments = arguments_for_patch(model, size, list(chosen.size), [list(s) for s in chosen.strides])
    limit = ""
    if position == 0:  # else memory decides about the patch, and nothing is left for more samples
        limit = _limit(row, size, chosen, patch_size is None, batch == largest and batch_size is None)
    return Fit(chosen.size, batch, arguments, on_gpu(memory(chosen, batch).total) / 1e9, limit)


def _limit(row: Model, size: str, patch: Patch, patch_chosen: bool, batch_full: bool) -> str:
    """Why the largest patch and the largest batch grow no further on a larger GPU."""
    limits = []
    if patch_chosen and not row.batch_size:
        cube = row.resized_to.get(size) in patch.size
        whole = "the cube the network resizes to" if cube else "already the whole image"
        limits.append(f"the patch is {whole}")
    if batch_full:
        share = "the network's own" if row.batch_size else f"limited to {MAX_COVERED:.0%} of the data set's voxels"
        limits.append(f"the batch is {share}; --batch-size overrides")
    return "; ".join(limits)


def patches(
    spacing_mm: Sequence[float], median_shape: Sequence[int], poolings: int | None = None, largest: int | None = None
) -> list[Patch]:
    """nnU-Net's patches from the whole median image down to the smallest that can be pooled, each a step smaller.

    Args:
        spacing_mm, median_shape: per axis.
        poolings: of nnU-Net's, the first so many have to divide the patch; None for all.
        largest: voxels per axis to begin with; None for the whole image.
    """
    found = [_rounded(spacing_mm, [max(1, min(round(n), largest or round(n))) for n in median_shape], poolings)]
    while True:
        last = found[-1].size
        axis = max(range(len(last)), key=lambda i: (last[i] / median_shape[i], i))
        # As in nnU-Net, the step is that of the patch one step smaller: 224 lies between 256 and 192.
        smaller = list(last)
        smaller[axis] -= _multiples(found[-1].strides, poolings)[axis]
        if smaller[axis] < 2 * MIN_EDGE:
            return found
        smaller[axis] = last[axis] - _multiples(strides_for(spacing_mm, smaller), poolings)[axis]
        found.append(_rounded(spacing_mm, smaller, poolings))


def first_fitting(extents: Sequence[int], memory: Callable[[int], StepMemory], budget: float) -> int | None:
    """Position of the first of `extents` that fits, while the one before it does not; None if none fits.

    Memory is nearly linear in voxels and samples, so every estimate tells where to look next.

    Args:
        extents: voxels of a patch or samples of a batch, largest first.
        memory: of a step, by position.
        budget: bytes.
    """
    need = memory(0)
    if need.total <= budget:
        return 0
    too_large, fitting = 0, len(extents)
    # Extent and bytes of what does not fit, and of what does; at first, of no activations at all.
    above, below = (extents[0], need.total), (0, need.fixed)
    while fitting - too_large > 1:
        slope = (above[1] - below[1]) / (above[0] - below[0])
        wanted = below[0] + (budget - below[1]) / slope
        guess = next((i for i in range(too_large + 1, fitting) if extents[i] <= wanted), fitting - 1)
        total = memory(guess).total
        if total <= budget:
            fitting, below = guess, (extents[guess], total)
        else:
            too_large, above = guess, (extents[guess], total)
    return fitting if fitting < len(extents) else None


def strides_for(spacing_mm: Sequence[float], size: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """nnU-Net's strides for a patch, per stage and axis, the first of them 1."""
    _, strides, _, _, _ = get_pool_and_conv_props(list(spacing_mm), list(size), MIN_EDGE, 999999)
    return tuple(tuple(int(s) for s in stride) for stride in strides)


def _multiples(strides: Sequence[Sequence[int]], poolings: int | None) -> list[int]:
    used = strides if poolings is None else strides[: poolings + 1]
    return [math.prod(stride[axis] for stride in used) for axis in range(len(strides[0]))]


def _rounded(spacing_mm: Sequence[float], size: Sequence[int], poolings: int | None) -> Patch:
    strides = strides_for(spacing_mm, size)
    return Patch(tuple(int(n) for n in pad_shape(size, _multiples(strides, poolings))), strides)


def _with_strides(spacing_mm: Sequence[float], size: Sequence[int]) -> Patch:
    return Patch(tuple(size), strides_for(spacing_mm, size))
