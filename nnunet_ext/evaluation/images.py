"""Reading label maps so that nothing is guessed: whole files, whole numbers, and where each voxel lies.

NIfTI is read with nibabel's header and our own decompression, because SimpleITK returns a truncated .nii.gz with the
missing part silently set to 0. Other formats go through SimpleITK.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Image, Nifti2Image, imageglobals
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.surface import foreground_box
from nnunet_ext.files import gunzip

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".tif", ".tiff", ".bmp")
# What silences the libraries belongs to the whole process.
_QUIET = threading.Lock()
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
    return LabelMap(path, _whole_numbers(path, array), tuple(spacing.tolist()), affines)


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


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep off stderr what ITK and the libraries of the formats print there beside the error that they raise.

    libpng, libtiff and MetaIO write to file descriptor 2 of this process, which is turned away for the time being.
    """
    with _QUIET, open(os.devnull, "wb") as nowhere:
        try:
            kept = os.dup(2)
        except OSError:  # a process may have no stderr
            yield
            return
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """nibabel logs every header that it mends, to stderr."""
    with _QUIET:
        before, imageglobals.logger.disabled = imageglobals.logger.disabled, True
        try:
            yield
        finally:
            imageglobals.logger.disabled = before


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
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gunzip(data)
        kind = Nifti2Image if data[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") else Nifti1Image
        with _quiet_nibabel():
            image = kind.from_bytes(data)
        # The proxy knows type, offset and scaling; asking it for the data would copy them once more.
        proxy: Any = image.dataobj
        array: np.ndarray = np.ndarray(proxy.shape, proxy.dtype, buffer=data, offset=proxy.offset, order="F")
        forms = [form for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)) if code]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (EOFError, zlib.error, TypeError, ValueError, ImageFileError, HeaderDataError, WrapStructError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); restore it or create it again") from None
    if (proxy.slope, proxy.inter) != (1, 0):
        with np.errstate(over="ignore", invalid="ignore"):  # what is no whole number is refused below
            array = array * proxy.slope + proxy.inter
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise UserError(f"{path} has shape {array.shape}; expected one 2D or 3D label map without time or channels")
    return array.T, tuple(forms) or (image.affine,)


def _read_simpleitk(path: Path) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    import SimpleITK as sitk

    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        with quiet_libraries():
            image = sitk.ReadImage(str(path))
    except RuntimeError:
        raise UserError(f"{path} is damaged, cut short or no image; restore it or create it again") from None
    ndim = image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() > 1 or ndim > 3:
        raise UserError(f"{path} has colours, channels or a time axis; expected one label value per voxel")
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(ndim, ndim)
    affine[:ndim, :ndim] = direction * np.array(image.GetSpacing())
    affine[:ndim, 3] = image.GetOrigin()
    # ITK's world is LPS, NIfTI's RAS.
    return sitk.GetArrayFromImage(image), (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine,)


def _whole_numbers(path: Path, array: np.ndarray) -> np.ndarray:
    """`array` as integers of native byte order; exact, or refused."""
    if array.dtype.kind == "f":
        # Some tools store label maps as floats; that loses nothing as long as every value is whole.
        with np.errstate(invalid="ignore"):
            bad = ~(np.abs(array) < 2.0**63) | (array != np.rint(array))  # NaN too
        if bad.any():
            raise UserError(
                f"{path} holds the value {array[bad].flat[0]}; a label map has whole numbers "
                "(was it resampled with linear interpolation, or is it a probability map?)"
            )
        largest = float(np.abs(array).max(initial=0))
        return array.astype(np.int16 if largest < 2**15 else np.int64)
    if array.dtype.kind not in "iub":
        raise UserError(f"{path} has voxels of type {array.dtype}; a label map has whole numbers")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        if int(array.max(initial=0)) >= 2**63:
            raise UserError(f"{path} holds the value {array.max()}; expected labels below 2^63")
        return array.astype(np.int64)  # which compares and combines with the other types
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
