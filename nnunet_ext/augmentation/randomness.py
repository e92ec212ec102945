"""Random numbers of one batch: the generators that batchgeneratorsv2 takes from the process, as an object.

batchgeneratorsv2 draws from numpy's and torch's global generators. Threads share these, so that which batch gets which
numbers would depend on timing. The same algorithms, seeded alike, give the same numbers here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
from torch import Tensor


class Random:
    """What `np.random` and `torch` are to a transform, with a state of its own.

    Args:
        numpy_seed, torch_seed: as `np.random.seed` and `torch.manual_seed` take them.
    """

    def __init__(self, numpy_seed: Any, torch_seed: int):
        self.numpy = np.random.RandomState(numpy_seed)
        self.torch = torch.Generator().manual_seed(torch_seed)

    @classmethod
    def of_batch(cls, seed: int, *numbers: int) -> Random:
        """Generators of one batch, independent of those of all others.

        Args:
            seed: of the run.
            numbers: what tells the batch from the others of the run, such as rank and number.
        """
        words = np.random.SeedSequence(seed, spawn_key=numbers).generate_state(6)
        return cls(words[:4], int(words[4]) << 32 | int(words[5]))

    def uniform(self) -> float:
        """A number in [0, 1) from numpy's generator."""
        return self.numpy.uniform()

    def rand(self, *size: int) -> Tensor:
        """Numbers in [0, 1) from torch's generator."""
        return torch.rand(*size, generator=self.torch)

    def scalar(self, wanted: Any) -> float:
        """batchgeneratorsv2's `sample_scalar`, for what `is_drawable` accepts."""
        if isinstance(wanted, BGContrast):
            low, high = wanted.contrast_range
            if self.numpy.random_sample() < 0.5 and low < 1:
                return self.numpy.uniform(low, 1)
            return self.numpy.uniform(max(low, 1), high)
        if isinstance(wanted, (int, float)):
            return wanted
        low, high = wanted
        return low if low == high else self.numpy.uniform(low, high)


def is_drawable(wanted: Any) -> bool:
    """Whether `Random.scalar` draws it; a function of a user's does not say where it draws from."""
    if type(wanted) is BGContrast:
        return not callable(wanted.contrast_range)
    return isinstance(wanted, (int, float)) or (isinstance(wanted, (tuple, list)) and len(wanted) == 2)
