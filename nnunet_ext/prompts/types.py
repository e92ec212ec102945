"""What a prompt is: on a tensor, and in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

POSITIVE, NEGATIVE, NOT_A_POINT = 1, 0, -1


@dataclass(frozen=True)
class Clicks:
    """One click per sample of a batch.

    Attributes:
        index: (batch, 3) int64, voxel in the order of the array's axes.
        positive: (batch,) bool; whether the voxel belongs to the object.
        found: (batch,) bool; False where there was no error left to click on, and index and positive mean nothing.
    """

    index: Tensor
    positive: Tensor
    found: Tensor


@dataclass(frozen=True)
class Points:
    """All clicks of a batch so far, in order.

    Attributes:
        index: (batch, n, 3), voxels in the order of the array's axes.
        labels: (batch, n), `POSITIVE`, `NEGATIVE` or `NOT_A_POINT`.
    """

    index: Tensor
    labels: Tensor

    @classmethod
    def none(cls, batch: int, device: torch.device | None = None) -> Points:
        """No clicks yet."""
        labels = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        return cls(labels.new_zeros(batch, 0, 3), labels)

    def add(self, clicks: Clicks) -> Points:
        """With one more click per sample; a sample that needs none repeats its last, or gets one that is no point."""
        labels = clicks.positive.to(self.labels.dtype)
        if self.labels.shape[1]:
            index = torch.where(clicks.found[:, None], clicks.index, self.index[:, -1])
            labels = torch.where(clicks.found, labels, self.labels[:, -1])
        else:
            index = clicks.index
            labels = torch.where(clicks.found, labels, NOT_A_POINT)
        return Points(torch.cat([self.index, index[:, None]], 1), torch.cat([self.labels, labels[:, None]], 1))

    def newest(self) -> Points:
        """The last click of each sample alone."""
        return Points(self.index[:, -1:], self.labels[:, -1:])


@dataclass(frozen=True)
class PointPrompt:
    """A click in a file.

    Attributes:
        xyz: position, x first, in the space of its `CasePrompts`.
        positive: whether it says "belongs to the object".
        where: which point of the file this is, for messages, such as "object 1, point 2".
    """

    xyz: tuple[float, float, float]
    positive: bool
    where: str


@dataclass(frozen=True)
class ObjectPrompts:
    """All prompts of one object.

    Attributes:
        label: its value in the label map; None where a file gave a name only.
        name: what the file calls it.
        points: in the order in which they were clicked.
        mask: label map to start from, or None.
    """

    label: int | None
    name: str | None
    points: tuple[PointPrompt, ...]
    mask: Path | None = None


@dataclass(frozen=True)
class CasePrompts:
    """The content of a prompt file.

    Attributes:
        source: the file.
        space: "LPS" or "RAS" (patient coordinates in mm), or "voxel" (indices of the stored image, x first).
        objects: in the order of the file.
    """

    source: Path
    space: str
    objects: tuple[ObjectPrompts, ...]
