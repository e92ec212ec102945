"""One DICOM series as a volume: its slices must make a regular grid, or it is refused.

What is not looked for: slices that are missing at either end, which nothing in the files tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import SimpleITK as sitk

from nnunet_ext.dicom.headers import Header
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.files import utf8_name
from nnunet_ext.quiet import quiet_libraries

# Transfer syntaxes that GDCM, in SimpleITK, decodes: uncompressed, deflated, RLE, JPEG, JPEG-LS, JPEG 2000.
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_DECODED = (
    *_UNCOMPRESSED, "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)),
)  # fmt: skip
# No decoder makes more of a byte.
_LARGEST_RATIO = 1000
# Of a pixel, and of the distance of slices.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Series:
    """The grid of a series.

    Attributes:
        headers: of its slices, along the normal of the image plane.
        affine: 4 x 4, (column, row, slice) to LPS mm.
    """

    headers: tuple[Header, ...]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        rows, columns = (int(self.headers[0].numbers(key, 1)[0]) for key in ("Rows", "Columns"))
        return len(self.headers), rows, columns


def grid_of(headers: Sequence[Header]) -> Series:
    """The grid that the slices of a series make.

    Raises:
        UserError: a slice is missing or there twice, slices differ in size, spacing or orientation, or lie askew.
    """
    first = headers[0]
    for header in headers:
        if header.text("NumberOfFrames") not in ("", "1"):
            raise header.refusal("it holds several frames (enhanced DICOM), which are not read; save single slices")
        if header.text("SamplesPerPixel") not in ("", "1"):
            raise header.refusal("it is in colour")
        for key, count in (("Rows", 1), ("Columns", 1), ("PixelSpacing", 2), ("ImageOrientationPatient", 6)):
            ours, theirs = first.numbers(key, count), header.numbers(key, count)
            if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
                raise header.refusal(
                    f"{key} is {_shown(theirs)}, and {_shown(ours)} in {first.path.name}: slices of one series must "
                    "agree"
                )
    row, column = np.array(first.numbers("ImageOrientationPatient", 6)).reshape(2, 3)
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3):
        raise first.refusal("ImageOrientationPatient are no two directions at right angles")
    spacing = first.numbers("PixelSpacing", 2)
    if min(spacing) <= 0 or min(first.numbers("Rows", 1) + first.numbers("Columns", 1)) < 1:
        raise first.refusal("Rows, Columns and PixelSpacing must be above 0")
    normal = np.cross(row, column)
    positions = {id(header): np.array(header.numbers("ImagePositionPatient", 3)) for header in headers}
    ordered = sorted(headers, key=lambda header: float(positions[id(header)] @ normal))
    places = np.array([positions[id(header)] for header in ordered])
    step = _distance(ordered, places, places @ normal, min(spacing))
    affine = np.eye(4)
    # PixelSpacing is (between rows, between columns).
    affine[:3, :3] = np.stack([row * spacing[1], column * spacing[0], normal * step], axis=1)
    affine[:3, 3] = places[0]
    return Series(tuple(ordered), affine)


def _distance(ordered: Sequence[Header], places: np.ndarray, along: np.ndarray, pixel: float) -> float:
    """Of slices, in mm, where it is one."""
    if len(ordered) == 1:
        (thickness,) = ordered[0].numbers("SliceThickness", 1)
        if thickness <= 0:
            raise ordered[0].refusal("SliceThickness must be above 0")
        return thickness
    gaps = np.diff(along)
    step = float(np.median(gaps))
    folder = ordered[0].path.parent
    pairs = [f"{before.path.name} and {after.path.name}" for before, after in pairwise(ordered)]
    for pair, gap in zip(pairs, gaps, strict=True):
        if gap < 1e-3:
            raise UserError(
                f"{folder}: {pair} lie at the same place (time points, echoes, or copies); keep one image per place"
            )
    for pair, gap in zip(pairs, gaps, strict=True):
        if abs(gap - step) <= _TOLERANCE * step:
            continue
        if gap > 1.5 * step and abs(gap / step - round(gap / step)) <= _TOLERANCE * gap / step:
            raise UserError(
                f"{folder}: {round(gap / step) - 1} slice(s) are missing between {pair}, which are {gap:.4g} mm apart "
                f"where others are {step:.4g}; export the series again"
            )
        raise UserError(
            f"{folder}: the distance of slices varies: {gap:.4g} mm between {pair}, mostly {step:.4g}; NIfTI has one "
            "spacing, so resample the series first"
        )
    askew = np.diff(places, axis=0) - gaps[:, None] * ((places[-1] - places[0]) / (along[-1] - along[0]))
    straight = (places[-1] - places[0]) - (along[-1] - along[0]) * np.cross(
        *np.array(ordered[0].numbers("ImageOrientationPatient", 6)).reshape(2, 3)
    )
    if max(np.abs(askew).max(), np.abs(straight).max() / len(gaps)) > _TOLERANCE * pixel + 1e-3:
        raise UserError(
            f"{folder}: slices are shifted against each other (a tilted gantry); NIfTI has right "
            "angles, so resample the series first"
        )
    return step


def read_series(series: Series) -> sitk.Image:
    """The volume, with rescaling applied: int16 or int32 where all values are whole, else float32.

    Raises:
        UserError: a slice is compressed in a way that nothing here decodes, or its pixels are damaged.
    """
    slices = [_pixels(header) for header in series.headers]
    kinds = [array.dtype for array in slices]
    volume = np.stack([array.astype(np.float64) for array in slices])
    if all(kind.kind in "iu" for kind in kinds):
        limits = np.iinfo(np.int16)
        fits = limits.min <= volume.min() and volume.max() <= limits.max
        volume = volume.astype(np.int16 if fits else np.int32)
    else:
        volume = volume.astype(np.float32)
    return with_grid(volume, series)


def with_grid(volume: np.ndarray, series: Series) -> sitk.Image:
    """An array (slices, rows, columns) on the grid of a series."""
    image = sitk.GetImageFromArray(volume)
    spacing = np.linalg.norm(series.affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((series.affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(series.affine[:3, 3].tolist())
    return image


def _pixels(header: Header) -> np.ndarray:
    """(rows, columns), rescaled."""
    syntax = getattr(getattr(header.content, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None or str(syntax) not in _DECODED:
        name = getattr(syntax, "name", syntax)
        raise header.refusal(
            f"its transfer syntax, {name}, has no decoder here; decompress it, such as with gdcmconv --raw"
        )
    rows, columns = (int(header.numbers(key, 1)[0]) for key in ("Rows", "Columns"))
    size, declared = header.path.stat().st_size, rows * columns * header.numbers("BitsAllocated", 1)[0] / 8
    if declared > size * (1 if str(syntax) in _UNCOMPRESSED else _LARGEST_RATIO):
        raise header.refusal(f"it has {size} bytes and declares {declared:.0f} of pixels")
    try:
        with quiet_libraries():
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(utf8_name(header.path)))
    except (RuntimeError, MemoryError) as error:
        raise header.refusal(f"its pixels cannot be read ({reason_of(error)[-200:]})") from None
    pixels = pixels.reshape(pixels.shape[-2:]) if pixels.size == rows * columns else pixels
    if pixels.shape != (rows, columns) or not np.isfinite(pixels).all():
        raise header.refusal(f"its pixels are {pixels.shape}, or not all finite; expected {(rows, columns)}")
    return pixels


def _shown(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
