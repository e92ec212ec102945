"""UniverSeg's step: episodes of one support size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.support.episodes import Batch

# The largest support set of an episode, unless NNUNET_EXT_SUPPORT_SIZE asks for another.
SUPPORT_SIZE = 16


def step(network: nn.Module, batch: Batch, loss: Callable[[Any, Any], Tensor]) -> Tensor:
    """The loss of the queries, in single precision."""
    logits = network(batch.target, batch.support_images, batch.support_labels)
    return loss(logits.float(), batch.target_label)


def example(network: Any, image: Tensor, outputs: int) -> Batch:
    """See `nnunet_ext.steps`. The episodes are resized slices, so only the batch of `image` counts."""
    grid = (1, network.image_size, network.image_size)
    query = image.new_zeros(len(image), *grid)
    supports = image.new_zeros(len(image), SUPPORT_SIZE, *grid)
    return Batch(query, torch.zeros_like(query), supports, torch.zeros_like(supports), (0,) * len(image), ())
