"""One object of one image under early prompting: as the viewers' session segments it at full resolution.

A patch around the newest interaction is segmented and pasted; nothing else changes. AutoZoom, which the session adds
where an object outgrows the patch, is its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ext.clicks.prompted_object import OUTSIDE
from nnunet_ext.prompts.channels import POINT_RADIUS, PREVIOUS, Interaction, add, none, point


class ViewedObject:
    """Interactions with one object, and its segmentation so far.

    Args:
        network: in evaluation mode; (1, image channels + 7, *patch) -> logits (1, 2, *patch).
        image: (channels, z, y, x), normalised.
        patch_size: of the plans.
        start: bool (z, y, x), a segmentation to begin with, or None.
    """

    def __init__(self, network: nn.Module, image: Tensor, patch_size: Sequence[int], start: np.ndarray | None = None):
        self.network, self.image, self.patch_size = network, image, tuple(int(n) for n in patch_size)
        self._channels = none(image.shape[1:])
        self._logits = torch.full(image.shape[1:], OUTSIDE)
        if start is not None:
            self._channels[PREVIOUS] = torch.from_numpy(start).float()
            self._logits[torch.from_numpy(start)] = -OUTSIDE

    def click(self, index: Sequence[float], positive: bool = True) -> None:
        """Click on a voxel, and segment around it."""
        self.add(point([round(i) for i in index], positive))

    def add(self, interaction: Interaction) -> None:
        """Interact, and segment around it."""
        add(self._channels, interaction)
        self._segment(centre_of(interaction))

    def logits(self) -> Tensor:
        """The object's logits less those of the background, (z, y, x), on the CPU."""
        return self._logits

    @torch.inference_mode()
    def _segment(self, centre: Sequence[int]) -> None:
        device = next(self.network.parameters()).device
        seen, place = patch_around(torch.cat((self.image, self._channels)), centre, self.patch_size)
        logits = self.network(seen[None].to(device))[0].float().cpu()
        inside, target = place
        self._logits = self._logits.clone()
        self._logits[target] = (logits[1] - logits[0])[inside]
        channel = (PREVIOUS, *target)
        self._channels[channel] = (logits.argmax(0) == 1)[inside].float()


def centre_of(interaction: Interaction) -> tuple[int, ...]:
    """The voxel that a patch is centred at, by the session's rule of rounding."""
    if interaction.kind == "point":
        return tuple(c + POINT_RADIUS for c in interaction.corner)
    used = np.argwhere(interaction.values > 0)
    low, high = used.min(0) + interaction.corner, used.max(0) + 1 + interaction.corner
    return tuple(round((int(a) + int(b)) / 2) for a, b in zip(low, high, strict=True))


def patch_around(
    volume: Tensor, centre: Sequence[int], patch_size: Sequence[int]
) -> tuple[Tensor, tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """A patch (channels, *patch) of a volume (channels, z, y, x), 0 outside of it.

    Returns:
        The patch, and which of its voxels are which of the volume's.
    """
    inside, target = [], []
    for c, n, size in zip(centre, patch_size, volume.shape[1:], strict=True):
        first = int(c) - n // 2
        low, high = max(first, 0), min(first + n, size)
        high = max(low, high)
        target.append(slice(low, high))
        inside.append(slice(low - first, high - first))
    patch = volume.new_zeros(len(volume), *patch_size)
    here, there = (slice(None), *inside), (slice(None), *target)
    patch[here] = volume[there]
    return patch, (tuple(inside), tuple(target))
