"""What MedSegDiff-V2 takes from a configuration of the plans."""

from __future__ import annotations

import math
from typing import Any

from nnunet_ext.architectures.medsegdiff.ss_former import patch_size_for


def from_patch(patch_size: list[int], pool_op_kernel_sizes: list[list[int]]) -> dict[str, Any]:
    """nnU-Net's strides and kernels, and a patch that cuts the deepest grid into no more than 128 pieces.

    nnU-Net's kernels are 1 on a coarse axis until that axis is pooled too.
    """
    strides = [list(stride) for stride in pool_op_kernel_sizes]
    axes = range(len(patch_size))
    kernels = []
    for stage in range(len(strides)):
        pooled = [any(stride[axis] > 1 for stride in strides[: stage + 2]) for axis in axes]
        kernels.append([3 if pooled[axis] or not any(pooled) else 1 for axis in axes])
    deepest = [-(-n // math.prod(stride[axis] for stride in strides)) for axis, n in enumerate(patch_size)]
    return {"strides": strides, "kernel_sizes": kernels, "semantic_patch": list(patch_size_for(deepest, 128))}
