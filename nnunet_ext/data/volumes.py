"""Reading images for inspection: every byte, the raw voxels, and both geometries a NIfTI header can hold.

nnU-Net reads through SimpleITK, which turns NaN into 0, fills the missing part of a truncated file with 0 and picks one
of the two geometries. So NIfTI is read here with nibabel and compared with what SimpleITK makes of the header.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_ext.data.findings import Finding
from nnunet_ext.errors import UserError
from nnunet_ext.files import utf8_name
from nnunet_ext.image_files import HEADER_ERRORS, read_image, read_nifti
from nnunet_ext.images import LPS_TO_RAS

# Headers store single precision, so two honest copies of one grid differ by about this much.
TOLERANCE_MM = 1e-2
_SMALLEST_MM, _LARGEST_MM = 0.01, 50.0


@dataclass(frozen=True)
class Volume:
    """One image file.

    Attributes:
        path: the file.
        array: voxels as stored, axes (z, y, x) or (y, x); further axes of a 4D file come first, colours last.
        slope, inter: value = slope * voxel + inter.
        affine: voxel (x, y, z) to patient coordinates (RAS, mm).
        spacing_mm: voxel size along (x, y, z), or (x, y).
        colours: values per pixel; 3 for RGB.
        nifti: whether the header is NIfTI's, so that it has world coordinates to trust.
        findings: what is wrong with the header.
    """

    path: Path
    array: np.ndarray
    slope: float
    inter: float
    affine: np.ndarray
    spacing_mm: tuple[float, ...]
    colours: int
    nifti: bool
    findings: tuple[Finding, ...]

    @property
    def spatial(self) -> np.ndarray:
        """The voxels with the first colour only."""
        return self.array[..., 0] if self.colours > 1 else self.array

    @property
    def scaled(self) -> np.ndarray:
        """Values in the image's unit; float32 when the header scales."""
        if (self.slope, self.inter) == (1, 0):
            return self.array
        with np.errstate(over="ignore", invalid="ignore"):  # a slope without sense, which is a finding
            return self.array.astype(np.float32) * np.float32(self.slope) + np.float32(self.inter)


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read NIfTI with nibabel, anything else with SimpleITK.

    Raises:
        UserError: the file is missing, damaged or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    return _read_nifti(path) if path.name.endswith((".nii", ".nii.gz")) else _read_simpleitk(path)


def displacement_mm(shape: tuple[int, ...], first: np.ndarray, second: np.ndarray) -> float:
    """The farthest a corner voxel of a grid of `shape` (x, y, z) moves between two affines (4 x 4, mm)."""
    full = (*shape, 1, 1)[:3]
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in full], indexing="ij")).reshape(3, -1)
    moved = (first - second)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(moved, axis=0).max())


def _read_nifti(path: Path) -> Volume:
    file = read_nifti(path)
    image, array = file.image, file.array
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype.names:  # RGB, stored as a record
        raise UserError(f"{path} holds colours; expected one number per voxel")
    # nibabel quietly mends voxel sizes of 0 in its copy of the header.
    spacing = tuple(float(value) for value in file.stored["pixdim"][1 : 1 + min(array.ndim, 3)])
    try:
        affine = image.affine
        findings = _check_header(path, image, spacing)
    except HEADER_ERRORS as error:
        text = f"damaged header ({' '.join(str(error).split())})"
        raise UserError(f"{path} has a {text}; write it anew") from None
    if array.ndim <= 3 and not findings:
        findings = _compare_with_simpleitk(path, array.shape, affine)
    return Volume(path, array.T, file.slope, file.inter, affine, spacing, 1, True, tuple(findings))


def _check_header(path: Path, image: Any, spacing: tuple[float, ...]) -> list[Finding]:
    name, header = str(path), image.header
    if not all(np.isfinite(value) and value > 0 for value in spacing):
        return [Finding("voxel-size-invalid", name, f"voxel size {_numbers(spacing)}; expected positive mm")]
    findings = []
    if min(spacing) < _SMALLEST_MM or max(spacing) > _LARGEST_MM:
        expected = f"{_SMALLEST_MM} to {_LARGEST_MM:g} mm"
        findings.append(Finding("voxel-size-absurd", name, f"voxel size {_numbers(spacing)}; expected {expected}"))
    unit = header.get_xyzt_units()[0]
    if unit in ("meter", "micron"):
        findings.append(Finding("units", name, f"lengths in {unit}; expected mm"))
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    if qform is None and sform is None:
        findings.append(Finding("no-form", name, "qform and sform codes are both 0"))
    if qform is not None and not np.isfinite(qform).all():
        return [*findings, Finding("forms-disagree", name, "the qform holds NaN or infinite numbers")]
    if sform is not None:
        columns = np.linalg.norm(sform[:3, :3], axis=0)
        if not np.isfinite(sform).all() or columns.min() <= 0:
            return [*findings, Finding("voxel-size-invalid", name, f"sform with voxel size {_numbers(columns)}")]
        cosines = sform[:3, :3] / columns
        skew = np.abs(cosines.T @ cosines - np.eye(3)).max()
        if skew > 1e-3:
            angle = np.degrees(np.arcsin(min(skew, 1)))
            return [*findings, Finding("simpleitk-refuses", name, f"sform is sheared by {angle:.1f} degrees")]
        if np.abs(columns[: len(spacing)] / spacing - 1).max() > 0.01:
            text = f"sform has voxel size {_numbers(columns)}, pixdim and qform {_numbers(spacing)} mm"
            return [*findings, Finding("forms-disagree", name, text)]
    if qform is not None and sform is not None:
        moved = displacement_mm(image.shape[:3], qform, sform)
        if moved > max(spacing):
            findings.append(Finding("forms-moved", name, f"qform and sform lie up to {moved:.1f} mm apart"))
    return findings


def _compare_with_simpleitk(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> list[Finding]:
    reader = sitk.ImageFileReader()
    try:
        reader.SetFileName(utf8_name(path))
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        return [Finding("simpleitk-refuses", str(path), reason)]
    except UserError as error:
        return [Finding("simpleitk-refuses", str(path), str(error))]
    if reader.GetSize()[: len(shape)] != tuple(shape):
        return [Finding("simpleitk-differs", str(path), f"SimpleITK sees shape {reader.GetSize()}, the header {shape}")]
    theirs = _simpleitk_affine(reader)
    if len(shape) < 3:  # a flat image has no third axis there
        theirs[2] = affine[2]
    moved = displacement_mm(shape, affine, theirs)
    # SimpleITK takes the qform when its code is 1 and the sform's is not; nibabel always prefers the sform.
    voxel = float(np.linalg.norm(affine[:3, : len(shape)], axis=0).min())
    if moved > max(TOLERANCE_MM, 0.1 * voxel):
        return [Finding("simpleitk-differs", str(path), f"a corner lies {moved:.3g} mm from where nibabel puts it")]
    return []


def _simpleitk_affine(image: Any) -> np.ndarray:
    """Affine (RAS, mm) of a SimpleITK image or reader with two or three axes."""
    ndim = image.GetDimension()
    affine = np.eye(4)
    cosines = np.array(image.GetDirection()).reshape(ndim, ndim)
    size = min(ndim, 3)
    affine[:size, :size] = (cosines * np.array(image.GetSpacing()))[:size, :size]
    affine[:size, 3] = image.GetOrigin()[:size]
    return LPS_TO_RAS @ affine


def _read_simpleitk(path: Path) -> Volume:
    image = read_image(path)
    array, spacing = sitk.GetArrayFromImage(image), tuple(image.GetSpacing())
    findings = []
    if not all(np.isfinite(value) and value > 0 for value in spacing):
        findings.append(Finding("voxel-size-invalid", str(path), f"voxel size {_numbers(spacing)}"))
    colours = image.GetNumberOfComponentsPerPixel()
    return Volume(path, array, 1.0, 0.0, _simpleitk_affine(image), spacing, colours, False, tuple(findings))


def _numbers(values: Any) -> str:
    return "x".join(f"{value:.4g}" for value in values)
