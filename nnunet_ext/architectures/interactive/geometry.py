"""What nnU-Net's residual encoder takes from a configuration of the plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_FEATURES = 320
_LAYERS = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "dropout_op": None,
    "nonlin": "torch.nn.LeakyReLU",
}
RESIDUAL_ENCODER = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def from_patch(patch_size: list[int], pool_op_kernel_sizes: list[list[int]]) -> dict[str, Any]:
    """nnU-Net's strides."""
    return {"strides": [list(stride) for stride in pool_op_kernel_sizes]}


def residual_encoder(strides: Sequence[Sequence[int]], features: int, blocks: Sequence[int]) -> dict[str, Any]:
    """Arguments of nnU-Net's residual encoder U-Net.

    Args:
        strides: per stage and axis, the first of them 1.
        features: of the first stage; each further one has twice as many, up to nnU-Net's most.
        blocks: per stage, the last for all further ones.
    """
    stages = len(strides)
    return {
        "n_stages": stages,
        "features_per_stage": [min(features * 2**stage, MOST_FEATURES) for stage in range(stages)],
        "kernel_sizes": _kernels(strides),
        "strides": [list(stride) for stride in strides],
        "n_blocks_per_stage": [blocks[min(stage, len(blocks) - 1)] for stage in range(stages)],
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
        **_LAYERS,
    }


def _kernels(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """As nnU-Net: 3 on an axis from the stage before it is first pooled on, 1 as long as its voxels are too long."""
    kernels, wide = [], [1] * len(strides[0])
    for following in strides[1:]:
        wide = [3 if stride > 1 else size for size, stride in zip(wide, following, strict=True)]
        kernels.append(wide)
    return [*kernels, [3] * len(strides[0])]
