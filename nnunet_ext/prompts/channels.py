"""Interactions as channels of an image: what nnInteractive's session shows to a network besides the image.

Seven channels follow the image's: the segmentation so far, then a positive and a negative one each for boxes and
lassos, for points and for scribbles. The newest interaction is 1, each older one `DECAY` times the next; where two
overlap, the larger counts. All is in voxels, whatever their size in mm.

Format: Isensee et al., nnInteractive, arXiv:2503.08373, as nninteractive 2.6 (Apache-2.0) computes it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

PREVIOUS = 0
# Kind of interaction -> its channels, positive and negative.
CHANNELS_OF = {"box": (1, 2), "lasso": (1, 2), "point": (3, 4), "scribble": (5, 6)}
CHANNELS = 7
POINT_RADIUS = 4  # voxels
SCRIBBLE_THICKNESS = 2  # voxels
DECAY = 0.98
# Thin as they are, these would vanish when the surroundings are looked at from farther away.
_THIN = sorted((*CHANNELS_OF["point"], *CHANNELS_OF["scribble"]))


@dataclass(frozen=True)
class Interaction:
    """One interaction, as it is drawn: values in a box of voxels.

    Attributes:
        kind: a key of `CHANNELS_OF`.
        positive: whether it says "belongs to the object".
        corner: lowest voxel of the box, in the order of the array's axes; it may lie outside of the image.
        values: float32 or bool, from 0 to 1, the shape of the box.
    """

    kind: str
    positive: bool
    corner: tuple[int, ...]
    values: np.ndarray

    @property
    def channel(self) -> int:
        """The channel it is drawn in."""
        return CHANNELS_OF[self.kind][0 if self.positive else 1]

    @property
    def box(self) -> tuple[tuple[int, int], ...]:
        """First and past-the-last voxel per axis."""
        return tuple((low, low + n) for low, n in zip(self.corner, self.values.shape, strict=True))


def point(index: Sequence[int], positive: bool = True, radius: int = POINT_RADIUS) -> Interaction:
    """A click on a voxel: a ball that falls off towards its border."""
    return Interaction("point", positive, tuple(int(i) - radius for i in index), ball(radius))


def box(bounds: Sequence[tuple[int, int]], positive: bool = True) -> Interaction:
    """A box of first and past-the-last voxel per axis; of a 2D box, one axis has one voxel."""
    shape = [int(high) - int(low) for low, high in bounds]
    return Interaction("box", positive, tuple(int(low) for low, _ in bounds), np.ones(shape, dtype=bool))


def scribble(mask: np.ndarray, positive: bool = True, corner: Sequence[int] = (0, 0, 0)) -> Interaction:
    """A line drawn in one slice; `mask` is bool, its first voxel at `corner`."""
    return Interaction("scribble", positive, tuple(corner), mask > 0)


def lasso(mask: np.ndarray, positive: bool = True, corner: Sequence[int] = (0, 0, 0)) -> Interaction:
    """The inside of a closed line in one slice; `mask` is bool, its first voxel at `corner`."""
    return Interaction("lasso", positive, tuple(corner), mask > 0)


@functools.cache
def ball(radius: int) -> np.ndarray:
    """(2 radius + 1)^3 float32: the distance to the ball's outside, 1 at its centre."""
    squares: np.ndarray = np.arange(-radius, radius + 1) ** 2
    inside = squares[:, None, None] + squares[:, None] + squares <= radius**2
    depth = distance_transform_edt(inside)
    values = (depth / depth.max()).astype(np.float32)
    values.flags.writeable = False
    return values


def none(shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """The channels (7, *shape) before the first interaction."""
    return torch.zeros(CHANNELS, *shape, device=device, dtype=dtype)


def add(channels: Tensor, interaction: Interaction, decay: float = DECAY) -> None:
    """Draw one more interaction, in place; all before it fade.

    Args:
        channels: (7, *shape) of float32: many roundings to half precision would add up.
        interaction: what lies outside of the shape is left out.
        decay: of the older ones; 1 for none.
    """
    channels[PREVIOUS + 1 :] *= decay
    _draw(channels, interaction, 1.0)


def encode(
    interactions: Iterable[Interaction],
    shape: Sequence[int],
    previous: Tensor | np.ndarray | None = None,
    decay: float = DECAY,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """The channels (7, *shape) of interactions, the oldest first, in half precision as the session holds them.

    Args:
        interactions: at most as many as half precision tells apart, several hundreds.
        shape: voxels of the image.
        previous: the segmentation so far, of 0 and 1, or None for nothing.
        decay: of the older ones; 1 for none.
        dtype: of the result.
    """
    channels = none(shape)
    if previous is not None:
        channels[PREVIOUS] = torch.as_tensor(previous).float()
    drawn = list(interactions)
    for age, interaction in enumerate(reversed(drawn)):
        _draw(channels, interaction, decay**age)
    return channels.to(dtype)


def zoomed_out(image: Tensor, channels: Tensor, patch_size: Sequence[int], factor: float) -> tuple[Tensor, Tensor]:
    """Image (n, *scaled) and channels (7, *scaled), `factor` times a patch wide, on the grid of a patch, as AutoZoom.

    Returns:
        (n, *patch) and (7, *patch).
    """
    size = tuple(int(n) for n in patch_size)
    image = F.interpolate(image[None].float(), size, mode="trilinear")[0]
    reach = widened(factor)
    if reach > 0:
        channels = channels.clone()
        width = 2 * reach + 1
        channels[_THIN] = F.max_pool3d(channels[_THIN].float(), width, stride=1, padding=reach).to(channels.dtype)
    return image, F.interpolate(channels[None].float(), size, mode="area")[0].to(channels.dtype)


def widened(factor: float) -> int:
    """Voxels by which the session widens points and scribbles on all sides before it looks from `factor` times as far.

    Half of the nearest odd whole number to 2 factor - 1, by its rule of rounding.
    """
    number = 2 * factor - 1
    above, below = math.ceil(number), math.floor(number)
    return (above if above % 2 else below if below % 2 else round(number) + 1) // 2


def _draw(channels: Tensor, interaction: Interaction, strength: float) -> None:
    inside, drawn = [], []
    for (low, high), n in zip(interaction.box, channels.shape[1:], strict=True):
        first, last = max(low, 0), min(high, n)
        if first >= last:
            return
        inside.append(slice(first, last))
        drawn.append(slice(first - low, last - low))
    place = (interaction.channel, *inside)
    view = channels[place]
    values = torch.from_numpy(np.array(interaction.values[tuple(drawn)], dtype=np.float32))
    torch.maximum(view, (values * strength).to(view), out=view)
