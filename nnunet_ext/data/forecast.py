"""What preprocessing and training with nnU-Net will need, from the headers alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_ext.data.inspect_case import ImageFacts

# nnU-Net's defaults: epochs times iterations, and the memory its planner sizes the network for.
ITERATIONS = 1000 * 250
GPU_GB = 8


def forecast(images: Sequence[ImageFacts], channels: int) -> dict[str, Any]:
    """Memory, disk and time for `nnUNetv2_plan_and_preprocess` and `nnUNetv2_train` at full resolution.

    The grid is the median voxel size, as nnU-Net plans for isotropic data; cropping to the nonzero region is not
    foreseen, so these are upper bounds. The time comes from resampling a small volume now, on this machine.

    Args:
        images: the first channel of each training case.
        channels: channels per case.
    """
    usable = [i for i in images if len(i.shape) in (2, 3) and min(i.spacing_mm) > 0]
    if not usable:
        return {}
    ndim = max(len(image.shape) for image in usable)
    shapes = np.array([(*image.shape, 1)[:ndim] for image in usable], float)
    spacings = np.array([(*image.spacing_mm, 1.0)[:ndim] for image in usable])
    target = np.median(spacings, axis=0)
    before, after = shapes.prod(axis=1), (shapes * spacings / target).round().clip(1).prod(axis=1)
    changed = np.abs(spacings / target - 1).max(axis=1) > 1e-3
    seconds = _seconds_per_voxel() * float(after[changed].sum()) * channels
    # float32 image before and after, float64 inside the resampling of one channel, labels as int8.
    peak = (4 * channels * (before + after) + 8 * np.maximum(before, after) + 2 * after).max()
    return {
        "cases": len(usable),
        "median_spacing_mm": target.tolist(),
        "preprocessed_voxels": int(after.sum()),
        "cases_to_resample": int(changed.sum()),
        "disk_gb_uncompressed": float((4 * channels + 1) * after.sum() / 1e9),
        "memory_gb_per_worker": float(peak / 1e9),
        "resampling_cpu_hours": seconds / 3600,
        "training_iterations": ITERATIONS,
        "training_hours_per_100_ms": ITERATIONS * 0.1 / 3600,
        "training_gpu_gb": GPU_GB,
    }


def forecast_lines(numbers: dict[str, Any]) -> list[str]:
    """The forecast in words, one line each."""
    if not numbers:
        return []
    spacing = " x ".join(f"{value:.3g}" for value in numbers["median_spacing_mm"])
    return [
        f"preprocessing at {spacing} mm (x, y, z): at most {numbers['disk_gb_uncompressed']:.2g} GB on disk before "
        f"compression, {numbers['memory_gb_per_worker']:.2g} GB beyond the start-up of each worker, "
        f"{numbers['resampling_cpu_hours']:.2g} CPU hours to resample {numbers['cases_to_resample']} of "
        f"{numbers['cases']} cases",
        f"training: {numbers['training_iterations']} iterations per fold whatever the number of cases, "
        f"{numbers['training_hours_per_100_ms']:.1f} h for every 100 ms an iteration takes; the default plan is sized "
        f"for a GPU of {numbers['training_gpu_gb']} GB",
    ]


def _seconds_per_voxel() -> float:
    """CPU seconds nnU-Net's interpolation (third order) takes per voxel of its result."""
    block = np.random.default_rng(0).normal(size=(24, 48, 48)).astype(np.float32)
    start = time.process_time()
    result = ndimage.zoom(block, 1.25, order=3)
    return (time.process_time() - start) / result.size
