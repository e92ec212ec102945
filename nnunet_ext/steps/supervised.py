"""nnU-Net's own step: segment, compare every output with its target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """Images (batch, channels, *patch) and nnU-Net's target; with deep supervision one target per output."""

    image: Tensor
    target: Tensor | list[Tensor]


def step(network: nn.Module, batch: Batch, loss: Callable[[Any, Any], Tensor]) -> Tensor:
    """The loss of all outputs."""
    return loss(network(batch.image), batch.target)


def example(network: Any, image: Tensor, outputs: int) -> Batch:
    """See `nnunet_ext.steps`."""
    patch = image.shape[2:]

    def target(grid: list[int]) -> Tensor:
        return image.new_zeros(len(image), 1, *grid, dtype=torch.int16)

    if not getattr(network, "deep_supervision", False):
        return Batch(image, target(list(patch)))
    scales = network.deep_supervision_scales
    return Batch(image, [target([round(n * s) for n, s in zip(patch, scale, strict=True)]) for scale in scales])
