"""MedSegDiff-V2's step: a noised mask for the diffusion model, and the condition model's own segmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.architectures.medsegdiff.sampled import TrainingOutput
from nnunet_ext.losses import noise_error, over_chosen

# The anchor is scored where t is a multiple of this (the paper's alpha).
ALPHA = 5

Loss = Callable[[Any, Any], Tensor]


class Batch(NamedTuple):
    """One step's data.

    Attributes:
        image: (batch, channels, *patch).
        target: nnU-Net's.
        x0: the mask to be noised, (batch, outputs, *patch) in [-1, 1], 0 where nobody knows.
        counted: (batch, 1, *patch), 1 where a voxel counts.
        recycle: whether the noised mask is made from the model's own first guess.
    """

    image: Tensor
    target: Tensor
    x0: Tensor
    counted: Tensor
    recycle: bool = False


def step(network: nn.Module, batch: Batch, loss: Loss) -> Tensor:
    """nnU-Net's loss of the predicted mask (of predicted noise or v, the squared error) and of the anchor."""
    output = network(batch.image, batch.x0, batch.recycle)
    return _diffusion_loss(output, batch, loss) + loss(output.anchor, batch.target)


def published_step(network: nn.Module, batch: Batch, loss: Loss, anchor_loss: Loss) -> Tensor:
    """The paper's L_n + [t mod ALPHA == 0] (Dice + 10 cross-entropy), the brackets being `anchor_loss`."""
    output = network(batch.image, batch.x0, batch.recycle)
    anchor = over_chosen(anchor_loss, output.anchor, batch.target, output.t % ALPHA == 0)
    return _diffusion_loss(output, batch, loss) + anchor


def _diffusion_loss(output: TrainingOutput, batch: Batch, loss: Loss) -> Tensor:
    if output.predicted == "x0":
        return loss(output.prediction, batch.target)
    return noise_error(output.prediction, output.target, batch.counted)


def example(network: Any, image: Tensor, outputs: int) -> Batch:
    """See `nnunet_ext.steps`."""
    grid = image.shape[2:]
    target = image.new_zeros(len(image), 1, *grid, dtype=torch.int16)
    return Batch(image, target, image.new_zeros(len(image), outputs, *grid), image.new_ones(len(image), 1, *grid))


def diffused_mask(target: Tensor, channels: int, has_regions: bool, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """The mask that is noised, and which voxels count.

    Args:
        target: nnU-Net's: label map (batch, 1, *patch), or regions (batch, n, *patch) with, where there is an ignore
            label, its voxels as one more channel.
        channels: labels with the background, or regions.
        has_regions, ignore_label: of the data set.

    Returns:
        x0, (batch, channels, *patch): 1 in a class, -1 outside, 0 in all where the label is to be ignored; and
        (batch, 1, *patch), 1 where a voxel counts.
    """
    if has_regions:
        known, mask = target[:, channels:] < 0.5, target[:, :channels].float()
        counted = known.float() if ignore_label is not None else torch.ones_like(mask[:, :1])
    else:
        labels = target[:, 0].long()
        ignored = torch.zeros_like(labels, dtype=torch.bool) if ignore_label is None else labels == ignore_label
        mask = F.one_hot(labels.masked_fill(ignored, 0), channels).movedim(-1, 1).float()
        counted = (~ignored)[:, None].float()
    return (2 * mask - 1) * counted, counted
