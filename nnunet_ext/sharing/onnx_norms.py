"""Normalisation over whole windows, written into ONNX so that it is as exact as torch's.

onnxruntime's InstanceNormalization adds up a channel's 600 000 voxels one after the other in single precision, which is
off by 3e-5 of a standard deviation; over a U-Net's layers that reached 7e-3 in logits. Here means are taken axis by
axis: sums stay short, and the error is torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators of torch -> what the exporter writes for them, for `torch.onnx.export(custom_translation_table=)`."""
    from onnxscript import opset18

    op: Any = opset18

    def mean(x: Any, axes: int) -> Any:
        for axis in range(1, axes + 1):
            x = op.ReduceMean(x, op.Constant(value_ints=[-axis]), keepdims=1)
        return x

    def standardised(x: Any, axes: int, eps: float) -> Any:
        """Zero mean and unit variance over the last axes."""
        centred = op.Sub(x, mean(x, axes))
        variance = mean(op.Mul(centred, centred), axes)
        return op.Div(centred, op.Sqrt(op.Add(variance, op.Constant(value_float=eps))))

    def scaled(x: Any, weight: Any, bias: Any, axes: int) -> Any:
        """Per channel, which is the axis before the last ones."""
        per_channel = op.Constant(value_ints=[-1, *[1] * axes])
        x = x if weight is None else op.Mul(x, op.Reshape(weight, per_channel))
        return x if bias is None else op.Add(x, op.Reshape(bias, per_channel))

    def instance_norm(
        x: Any,
        weight: Any = None,
        bias: Any = None,
        running_mean: Any = None,
        running_var: Any = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        cudnn_enabled: bool = False,
    ) -> Any:
        if not use_input_stats:
            raise NotImplementedError("instance normalisation by stored statistics")
        axes = len(x.shape) - 2
        return scaled(standardised(x, axes, eps), weight, bias, axes)

    def group_norm(
        x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = False
    ) -> Any:
        axes = len(x.shape) - 2
        sizes = [int(n) for n in x.shape]
        grouped = op.Reshape(x, op.Constant(value_ints=[sizes[0], num_groups, sizes[1] // num_groups, *sizes[2:]]))
        whole = op.Reshape(standardised(grouped, axes + 1, eps), op.Constant(value_ints=sizes))
        return scaled(whole, weight, bias, axes)

    return {
        torch.ops.aten.instance_norm.default: instance_norm,
        torch.ops.aten.group_norm.default: group_norm,
    }
