"""Label maps that look like samples of one image: smooth structures with borders that differ from sample to sample."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def sampled_label_maps(
    shape: tuple[int, ...], samples: int, labels: int, *, noise: float = 0.4, seed: int = 0
) -> np.ndarray:
    """(samples, *shape) uint8 with the labels 0 to labels - 1; `noise` decides how much the samples differ."""
    rng = np.random.default_rng(seed)

    def smooth(sigma: float) -> np.ndarray:
        field = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), sigma) for _ in range(labels)])
        return field / field.std()

    shared = smooth(2.5)
    shared[0] += 0.7  # more background than anything else
    return np.stack([(shared + noise * smooth(1.0)).argmax(0) for _ in range(samples)]).astype(np.uint8)
