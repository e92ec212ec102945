"""Reading label maps so that nothing is guessed: whole files, whole numbers, and where each voxel lies.

NIfTI is read with nibabel's header and our own decompression, because SimpleITK returns a truncated .nii.gz with the
missing part silently set to 0. Other formats go through SimpleITK.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.surface import foreground_box
from nnunet_ext.image_files import HEADER_ERRORS, read_image, read_nifti, whole_numbers
from nnunet_ext.quiet import quiet_nibabel

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".tif", ".tiff", ".bmp")
# Two headers mean the same grid when no entry of their affines (mm) differs by more.
GEOMETRY_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class LabelMap:
    """One label map.

    Attributes:
        path: the file it came from.
        array: integers, axes (z, y, x) or (y, x), as SimpleITK and nnU-Net order them.
        spacing_mm: voxel size per axis of `array`.
        affines: 4 x 4 maps from voxel (x, y, z) to patient coordinates (RAS, mm). NIfTI may carry two, sform first.
    """

    path: Path
    array: np.ndarray
    spacing_mm: tuple[float, ...]
    affines: tuple[np.ndarray, ...]

    def digest(self) -> str:
        """32 hexadecimal digits of the shape and the labels, equal for equal maps of any format and integer type."""
        box = foreground_box(self.array)
        inside = self.array[box]
        found = hashlib.blake2b(repr((self.array.shape, [(s.start, s.stop) for s in box])).encode(), digest_size=16)
        lowest, highest = int(inside.min(initial=0)), int(inside.max(initial=0))
        kind = np.int64 if lowest < 0 else np.min_scalar_type(highest)
        found.update(np.ascontiguousarray(inside, dtype=np.dtype(kind).newbyteorder("<")).data)
        return found.hexdigest()


def read_label_map(path: str | os.PathLike[str]) -> LabelMap:
    """Read a label map from NIfTI or any format of SimpleITK.

    Raises:
        UserError: the file is missing, damaged, cut short, has channels or a time axis, or holds values that are not
            whole numbers.
    """
    path = Path(path)
    array, affines = _read_nifti(path) if path.name.endswith((".nii", ".nii.gz")) else _read_simpleitk(path)
    with np.errstate(over="ignore", invalid="ignore"):
        spacing = np.linalg.norm(affines[0][:3, :3], axis=0)[: array.ndim][::-1]
    if not (np.all(np.isfinite(spacing)) and np.all(spacing > 0)):
        raise UserError(f"{path} has voxel size {spacing.tolist()} mm (z, y, x); expected positive numbers")
    if not all(np.isfinite(affine).all() for affine in affines):
        raise UserError(f"{path} has an origin or direction that is no number; repair its header")
    return LabelMap(path, whole_numbers(path, array), tuple(spacing.tolist()), affines)


def check_same_grid(reference: LabelMap, prediction: LabelMap) -> None:
    """Both maps have the same shape, spacing, origin and direction.

    Raises:
        UserError: they do not; the message names the prediction, the first difference and both values.
    """
    if reference.array.shape != prediction.array.shape:
        difference = f"shape {prediction.array.shape}, but the reference has {reference.array.shape} (z, y, x)"
    else:
        for ours in prediction.affines:
            for theirs in reference.affines:
                if np.abs(ours - theirs).max() <= GEOMETRY_TOLERANCE_MM:
                    return
        difference = _difference(reference.affines[0], prediction.affines[0])
    raise UserError(
        f"{prediction.path} has {difference} in {reference.path}; resample the prediction onto the reference's grid "
        "or repair its header"
    )


def _difference(reference: np.ndarray, prediction: np.ndarray) -> str:
    def describe(affine: np.ndarray) -> dict[str, np.ndarray]:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        return {"spacing": spacing, "origin": affine[:3, 3], "direction": affine[:3, :3] / spacing}

    ours, theirs = describe(prediction), describe(reference)
    tolerances = {"spacing": GEOMETRY_TOLERANCE_MM, "origin": GEOMETRY_TOLERANCE_MM, "direction": 0.0}
    name = next(n for n, tolerance in tolerances.items() if np.abs(ours[n] - theirs[n]).max() > tolerance)
    a, b = (np.array2string(v[name].ravel(), precision=5, separator=", ", suppress_small=True) for v in (ours, theirs))
    return f"{name} {a.replace(chr(10), '')}, but the reference has {b.replace(chr(10), '')} (x, y, z; RAS)"


def _read_nifti(path: Path) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    file = read_nifti(path)
    array = file.array
    if (file.slope, file.inter) != (1, 0):
        with np.errstate(over="ignore", invalid="ignore"):  # what is no whole number is refused below
            array = array * file.slope + file.inter
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise UserError(f"{path} has shape {array.shape}; expected one 2D or 3D label map without time or channels")
    try:
        image = file.image
        with quiet_nibabel():
            forms = [form for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)) if code]
        return array.T, tuple(forms) or (image.affine,)
    except HEADER_ERRORS as error:
        raise UserError(f"{path} has a damaged header ({error}); restore it or create it again") from None


def _read_simpleitk(path: Path) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    import SimpleITK as sitk

    image = read_image(path)
    ndim = image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() > 1 or ndim > 3:
        raise UserError(f"{path} has colours, channels or a time axis; expected one label value per voxel")
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(ndim, ndim)
    affine[:ndim, :ndim] = direction * np.array(image.GetSpacing())
    affine[:ndim, 3] = image.GetOrigin()
    # ITK's world is LPS, NIfTI's RAS.
    return sitk.GetArrayFromImage(image), (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine,)
