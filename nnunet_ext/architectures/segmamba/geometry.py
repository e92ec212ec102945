"""What SegMamba takes from a configuration of the plans."""

from __future__ import annotations

from typing import Any


def from_patch(patch_size: list[int], pool_op_kernel_sizes: list[list[int]]) -> dict[str, Any]:
    """nnU-Net's first four downsamplings, which spare the coarse axis of anisotropic data.

    At an isotropic patch these are the published strides, 2 on every axis of every stage. Small patches that
    nnU-Net pools less than four times keep their grid in the last stages.
    """
    strides = [list(stride) for stride in pool_op_kernel_sizes if any(s > 1 for s in stride)][:4]
    strides += [[1] * len(patch_size)] * (4 - len(strides))
    return {"strides": strides}
