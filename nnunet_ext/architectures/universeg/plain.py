"""UniverSeg step by step, as the paper's equations have it: what `universeg.py` is compared with in tests and timings.

Every target is paired with every support entry and the pair concatenated, in every block, the last included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.architectures.universeg.model import CrossBlock, UniverSeg


def plain_forward(model: UniverSeg, target: Tensor, support_images: Tensor, support_labels: Tensor) -> Tensor:
    """The logits of `model` (see `UniverSeg.forward`), computed without any rearrangement."""
    support = torch.cat((support_images, support_labels), dim=2)
    skips = []
    for level, block in enumerate(model.enc_blocks):
        if level:
            target = F.max_pool2d(target, 2)
            support = _each(lambda s: F.max_pool2d(s, 2), support)
        target, support = _block(block, target, support)  # type: ignore[arg-type]
        skips.append((target, support))
    skips.pop()
    for block in model.dec_blocks:
        target_skip, support_skip = skips.pop()
        target = torch.cat((_up(target), target_skip), dim=1)
        support = torch.cat((_each(_up, support), support_skip), dim=2)
        target, support = _block(block, target, support)  # type: ignore[arg-type]
    return model.out_conv.conv(target)  # type: ignore[union-attr, operator]


def _block(block: CrossBlock, target: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    repeated = target[:, None].expand(-1, support.shape[1], -1, -1, -1)
    z = _each(block.cross.cross_conv, torch.cat((repeated, support), dim=2))  # (B, S, cross_features, H, W)
    target = F.leaky_relu(block.target.vmapped.conv(z.mean(dim=1)), 0.01)  # type: ignore[union-attr, operator]
    support = F.leaky_relu(_each(block.support.vmapped.conv, z), 0.01)  # type: ignore[union-attr]
    return target, support


def _each(function, x: Tensor) -> Tensor:
    """Apply a function of (N, C, H, W) to every support entry of (B, S, C, H, W)."""
    return function(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
