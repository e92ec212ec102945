"""Batches of which some patches show the image from farther away, as AutoZoom does when an object is larger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nnunet_ext.augmentation.batches import Batches
from nnunet_ext.augmentation.patches import Case
from nnunet_ext.augmentation.randomness import Random
from nnunet_ext.augmentation.spatial import Window
from nnunet_ext.augmentation.transform import Sample

# The session's: each step is half as far again, four times the most.
FACTORS = (1.5, 2.25, 3.375, 4.0)
SHARE = 0.12


class BatchesFromAfar(Batches):
    """`Batches`, of whose samples `SHARE` are seen from a factor of `FACTORS` away; batch["zoom"] says which."""

    def _case(self, key: str, batch: dict[str, Any], random: Random) -> Case:
        factor = FACTORS[random.numpy.randint(len(FACTORS))] if random.uniform() < SHARE else 1.0
        batch.setdefault("zoom", []).append(factor)
        case = super()._case(key, batch, random)
        return case if factor == 1 else SmallerCase(case, factor)


class SmallerCase(Case):
    """A case on a grid of voxels `factor` times as long on every axis; its parts are read and resized when asked for.

    Images are interpolated linearly without a filter, as the session does; of labels the nearest is taken.
    """

    def __init__(self, case: Case, factor: float):
        self._case, self._factor = case, factor

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(max(1, round(n / self._factor)) for n in self._case.size)

    def places(self) -> dict:
        return {key: self._seen(voxels) for key, voxels in self._case.places().items()}

    def _seen(self, voxels: Any) -> Any:
        if not len(voxels):
            return voxels
        seen = voxels.copy()
        seen[:, 1:] = np.minimum(voxels[:, 1:] / self._factor, np.array(self.size) - 1)
        return seen

    def read(self, first: Sequence[int], window: Window) -> Sample:
        begin = [f + w for f, w in zip(first, window.origin, strict=True)]
        # Only what shows something of the case is read and resized.
        low = [min(max(b, 0), n) for b, n in zip(begin, self.size, strict=True)]
        high = [max(min(b + s, n), l) for b, s, n, l in zip(begin, window.shape, self.size, low, strict=True)]
        inside = (..., *(slice(l - b, h - b) for l, h, b in zip(low, high, begin, strict=True)))
        image = torch.zeros(self._case.image.shape[0], *window.shape)
        labels = torch.full((1, *window.shape), -1, dtype=torch.int16)
        shape = tuple(h - l for l, h in zip(low, high, strict=True))
        if all(shape):
            start, end = ([round(n * self._factor) for n in ends] for ends in (low, high))
            large = self._case.read(start, Window.whole([e - s for s, e in zip(start, end, strict=True)]))
            image[inside] = F.interpolate(large["image"][None], shape, mode="trilinear")[0]
            nearest = F.interpolate(large["segmentation"][None].float(), shape, mode="nearest-exact")[0]
            labels[inside] = nearest.to(torch.int16)
        return {"image": image, "segmentation": labels}
