"""Rotation, scaling and cropping: batchgeneratorsv2's `SpatialTransform` in one pass over image and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.spatial import (
    SpatialTransform,
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from torch import Tensor

from nnunet_ext.augmentation.kernels import once
from nnunet_ext.augmentation.randomness import Random, is_drawable
from nnunet_ext.augmentation.transform import Sample, Transform
from nnunet_ext.ops.compiled import array, compile_kernel, empty

_PADDED = ("zeros", "constant")
_NARROW = (torch.uint8, torch.int8, torch.int16)


@dataclass(frozen=True)
class Window:
    """The part of an input that a patch looks at, the rest of which need not be read.

    Attributes:
        size: of the input.
        origin, shape: of the part in it.
    """

    size: tuple[int, ...]
    origin: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, size: Sequence[int]) -> Window:
        return cls(tuple(size), (0,) * len(size), tuple(size))


class Spatial(Transform):
    """A `SpatialTransform` without elastic deformation.

    Args:
        reference: what it does; see `why_not`.
        planes: slices of a volume are sampled alike, one by one, as between nnU-Net's Convert3DTo2DTransform and
            Convert2DTo3DTransform.
    """

    def __init__(self, reference: SpatialTransform, planes: bool = False):
        super().__init__(reference)
        self.planes = planes
        self.patch_size = tuple(int(n) for n in reference.patch_size)
        self.padding = int(reference.padding_value_seg) if reference.border_mode_seg == "constant" else 0
        # The same vectors, from the same function, as batchgeneratorsv2's grid.
        self._axes = [torch.linspace((1 - n) / 2, (n - 1) / 2, n).numpy() for n in self.patch_size]

    @staticmethod
    def why_not(reference: SpatialTransform) -> str | None:
        """None if this class computes it, else the reason."""
        r = reference
        if r.p_elastic_deform > 0:
            return "elastic deformation"
        if r.mode_image != "bilinear" or r.mode_seg != "bilinear" or r.seg_tiebreak != "nearest" or r.align_corners:
            return "interpolation other than nnU-Net's"
        if r.padding_mode_image != "zeros" or r.border_mode_seg not in _PADDED:
            return "padding other than nnU-Net's"
        if not is_drawable(r.rotation) or not is_drawable(r.scaling):
            return "angles or scales drawn by a function"
        return None

    def draw(self, shape: Sequence[int], random: Random) -> dict[str, Any]:
        """Parameters as `SpatialTransform.get_parameters` draws them; no grid is made.

        Args:
            shape: (channels, *size) of the image.

        Returns:
            affine: (axes, axes) or None for a crop; center_location_in_pixels.
        """
        r = self.reference
        size = tuple(shape[-len(self.patch_size) :])
        dim = len(size)
        rotates = random.uniform() < r.p_rotation
        scales_ = random.uniform() < r.p_scaling
        random.uniform()  # whether to deform: never
        angles: list[float] = [0] * dim
        scales: list[float] = [1] * dim
        if rotates:
            angles = [random.scalar(r.rotation) for _ in range(dim)]
            if r.p_rot_per_axis < 1:
                angles = [0 if random.uniform() > r.p_rot_per_axis else angle for angle in angles]
        if scales_:
            if random.uniform() <= r.p_synchronize_scaling_across_axes:
                scales = [random.scalar(r.scaling)] * dim
            else:
                scales = [random.scalar(r.scaling) for _ in range(dim)]
        affine = None
        if rotates or scales_:
            affine = (
                create_affine_matrix_3d(angles, scales) if dim == 3 else create_affine_matrix_2d(angles[-1], scales)
            )
        center = []
        for extent, margin in zip(size, r.patch_center_dist_from_border, strict=True):
            if not r.random_crop or extent - margin < margin:
                center.append(extent / 2)
            else:
                center.append(random.numpy.uniform(margin, extent - margin))
        return {"affine": affine, "center_location_in_pixels": center}

    def window(self, size: Sequence[int], affine: np.ndarray | None, center: Sequence[float]) -> Window:
        """What of an input of this size these parameters look at; it may be empty.

        Args:
            size: of the volume, or of the planes.
        """
        if affine is None:
            first = [math.floor(c) - n // 2 for c, n in zip(center, self.patch_size, strict=True)]
            last = [f + n for f, n in zip(first, self.patch_size, strict=True)]
        else:
            _, places = self._corners(size, affine, center)
            # One voxel more than needed: the kernel's places are rounded to float32.
            first = [math.floor(p) - 1 for p in places.min(axis=0)]
            last = [math.floor(p) + 3 for p in places.max(axis=0)]
        first = [min(max(0, f), n) for f, n in zip(first, size, strict=True)]
        last = [max(f, min(n, end)) for f, n, end in zip(first, size, last, strict=True)]
        return Window(tuple(size), tuple(first), tuple(end - f for f, end in zip(first, last, strict=True)))

    def apply(  # type: ignore[override]
        self,
        sample: Sample,
        affine: np.ndarray | None,
        center_location_in_pixels: Sequence[float],
        window: Window | None = None,
        **_: Any,
    ) -> Sample:
        """Image and segmentation of the patch.

        Args:
            sample: image (channels, ...) in float32, segmentation (maps, ...) in integers.
            affine, center_location_in_pixels: see `draw`.
            window: the part of the input that the sample holds; None: all.
        """
        dim = len(self.patch_size)
        image, dtype = sample["image"], sample["segmentation"].dtype
        # nnU-Net's loader gives int16; a kernel for each type would take seconds to compile.
        labels = sample["segmentation"].to(torch.int16 if dtype in _NARROW else torch.int64)
        window = window or Window.whole(image.shape[-dim:])
        if affine is None:
            cropped = self._crop(image, window, center_location_in_pixels, 0)
            cropped_labels = self._crop(labels, window, center_location_in_pixels, self.padding)
            return {**sample, "image": cropped, "segmentation": cropped_labels.to(dtype)}
        lead = image.shape[1:2] if self.planes else (() if dim == 3 else (1,))
        image_out = empty((len(image), *lead, *self.patch_size), image)
        labels_out = empty((len(labels), *lead, *self.patch_size), labels)
        arrays = [tensor.reshape(len(tensor), *lead, *window.shape).contiguous().numpy() for tensor in (image, labels)]
        matrix, shift, half = self._float32(window.size, affine, center_location_in_pixels)
        grid, _places = self._corners(window.size, affine, center_location_in_pixels)
        # batchgeneratorsv2 asks the same of its grid.
        reaches = bool(np.abs(grid).max() > 1 - 1 / min(window.size))
        number = arrays[1].dtype.type
        maps = arrays[1] if dim == 3 else arrays[1].reshape(-1, *window.shape)
        two, low, high = self._two(maps, reaches)
        _kernel(f"sample_{dim}d", labels.dtype)(
            *arrays, *self._axes, matrix, shift, half, np.array(window.size), np.array(window.origin),
            number(self.padding), reaches, two, low, high, image_out.numpy(), labels_out.numpy(),
        )  # fmt: skip
        shape = (*(image.shape[1:2] if self.planes else ()), *self.patch_size)
        return {
            **sample,
            "image": image_out.reshape(len(image), *shape),
            "segmentation": labels_out.reshape(len(labels), *shape).to(dtype),
        }

    def _float32(
        self, size: Sequence[int], affine: np.ndarray, center: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The kernel's affine, shift and half, as batchgeneratorsv2 rounds them."""
        shift = np.array([c - n / 2 for c, n in zip(center, size, strict=True)], np.float32)
        return np.ascontiguousarray(affine.T, np.float32), shift, np.array(size, np.float32) / np.float32(2)

    def _corners(
        self, size: Sequence[int], affine: np.ndarray, center: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """grid_sample's coordinates and the voxels they mean at the patch's corners, (corners, axes) each.

        Between the corners lie all others: every operation, with its rounding, is monotonous.
        """
        affine_, shift, half = self._float32(size, affine, center)
        ends = [axis[[0, -1]] for axis in self._axes]
        points = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, len(ends))
        grid = points[:, :1] * affine_[0]
        for k in range(1, len(ends)):
            grid = grid + points[:, k : k + 1] * affine_[k]
        grid = (grid + shift) / half
        return grid, (grid.astype(np.float64) + 1) * half - 0.5

    def _two(self, maps: np.ndarray, reaches: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which maps have two labels, padding included where the patch looks there, and the two."""
        count = np.empty((len(maps), 3), maps.dtype)
        for labels, out in zip(maps, count, strict=True):
            if labels.size:
                _two_labels(_torch(labels.dtype))(labels.reshape(-1), out)
            else:
                out[:] = 1, self.padding, self.padding
            if reaches and self.padding not in out[1:]:
                out[0] += 1
                if out[0] == 2:
                    out[1:] = sorted((int(out[1]), self.padding))
        return count[:, 0] == 2, np.ascontiguousarray(count[:, 1]), np.ascontiguousarray(count[:, 2])

    def _crop(self, tensor: Tensor, window: Window, center: Sequence[float], padding: int) -> Tensor:
        """The patch around a centre, contiguous."""
        wanted = self.window(window.size, None, center)
        if wanted == window and window.shape == self.patch_size:
            return tensor.contiguous()
        seen = tensor[_slices(wanted, window.origin)]
        shape = (*tensor.shape[: -len(self.patch_size)], *self.patch_size)
        if wanted.shape == self.patch_size:
            out = empty(shape, tensor)
            return out.copy_(seen)
        out = tensor.new_full(shape, padding)
        first = [math.floor(c) - n // 2 for c, n in zip(center, self.patch_size, strict=True)]
        out[_slices(wanted, first)] = seen
        return out


def _slices(window: Window, origin: Sequence[int]) -> tuple[Any, ...]:
    """Index, all channels, of a window in what begins at `origin`."""
    begins = [first - begin for first, begin in zip(window.origin, origin, strict=True)]
    return (..., *(slice(begin, begin + n) for begin, n in zip(begins, window.shape, strict=True)))


def _torch(dtype: np.dtype) -> torch.dtype:
    return getattr(torch, dtype.name)


@once
def _kernel(name: str, labels: torch.dtype) -> Any:
    from numba import boolean, from_dtype

    from nnunet_ext.augmentation import spatial_kernels

    dim = int(name[-2])
    dims = 4
    vector, whole, floats = array(1, torch.int64), array(dims, labels), array(dims, torch.float32)
    number = from_dtype(np.dtype(str(labels).removeprefix("torch.")))
    axis = array(1, torch.float32)
    signature = [floats, whole, *[axis] * dim, array(2, torch.float32), axis, axis, vector, vector]
    signature += [number, boolean, array(1, torch.bool), array(1, labels), array(1, labels), floats, whole]
    return compile_kernel(getattr(spatial_kernels, name), signature)


@once
def _two_labels(labels: torch.dtype) -> Any:
    from nnunet_ext.augmentation import spatial_kernels

    return compile_kernel(spatial_kernels.two_labels, [array(1, labels), array(1, labels)])
