"""Images as tools hand them over: channels, geometry, and label maps written back into it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_ext.errors import UserError
from nnunet_ext.image_files import read_image as read_whole
from nnunet_ext.image_files import read_values, whole_numbers, write_image

# ITK's world axes point left, posterior and up, NIfTI's right, anterior and up.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Image:
    """A volume with one or more channels.

    Attributes:
        data: (channels, z, y, x) float32.
        spacing_mm: (z, y, x).
        affine: 4 x 4, voxel (x, y, z) to RAS mm.
        name: the file of the first channel, or what else to call it.
    """

    data: np.ndarray
    spacing_mm: tuple[float, ...]
    affine: np.ndarray
    name: str = "the image"

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels, (z, y, x)."""
        return self.data.shape[1:]


def read_image(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Image:
    """Read one file per channel.

    Raises:
        UserError: a file is missing, unreadable, no 3D volume of one channel, or lies on another grid than the first.
    """
    files = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    volumes = [_read(Path(path)) for path in files]
    first = volumes[0]
    for path, volume in zip(files[1:], volumes[1:], strict=True):
        if volume.GetSize() != first.GetSize() or not np.allclose(affine_of(volume), affine_of(first), atol=1e-2):
            raise UserError(f"{path} lies on another grid than {files[0]}; channels of a case must share one")
    data = np.stack([sitk.GetArrayFromImage(volume).astype(np.float32) for volume in volumes])
    return Image(data, first.GetSpacing()[::-1], affine_of(first), str(files[0]))


def read_mask(path: str | os.PathLike[str], image: Image) -> np.ndarray:
    """A label map (z, y, x) on the grid of `image`.

    Raises:
        UserError: missing, unreadable, on another grid, or with values that are not whole numbers.
    """
    volume = _read(Path(path))
    if volume.GetSize()[::-1] != image.shape or not np.allclose(affine_of(volume), image.affine, atol=1e-2):
        raise UserError(f"{path} lies on another grid than {image.name}; a mask must lie on the image's own")
    whole_numbers(path, read_values(path))
    return whole_numbers(path, sitk.GetArrayFromImage(volume))


def write_mask(mask: np.ndarray, image: Image, path: str | os.PathLike[str]) -> None:
    """Write a label map (z, y, x) with the geometry of `image`, whole or not at all.

    Raises:
        UserError: the file cannot be written whole.
    """
    volume = sitk.GetImageFromArray(mask)
    lps = LPS_TO_RAS @ image.affine
    volume.SetSpacing(image.spacing_mm[::-1])
    volume.SetOrigin(lps[:3, 3].tolist())
    volume.SetDirection((lps[:3, :3] / np.asarray(image.spacing_mm[::-1])).ravel().tolist())
    write_image(volume, path)


def affine_of(volume: sitk.Image) -> np.ndarray:
    """Voxel (x, y, z) to RAS mm, 4 x 4."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(volume.GetDirection()).reshape(3, 3) * np.asarray(volume.GetSpacing())
    affine[:3, 3] = volume.GetOrigin()
    return LPS_TO_RAS @ affine


def _read(path: Path) -> sitk.Image:
    volume = read_whole(path)
    if volume.GetDimension() != 3 or volume.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path} is no 3D volume of one channel; give one file per channel")
    return volume
