"""SAM-Med3D's step: a simulated interaction with one object per sample, and every class without a click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_ext.architectures.sam_med3d.promptable import Interaction
from nnunet_ext.losses import binary_dice_ce


class Batch(NamedTuple):
    """One step's data.

    Attributes:
        image: (batch, channels, *patch).
        target: nnU-Net's.
        objects: (batch, 1, *patch) of 0 and 1, one object per sample.
        counted: same shape, 1 where a voxel counts, nowhere in a sample without an object.
        channel: (batch,) output channel of each object.
        interaction: how clicks are shown.
    """

    image: Tensor
    target: Tensor
    objects: Tensor
    counted: Tensor
    channel: Tensor
    interaction: Interaction


def step(network: nn.Module, batch: Batch, loss: Callable[[Any, Any], Tensor]) -> Tensor:
    """nnU-Net's loss of the automatic segmentation plus the mean over rounds of Dice and cross-entropy."""
    output = network(batch.image, batch.objects, batch.channel, batch.interaction)
    rounds = [binary_dice_ce(logits, batch.objects, batch.counted) for logits in output.rounds]
    return loss(output.automatic, batch.target) + torch.stack(rounds).mean()


def example(network: Any, image: Tensor, outputs: int) -> Batch:
    """See `nnunet_ext.steps`. All clicks so far in every round is the larger of the two ways to show them."""
    grid = (len(image), 1, *image.shape[2:])
    target, objects, counted = image.new_zeros(grid, dtype=torch.int16), image.new_zeros(grid), image.new_ones(grid)
    channel = image.new_zeros(len(image), dtype=torch.int64)
    return Batch(image, target, objects, counted, channel, Interaction(accumulate=True))


def choose_objects(target: Tensor, has_regions: bool, ignore_label: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one object per sample from the classes or regions in its patch.

    Args:
        target: nnU-Net's: label map (batch, 1, *patch), or regions (batch, n, *patch) with, where there is an ignore
            label, its voxels as one more channel.
        has_regions, ignore_label: of the data set.

    Returns:
        The objects (batch, 1, *patch) of 0 and 1; which voxels count (same shape), none in a sample without an object;
        and the output channel of each object (batch,).
    """
    objects = torch.zeros_like(target[:, :1], dtype=torch.float32)
    counted = torch.ones_like(objects)
    channel = torch.zeros(len(target), dtype=torch.int64, device=target.device)
    for i, sample in enumerate(target):
        if has_regions:
            regions = sample[: len(sample) - (ignore_label is not None)] > 0
            present = regions.flatten(1).any(1).nonzero()[:, 0]
            ignored = sample[-1] > 0 if ignore_label is not None else None
        else:
            present = sample.unique()
            present = present[(present > 0) & (present != (-1 if ignore_label is None else ignore_label))]
            ignored = sample[0] == ignore_label if ignore_label is not None else None
        if not len(present):
            counted[i] = 0
            continue
        chosen = present[int(torch.randint(len(present), ()))]
        channel[i] = chosen
        objects[i, 0] = (regions[chosen] if has_regions else sample[0] == chosen).float()
        if ignored is not None:
            counted[i, 0] = (~ignored).float()
    return objects, counted, channel
