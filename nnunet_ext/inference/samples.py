"""What the engine asks of a network that draws samples: samples of a whole volume, and noise that belongs to places."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nnunet_ext.diffusion.sampling import Place, Sampling


@runtime_checkable
class DrawsSamples(Protocol):
    """A network whose logits are those of drawn samples, such as a diffusion model's.

    Attributes:
        sampling: how many samples, and how they are drawn.
        first_sample: number of the first sample to draw, which decides its noise.
        place: where the next windows lie, so that the noise of a voxel is the same in all windows that hold it.
    """

    sampling: Sampling
    first_sample: int
    place: Place | None

    def __call__(self, x: Tensor) -> Tensor:
        """Windows (batch, channels, *patch) -> logits (batch, classes, *patch) of the fused samples."""
        ...

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of classes or regions, (batch, classes, *grid)."""
        ...

    def fuse(self, probabilities: Tensor) -> Tensor:
        """Logits (1, classes, *grid) of samples (samples, classes, *grid)."""
        ...


def draw_apart(network: DrawsSamples, predict: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Stitch every sample of a volume for itself, and fuse them after that.

    Args:
        network: as it is used by `predict`.
        predict: logits (classes, *grid) of the volume.

    Returns:
        Logits of the fused samples, and of each of them.
    """
    wanted = network.sampling
    try:
        network.sampling = replace(wanted, samples=1)
        samples = []
        for network.first_sample in range(wanted.samples):
            samples.append(predict())
    finally:
        network.sampling, network.first_sample = wanted, 0
    probabilities = torch.stack([network.probabilities(logits[None])[0] for logits in samples])
    return network.fuse(probabilities)[0], samples


def mean_over_mirrors(
    network: DrawsSamples, x: Tensor, origin: tuple[int, ...], volume: tuple[int, ...], mirror_axes: Sequence[int]
) -> Tensor:
    """nnU-Net's mean over mirrored windows, with the volume's own noise at every voxel.

    Args:
        network: draws the samples.
        x: one window, (1, channels, *patch).
        origin: of the window in the volume, per axis (for slices, of the volume they are cut from).
        volume: voxels per axis.
        mirror_axes: axes of the patch that may be mirrored.

    Returns:
        Logits (1, classes, *patch).
    """
    total, count = None, 0
    try:
        for mirrored in _subsets(mirror_axes):
            network.place = Place(origin, volume, mirrored)
            flipped = [axis + 2 for axis in mirrored]
            logits = network(x.flip(flipped)).flip(flipped)
            total = logits if total is None else total + logits
            count += 1
    finally:
        network.place = None
    assert total is not None
    return total / count


def _subsets(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for number in range(len(axes) + 1):
        yield from itertools.combinations(axes, number)
