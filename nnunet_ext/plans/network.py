"""A network's keyword arguments for one configuration of the plans.

Plans that name one of our networks carry its arguments; under any other plans a network has its published sizes and
takes from the configuration what depends on the patch.
"""

from __future__ import annotations

import math
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_ext.errors import TrainingError
from nnunet_ext.plans.presets import NETWORKS, PRESETS


def network_arguments(model: str, configuration: ConfigurationManager) -> dict[str, Any]:
    """Keyword arguments of `model` (a key of `NETWORKS`) for this configuration.

    Raises:
        TrainingError: the plans name another of our networks.
    """
    named = configuration.network_arch_class_name
    if named == NETWORKS[model]:
        return dict(configuration.network_arch_init_kwargs)
    if named in NETWORKS.values():
        raise TrainingError(f"these plans are for {named}, not for {NETWORKS[model]}; choose other plans with -p")
    return arguments_for_patch(model, "base", configuration.patch_size, configuration.pool_op_kernel_sizes)


def arguments_for_patch(
    model: str, size: str, patch_size: list[int], pool_op_kernel_sizes: list[list[int]]
) -> dict[str, Any]:
    """The preset `size` of `model`, completed with what follows from the patch.

    Args:
        model: a key of `NETWORKS`.
        size: a key of `PRESETS[model]`.
        patch_size: voxels per axis.
        pool_op_kernel_sizes: nnU-Net's strides for this patch, the first of them 1 on every axis.
    """
    return {**PRESETS[model][size], **_FROM_PATCH[model](patch_size, pool_op_kernel_sizes)}


def count_parameters(network: nn.Module) -> int:
    """Parameters of a network; a mean of its weights that is kept beside them does not count again."""
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("average."))


def _segmamba(patch_size: list[int], pool_op_kernel_sizes: list[list[int]]) -> dict[str, Any]:
    """nnU-Net's first four downsamplings, which spare the coarse axis of anisotropic data.

    At an isotropic patch these are the published strides, 2 on every axis of every stage. Small patches that
    nnU-Net pools less than four times keep their grid in the last stages.
    """
    strides = [list(stride) for stride in pool_op_kernel_sizes if any(s > 1 for s in stride)][:4]
    strides += [[1] * len(patch_size)] * (4 - len(strides))
    return {"strides": strides}


def _unetrpp(patch_size: list[int], pool_op_kernel_sizes: list[list[int]]) -> dict[str, Any]:
    """The patch, which the network's projections belong to, and strides that divide it; nnU-Net's need not."""
    from nnunet_ext.architectures.unetrpp_geometry import fit_geometry

    return {"patch_size": list(patch_size), "strides": [list(stride) for stride in fit_geometry(patch_size).strides]}


def _medsegdiff(patch_size: list[int], pool_op_kernel_sizes: list[list[int]]) -> dict[str, Any]:
    """nnU-Net's strides and kernels, and a patch that cuts the deepest grid into no more than 128 pieces.

    nnU-Net's kernels are 1 on a coarse axis until that axis is pooled too.
    """
    from nnunet_ext.architectures.medsegdiff.ss_former import patch_size_for

    strides = [list(stride) for stride in pool_op_kernel_sizes]
    axes = range(len(patch_size))
    kernels = []
    for stage in range(len(strides)):
        pooled = [any(stride[axis] > 1 for stride in strides[: stage + 2]) for axis in axes]
        kernels.append([3 if pooled[axis] or not any(pooled) else 1 for axis in axes])
    deepest = [-(-n // math.prod(stride[axis] for stride in strides)) for axis, n in enumerate(patch_size)]
    return {"strides": strides, "kernel_sizes": kernels, "semantic_patch": list(patch_size_for(deepest, 128))}


def _sam_med3d(patch_size: list[int], pool_op_kernel_sizes: list[list[int]]) -> dict[str, Any]:
    """Nothing: every patch is resized to the network's cube."""
    return {}


def _universeg(patch_size: list[int], pool_op_kernel_sizes: list[list[int]]) -> dict[str, Any]:
    """Nothing: every slice is resized to the network's square."""
    return {}


_FROM_PATCH = {
    "medsegdiff": _medsegdiff,
    "sam_med3d": _sam_med3d,
    "segmamba": _segmamba,
    "unetrpp": _unetrpp,
    "universeg": _universeg,
}
