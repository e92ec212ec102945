"""Augmentation of episodes (section 3.3 and table 4 of UniverSeg, arXiv:2304.06131).

In-task augmentation changes every entry of an episode on its own, so that no two look alike. Task augmentation changes
all entries in the same way, which makes another task of it: mirrored, inverted, its boundary instead of its area.

All functions take and return images and masks (N, 1, H, W) in [0, 1], entry 0 being the query, and draw from the
generator they are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True)
class Chances:
    """Probability of each augmentation.

    The defaults suit many data sets whose tasks shall carry over to unseen ones (table 4 with fewer inverted labels);
    `GENTLE` suits one data set whose own tasks are wanted.
    """

    mirror: float = 0.5
    invert_image: float = 0.5
    invert_label: float = 0.1
    boundary: float = 0.15
    dilate_or_erode: float = 0.3
    sobel_image: float = 0.1
    task_intensity: float = 0.5
    task_warp: float = 0.5
    entry_warp: float = 0.8
    entry_intensity: float = 0.25


GENTLE = Chances(
    mirror=0.2, invert_image=0.1, invert_label=0.0, boundary=0.0, dilate_or_erode=0.1, sobel_image=0.0,
    task_intensity=0.3, task_warp=0.3, entry_warp=0.7, entry_intensity=0.25,
)  # fmt: skip


def augment_entries(images: Tensor, masks: Tensor, chances: Chances, generator: Generator) -> tuple[Tensor, Tensor]:
    """In-task augmentation: affine and elastic deformation, contrast, blur and noise, drawn for every entry."""
    n = len(images)
    images, masks = warp(images, masks, n, chances.entry_warp, generator)
    for i in range(n):
        images[i : i + 1] = _intensities(images[i : i + 1], chances.entry_intensity, generator)
    return images, masks


def augment_task(images: Tensor, masks: Tensor, chances: Chances, generator: Generator) -> tuple[Tensor, Tensor]:
    """Task augmentation: the same change of all entries. A change that leaves no label in any support is not made."""
    for axis in (2, 3):
        if _happens(chances.mirror, generator):
            images, masks = images.flip(axis), masks.flip(axis)
    if _happens(chances.task_warp, generator):
        images, masks = warp(images, masks, 1, 1.0, generator)
    images = _intensities(images, chances.task_intensity, generator)
    if _happens(chances.sobel_image, generator):
        images = sobel(images)
        images = images / images.amax().clamp(min=1e-6)
    if _happens(chances.invert_image, generator):
        images = 1 - images
    changed = masks
    if _happens(chances.dilate_or_erode, generator):
        changed = dilate(masks) if _happens(0.5, generator) else erode(masks)
    if _happens(chances.boundary, generator):
        changed = boundary(changed)
    if _happens(chances.invert_label, generator):
        changed = 1 - changed
    return images, changed if changed[1:].sum() >= 1 else masks


def warp(
    images: Tensor, masks: Tensor, fields: int, chance: float, generator: Generator, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Rotate, scale, shift and deform, by one field for all entries (`fields` = 1) or by one for each.

    Args:
        chance: probability with which a field is not the identity.
        strength: 1 turns by up to 30 degrees, scales by 0.8 to 1.2 and shifts by up to a tenth of the side.
    """
    n, _, height, width = images.shape
    device = images.device

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) * 2 - 1).to(device)

    happens = (torch.rand(fields, generator=generator) < chance).float().to(device)
    scale = strength * happens
    angle = uniform(fields) * math.pi / 6 * scale
    zoom = 1 + uniform(fields, 2) * 0.2 * scale[:, None]
    shift = uniform(fields, 2) * 0.2 * scale[:, None]  # the side is 2 long
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos * zoom[:, 0], -sin * zoom[:, 1], shift[:, 0]], dim=1),
            torch.stack([sin * zoom[:, 0], cos * zoom[:, 1], shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [fields, 1, height, width], align_corners=False)
    # A smooth field: random shifts of a coarse grid of 5x5 points, interpolated by cubic polynomials.
    coarse = uniform(fields, 2, 5, 5) * 0.08 * scale.view(-1, 1, 1, 1)
    grid = grid + F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    both = torch.cat((images, masks), dim=1)
    both = F.grid_sample(both, grid.expand(n, -1, -1, -1), padding_mode="border", align_corners=False)
    return both[:, :1], both[:, 1:].clamp(0, 1)


def dilate(masks: Tensor) -> Tensor:
    """Masks (batch, channels, height, width) grown by one pixel, diagonals included."""
    return F.max_pool2d(masks, 3, stride=1, padding=1)


def erode(masks: Tensor) -> Tensor:
    """Masks (batch, channels, height, width) shrunk by one pixel, diagonals included."""
    return -F.max_pool2d(-masks, 3, stride=1, padding=1)


def boundary(masks: Tensor) -> Tensor:
    """The rim of masks (batch, channels, height, width), two pixels wide: where the Sobel gradient is not zero."""
    return dilate(masks) - erode(masks)


def sobel(images: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device) / 4
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    gradient = F.conv2d(padded, torch.stack((kernel, kernel.T))[:, None])
    return gradient.square().sum(dim=1, keepdim=True).sqrt()


def _intensities(images: Tensor, chance: float, generator: Generator) -> Tensor:
    """Contrast and brightness, gamma, blur, noise: each with this probability, the same for all images."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    if _happens(chance, generator):
        images = (images - 0.5) * uniform(0.6, 1.4) + 0.5 + uniform(-0.1, 0.1)
    if _happens(chance, generator):
        images = images.clamp(0, 1) ** uniform(0.7, 1.4)
    if _happens(chance, generator):
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        images = torch.lerp(images, F.avg_pool2d(padded, 3, stride=1), uniform(-0.8, 1.0))  # below 0 sharpens
    if _happens(chance, generator):
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        images = images + noise * uniform(0.0, 0.08)
    return images.clamp(0, 1)


def _happens(chance: float, generator: Generator) -> bool:
    return float(torch.rand((), generator=generator)) < chance
