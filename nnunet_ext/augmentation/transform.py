"""What a transform is here: its draws and its computation apart, and the random numbers given to it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

from nnunet_ext.augmentation.randomness import Random

# image (channels, ...) in float32, segmentation (maps, ...) in integers, or a list of them; a user's own beside.
Sample = dict[str, Any]


class Transform:
    """Does what one transform of batchgeneratorsv2 does.

    A sample's arrays are its own: they may be changed in place, as batchgeneratorsv2 does.

    Args:
        reference: the transform with its settings.
    """

    def __init__(self, reference: Any):
        self.reference = reference

    @staticmethod
    def why_not(reference: Any) -> str | None:
        """None if this class does what the reference does, else the reason."""
        return None

    @property
    def name(self) -> str:
        """The reference's class."""
        return type(self.reference).__name__

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        """The parameters that `reference.get_parameters` draws, from the same distribution and in the same order.

        Args:
            shape: of the image, channels first.
        """
        return {}

    def apply(self, sample: Sample, **parameters: Any) -> Sample:
        """What `reference.apply` does with these parameters."""
        raise NotImplementedError

    def __call__(self, sample: Sample, random: Random) -> Sample:
        return self.apply(sample, **self.draw(sample["image"].shape, random))


class Unchanged(Transform):
    """A transform this package does not know, used as it is; it draws from the process's generators.

    Each thread has a copy, as each of nnU-Net's processes has: a transform may keep a state.
    """

    def __init__(self, reference: Any):
        super().__init__(reference)
        self._of_thread = threading.local()

    def __call__(self, sample: Sample, random: Random) -> Sample:
        if not hasattr(self._of_thread, "copy"):
            self._of_thread.copy = copy.deepcopy(self.reference)
        return self._of_thread.copy(**sample)
