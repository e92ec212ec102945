"""An image on the grid a promptable network sees, and the way back: nnU-Net's plans, or the official preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunet_ext.clicks.prompted_object import OUTSIDE, PreparedVolume
from nnunet_ext.images import Image

OFFICIAL_SPACING_MM = 1.5


class PreparedImage(Protocol):
    """An image, its volume on the network's grid, and both directions between the two."""

    volume: PreparedVolume

    def to_grid(self, index: Sequence[float]) -> tuple[float, ...]:
        """Grid index of an image voxel (z, y, x), moved onto the grid where cropping left it outside."""

    def mask_to_grid(self, mask: np.ndarray) -> np.ndarray:
        """A bool mask (z, y, x) on the grid."""

    def to_image(self, logits: Tensor) -> np.ndarray:
        """Logits (*grid) on the image's voxels, float32 (z, y, x)."""


class PlannedImage:
    """Prepared by nnU-Net's own preprocessing for a configuration of the plans."""

    def __init__(self, image: Image, plans: PlansManager, configuration: ConfigurationManager, dataset_json: dict):
        self._plans, self._configuration = plans, configuration
        self._properties: dict[str, Any] = {"spacing": list(image.spacing_mm)}
        data, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
            image.data, None, self._properties, plans, configuration, dataset_json
        )
        self._shape = self._properties["shape_after_cropping_and_before_resampling"]
        self.volume = PreparedVolume(
            torch.from_numpy(data), tuple(configuration.patch_size), tuple(configuration.spacing)
        )

    @property
    def _box(self) -> tuple[slice, ...]:
        return tuple(slice(low, high) for low, high in self._properties["bbox_used_for_cropping"])

    def to_grid(self, index: Sequence[float]) -> tuple[float, ...]:
        moved = [index[axis] - box.start for axis, box in zip(self._plans.transpose_forward, self._box, strict=True)]
        return _resized_index(moved, self._shape, self.volume.grid)

    def mask_to_grid(self, mask: np.ndarray) -> np.ndarray:
        return _resize(torch.from_numpy(mask.transpose(self._plans.transpose_forward)[self._box].copy()).float(),
                       self.volume.grid, "nearest-exact").numpy() > 0.5  # fmt: skip

    def to_image(self, logits: Tensor) -> np.ndarray:
        spacing = [self._properties["spacing"][axis] for axis in self._plans.transpose_forward]
        resampled = self._configuration.resampling_fn_probabilities(
            logits.numpy()[None], self._shape, self._configuration.spacing, spacing
        )
        out: np.ndarray = np.full(self._properties["shape_before_cropping"], OUTSIDE, dtype=np.float32)
        out[self._box] = np.asarray(resampled)[0]
        return out.transpose(self._plans.transpose_backward)


class OfficialImage:
    """Prepared as the published weights were trained: RAS+ axes (x, y, z), 1.5 mm, windows of zero mean, unit variance.

    Mean and variance are those of the voxels above 0 in the window, as in the official code.
    """

    def __init__(self, image: Image, window: int):
        self._orientation = nibabel.orientations.io_orientation(image.affine).astype(int)
        data = torch.from_numpy(self._turn(image.data[0]).copy())
        self._size = tuple(data.shape)
        order = np.argsort(self._orientation[:, 0])
        spacing = np.asarray(image.spacing_mm[::-1])[order]
        grid = tuple(max(1, round(n * s / OFFICIAL_SPACING_MM)) for n, s in zip(self._size, spacing, strict=True))
        self.volume = PreparedVolume(
            _resize(data, grid, "trilinear")[None], (window,) * 3, (OFFICIAL_SPACING_MM,) * 3, normalise_above_zero
        )

    def _turn(self, array: np.ndarray) -> np.ndarray:
        """(z, y, x) as stored to (x, y, z) of RAS+."""
        return nibabel.orientations.apply_orientation(array.T, self._orientation)

    def to_grid(self, index: Sequence[float]) -> tuple[float, ...]:
        turned = [0.0, 0.0, 0.0]
        for position, (axis, flip) in zip(tuple(index)[::-1], self._orientation, strict=True):
            turned[axis] = position if flip > 0 else self._size[axis] - 1 - position
        return _resized_index(turned, self._size, self.volume.grid)

    def mask_to_grid(self, mask: np.ndarray) -> np.ndarray:
        turned = torch.from_numpy(self._turn(mask.astype(np.float32)).copy())
        return _resize(turned, self.volume.grid, "nearest-exact").numpy() > 0.5

    def to_image(self, logits: Tensor) -> np.ndarray:
        resized = _resize(logits, self._size, "trilinear").numpy()
        straight = nibabel.orientations.axcodes2ornt("RAS")
        back = nibabel.orientations.ornt_transform(straight, self._orientation)
        return nibabel.orientations.apply_orientation(resized, back).T


def normalise_above_zero(window: Tensor) -> Tensor:
    """Subtract the mean of all values above 0 and divide by their standard deviation; unchanged if there are none."""
    above = window[window > 0]
    return (window - above.mean()) / above.std().clamp(min=1e-6) if above.numel() > 1 else window


def _resize(volume: Tensor, shape: Sequence[int], mode: str) -> Tensor:
    corners = {} if mode == "nearest-exact" else {"align_corners": False}
    return F.interpolate(volume[None, None].float(), tuple(shape), mode=mode, **corners)[0, 0]


def _resized_index(index: Sequence[float], before: Sequence[int], after: Sequence[int]) -> tuple[float, ...]:
    moved = [(i + 0.5) * m / n - 0.5 for i, n, m in zip(index, before, after, strict=True)]
    return tuple(float(np.clip(i, 0, m - 1)) for i, m in zip(moved, after, strict=True))
