"""Losses that nnU-Net lacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def binary_dice_ce(logits: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
    """Dice of squared probabilities plus binary cross-entropy, the loss of SAM-Med3D's code (MONAI's `DiceCELoss`).

        Dice loss = 1 - (2 sum p t + 1e-5) / (sum p^2 + sum t^2 + 1e-5) per sample, then the mean

    Args:
        logits: (batch, 1, *grid).
        target: same shape, 0 or 1, floating point.
        counted: same shape, 1 where a voxel counts; samples without such voxels count neither way. None: all.

    Returns:
        A scalar; 0, with a gradient of 0, when nothing counts.
    """
    logits = logits.float()
    weight = torch.ones_like(logits) if counted is None else counted.to(logits.dtype)
    probability = logits.sigmoid()

    def over_grid(x: Tensor) -> Tensor:
        return (x * weight).flatten(1).sum(1)

    overlap = over_grid(probability * target)
    dice = 1 - (2 * overlap + 1e-5) / (over_grid(probability.square()) + over_grid(target.square()) + 1e-5)
    entropy = over_grid(F.binary_cross_entropy_with_logits(logits, target, reduction="none"))
    voxels = weight.flatten(1).sum(1)
    used = (voxels > 0).to(logits.dtype)
    return (used * (dice + entropy / voxels.clamp(min=1))).sum() / used.sum().clamp(min=1)


def noise_error(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error over the voxels that count, the L_n of MedSegDiff-V2.

    Args:
        prediction, target: (batch, channels, *grid).
        counted: (batch, 1, *grid), 1 where a voxel counts.

    Returns:
        A scalar; 0, with a gradient of 0, when nothing counts.
    """
    error = (prediction.float() - target).square().mean(1, keepdim=True)
    return (error * counted).sum() / counted.sum().clamp(min=1)


def over_chosen(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
    """`loss` of the chosen samples alone: the [t mod alpha == 0] of MedSegDiff-V2's anchor loss.

    Args:
        loss: of logits and target of some samples.
        logits: (batch, channels, *grid).
        target: (batch, ...).
        chosen: (batch,) bool.

    Returns:
        A scalar, as it is over the whole batch: the loss times the chosen share of the batch. When none is
        chosen it is 0, with a gradient of 0 for every parameter, which distributed training needs.
    """
    if not chosen.any():
        return (logits * 0).sum()
    return loss(logits[chosen], target[chosen]) * chosen.float().mean()


def episode_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy plus soft Dice, each query on its own: (B, 1, s, s) and soft labels -> scalar."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels)
    probability = logits.sigmoid()
    overlap, total = (probability * labels).sum((1, 2, 3)), (probability + labels).sum((1, 2, 3))
    return cross_entropy + (1 - (2 * overlap + 1) / (total + 1)).mean()
