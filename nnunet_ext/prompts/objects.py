"""Which object a sample of training is about."""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import numpy as np

# A connected component of fewer voxels is noise of the reference.
LEAST_VOXELS = 8


def choose_object(
    labels: np.ndarray,
    targets: Sequence[Sequence[int]],
    random: np.random.Generator,
    *,
    component: bool = False,
    empty: float = 0.0,
) -> np.ndarray:
    """One of the labels or regions in a patch, any of them with equal chance; or nothing.

    Args:
        labels: (z, y, x) label map.
        targets: label values of each.
        random: source of randomness.
        component: only one connected component of it, any of them with equal chance.
        empty: how often nothing, an object that is not there.

    Returns:
        bool (z, y, x), empty also where there is none of the targets.
    """
    values = np.flatnonzero(np.bincount(labels[labels > 0].ravel())) if labels.max() > 0 else ()
    present = [target for target in targets if any(value in values for value in target)]
    if not present or random.random() < empty:
        return np.zeros(labels.shape, dtype=bool)
    target = present[random.integers(len(present))]
    thing = labels == target[0] if len(target) == 1 else np.isin(labels, target)
    if not component:
        return thing
    components = cc3d.connected_components(thing, connectivity=26)
    sizes = np.bincount(components.ravel())
    numbers = np.flatnonzero(sizes >= min(LEAST_VOXELS, sizes[1:].max()))
    numbers = numbers[numbers > 0]
    return components == numbers[random.integers(len(numbers))]
