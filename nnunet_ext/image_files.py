"""Image files read whole and written whole.

SimpleITK fills what a truncated NIfTI file lacks with zeros, reads only the pages of a TIFF that are left, and on a
full disk writes part of a file, all without a word. So files are looked at before SimpleITK reads them and after it
has written them, and no more memory is taken than a header declares.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnunet_ext import tiff
from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_path, gunzipped, remove_leftovers, utf8_name
from nnunet_ext.machine import available_memory_bytes
from nnunet_ext.quiet import quiet_libraries, quiet_nibabel

# What nibabel raises at headers that make no sense.
HEADER_ERRORS = (ArithmeticError, LookupError, TypeError, ValueError, ImageFileError, HeaderDataError, WrapStructError)
_NIFTI_2 = (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
_LONGEST_HEADER = 540
# Some programs pad files; more than this is not padding.
_PADDING = 1 << 20
# DEFLATE cannot compress better, so a header that declares more is wrong, or the file is cut short.
_LARGEST_RATIO = 1032


@dataclass(frozen=True)
class Nifti:
    """A NIfTI file.

    Attributes:
        image: nibabel's, for the header and the affine; nibabel mends some damage in its copy of the header.
        stored: the header as stored.
        array: voxels as stored, axes (x, y, z, ...), not scaled.
        slope, inter: value = slope * voxel + inter.
    """

    image: Any
    stored: Any
    array: np.ndarray
    slope: float
    inter: float


def read_nifti(path: Path) -> Nifti:
    """Read a NIfTI file of either version, compressed or not, to its end.

    Raises:
        UserError: it is missing, damaged, cut short, or holds more or less than its header declares.
    """
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data: bytes | bytearray
            if compressed:
                packed = file.read()
                data = _collect(packed, _declared_bytes(_beginning(packed), path), path)
            else:
                size = _declared_bytes(file.read(_LONGEST_HEADER), path)
                if os.fstat(file.fileno()).st_size < size:
                    raise EOFError(f"{os.fstat(file.fileno()).st_size} of {size} bytes are there")
                _check_memory(size, path)
                file.seek(0)
                data = file.read(size)
        with quiet_nibabel():
            image, stored = _header(data)
        proxy: Any = image.dataobj
        array: np.ndarray = np.ndarray(proxy.shape, proxy.dtype, buffer=data, offset=proxy.offset, order="F")
        return Nifti(image, stored, array, float(proxy.slope), float(proxy.inter))
    except UserError:
        raise
    except (EOFError, OSError, zlib.error, *HEADER_ERRORS, MemoryError) as error:
        raise _refusal(path, error) from None


def check_whole(path: str | os.PathLike[str]) -> None:
    """Refuse a file that is missing, damaged or ends too early, where SimpleITK would read what is left in silence.

    Compressed files and NIfTI are read to their end in little memory, TIFF and BMP are compared with what their headers
    say; what SimpleITK itself refuses, such as half a PNG, is left to it.

    Raises:
        UserError: naming the file.
    """
    path = Path(utf8_name(path))
    name = path.name.lower()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if name.endswith(".nii.gz") or name.endswith(".gz"):
                packed = file.read()
                declared = _declared_bytes(_beginning(packed), path) if name.endswith(".nii.gz") else None
                for _ in _limited(gunzipped(packed), declared):
                    pass
            elif name.endswith(".nii"):
                declared = _declared_bytes(file.read(_LONGEST_HEADER), path)
                if size < declared:
                    raise EOFError(f"{size} of {declared} bytes are there")
            elif name.endswith((".tif", ".tiff")):
                _check_tiff(file, size)
            elif name.endswith(".bmp"):
                (declared,) = struct.unpack("<2xI", file.read(6).ljust(6, b"\0"))
                if size < declared:
                    raise EOFError(f"{size} of {declared} bytes are there")
    except UserError:
        raise
    except (EOFError, OSError, zlib.error, struct.error, *HEADER_ERRORS, MemoryError) as error:
        raise _refusal(path, error) from None


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file and `check_whole` lets it pass."""
    try:
        check_whole(path)
    except UserError:
        return False
    return True


def read_image(path: str | os.PathLike[str]) -> sitk.Image:
    """Read a whole image of any format of SimpleITK; a TIFF stack with the spacing that nnU-Net keeps beside it.

    Raises:
        UserError: it is missing, damaged, cut short or no image.
    """
    check_whole(path)
    try:
        with quiet_libraries():
            image = sitk.ReadImage(utf8_name(path))
            beside = tiff.spacing_file(Path(path)) if os.fspath(path).lower().endswith(tiff.ENDINGS) else None
            if beside is not None:
                return tiff.with_spacing(image, Path(path), beside)
        return _grey(image, Path(path)) if os.fspath(path).lower().endswith(".bmp") else image
    except (RuntimeError, MemoryError):
        raise UserError(f"{path} is damaged, cut short or no image; restore it or create it again") from None


def _grey(image: sitk.Image, path: Path) -> sitk.Image:
    """The one channel of a .bmp with a palette of greys, which SimpleITK alone gives as three."""
    with open(path, "rb") as file:
        (bits,) = struct.unpack("<28xH", file.read(30))
    if bits > 8 or image.GetNumberOfComponentsPerPixel() != 3:
        return image
    array = sitk.GetArrayViewFromImage(image)
    same = (array[..., 0] == array[..., 1]).all() and (array[..., 0] == array[..., 2]).all()
    return sitk.VectorIndexSelectionCast(image, 0) if same else image


def read_values(path: str | os.PathLike[str]) -> np.ndarray:
    """All values of a file, axes (z, y, x) or as SimpleITK has them, NaN included, which SimpleITK reads as 0 in NIfTI.

    Raises:
        UserError: see `read_nifti` and `read_image`.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return sitk.GetArrayFromImage(read_image(path))
    file = read_nifti(path)
    if (file.slope, file.inter) == (1, 0) or file.array.dtype.names:  # colours are not scaled
        return file.array.T
    return (file.array * file.slope + file.inter).T


def copy_geometry(image: sitk.Image, reference: sitk.Image) -> None:
    """Give an image the geometry of another of its size; about directions that are no numbers ITK prints lines."""
    with quiet_libraries():
        image.CopyInformation(reference)


def write_image(image: sitk.Image, path: str | os.PathLike[str]) -> None:
    """Write an image, compressed where the format can, and read it to its end before it appears under its name.

    Raises:
        UserError: the file cannot be written whole, as on a full disk.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        # A header of .mhd would name its voxels' file, which is not renamed with it; it may hold them itself.
        target = temporary.with_name(temporary.name + ".mha") if path.suffix.lower() == ".mhd" else temporary
        remove_leftovers(path.with_name(path.name + ".mha"))
        try:
            with quiet_libraries():
                sitk.WriteImage(image, utf8_name(target), useCompression=True)
            check_written(target, image.GetNumberOfPixels(), path)
            tiff.write_spacing(path, image)
            if target != temporary:
                os.replace(target, temporary)
        except RuntimeError:
            raise UserError(
                f"cannot write {path}: SimpleITK refuses; is the disk full, or the ending one it does not know?"
            ) from None
        finally:
            if target != temporary:
                target.unlink(missing_ok=True)


def check_written(path: str | os.PathLike[str], voxels: int, final: str | os.PathLike[str]) -> None:
    """Refuse an image file that was just written and does not hold this many voxels.

    Args:
        path: the file.
        voxels: that it must hold.
        final: the name it is going to have, for the message.

    Raises:
        UserError: it is not whole.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(utf8_name(path))
    nifti = str(path).lower().endswith((".nii", ".nii.gz"))
    try:
        check_whole(path)
        with quiet_libraries():
            if nifti:  # and so read to its end
                reader.ReadImageInformation()
            else:
                reader.Execute()
        whole = math.prod(reader.GetSize()) == voxels
        if not whole and str(path).lower().endswith(tiff.ENDINGS):
            # SimpleITK takes three or four slices for colours.
            whole = tiff.number_of_voxels(Path(path)) == voxels
    except (UserError, RuntimeError):
        whole = False
    if not whole:
        raise UserError(f"cannot write {final}: what was written is not whole; is the disk full? Make room")


def whole_numbers(path: str | os.PathLike[str], array: np.ndarray) -> np.ndarray:
    """The label map `array` of the file `path` as integers of native byte order; exact, or refused.

    Raises:
        UserError: a value is NaN, infinite or a fraction, or voxels are no numbers.
    """
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


# NIfTI -----------------------------------------------------------------------------------------------------------


def _kind(data: bytes | bytearray) -> Any:
    return nibabel.Nifti2Image if bytes(data[:4]) in _NIFTI_2 else nibabel.Nifti1Image


def _stored_header(data: bytes | bytearray) -> Any:
    kind = _kind(data).header_class
    size = kind.template_dtype.itemsize
    if len(data) < size:
        raise EOFError(f"{len(data)} bytes are no header")
    return kind(bytes(data[:size]), check=False)


def _header(data: bytes | bytearray) -> tuple[Any, Any]:
    stored = _stored_header(data)
    offset = int(stored.get_data_offset())
    return _kind(data).from_bytes(bytes(data[:offset])), stored


def _declared_bytes(beginning: bytes, path: Path) -> int:
    """Size of the file, uncompressed, by its header."""
    header = _stored_header(beginning)
    shape = [int(n) for n in header.get_data_shape()]
    if not shape or min(shape) < 1:
        raise UserError(f"{path} has shape {tuple(shape)} in its header; expected at least one voxel along each axis")
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and 0 <= offset < 2**62):
        raise ValueError(f"the voxels begin at byte {offset:g}")
    return int(header.get_data_offset()) + math.prod(shape) * int(header.get_data_dtype().itemsize)


def _beginning(packed: bytes) -> bytes:
    """Enough of the content for a header, without unpacking more."""
    found, rest = b"", packed[: 1 << 16]
    while rest and len(found) < _LONGEST_HEADER:
        member = zlib.decompressobj(wbits=31)
        found += member.decompress(rest, _LONGEST_HEADER - len(found))
        rest = member.unused_data.lstrip(b"\0")
    return found


def _limited(pieces: Iterator[bytes], declared: int | None) -> Iterator[bytes]:
    """The pieces, if together they are as long as declared, or a little longer."""
    have = 0
    for piece in pieces:
        have += len(piece)
        if declared is not None and have > declared + _PADDING:
            raise ValueError(f"it holds more than the {declared} bytes its header declares")
        yield piece
    if declared is not None and have < declared:
        raise EOFError(f"{have} of {declared} bytes are there")


def _collect(packed: bytes, declared: int, path: Path) -> bytearray:
    if declared > _LARGEST_RATIO * len(packed):
        raise EOFError(f"{len(packed)} bytes cannot hold the {declared} that its header declares")
    _check_memory(declared, path)
    data = bytearray(declared)
    have = 0
    for piece in _limited(gunzipped(packed), declared):
        end = min(have + len(piece), declared)
        data[have:end] = piece[: end - have]
        have = end
    return data


def _check_memory(size: int, path: Path) -> None:
    free = available_memory_bytes()
    if free is not None and size > free:
        raise UserError(
            f"{path} declares {size / 2**30:.3g} GiB of voxels and {free / 2**30:.3g} GiB of memory are free; if it is "
            "not damaged, work where there is more memory"
        )


# TIFF ------------------------------------------------------------------------------------------------------------


def _check_tiff(file: BinaryIO, size: int) -> None:
    """Follow the chain of pages; every directory and every strip or tile must lie within the file."""
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 8:
        raise ValueError("it does not begin as a TIFF does")
    big = struct.unpack(order + "H", start[2:4])[0] == 43
    count_type, offset_type, entry_bytes = ("Q", "Q", 20) if big else ("H", "I", 12)
    count_bytes, offset_bytes = struct.calcsize(count_type), struct.calcsize(offset_type)

    def read(offset: int, form: str) -> tuple[Any, ...]:
        length = struct.calcsize(order + form)
        if offset + length > size:
            raise EOFError(f"{size} bytes are there, a page needs {offset + length}")
        file.seek(offset)
        return struct.unpack(order + form, file.read(length))

    (page,) = read(8 if big else 4, offset_type)
    seen: set[int] = set()
    if not page:
        raise EOFError("it has no page")
    while page:
        if page in seen:
            raise ValueError("its pages form a circle")
        seen.add(page)
        (entries,) = read(page, count_type)
        places: dict[int, tuple[int, ...]] = {}
        for number in range(min(entries, size)):
            at = page + count_bytes + number * entry_bytes
            tag, kind, values = read(at, "HH" + offset_type)
            form = {3: "H", 4: "I", 16: "Q"}.get(kind)
            if tag in (273, 279, 324, 325) and form:  # offsets and lengths of strips and tiles
                length = values * struct.calcsize(form)
                at += 4 + offset_bytes
                where = at if length <= offset_bytes else read(at, offset_type)[0]
                if where + length > size:
                    raise EOFError(f"{size} bytes are there, a page needs {where + length}")
                places[tag] = read(where, f"{values}{form}")
        for offsets, lengths in ((273, 279), (324, 325)):
            ends = [sum(pair) for pair in zip(places.get(offsets, ()), places.get(lengths, ()), strict=False)]
            if max(ends, default=0) > size:
                raise EOFError(f"{size} bytes are there, a page needs {max(ends)}")
        (page,) = read(page + count_bytes + entries * entry_bytes, offset_type)


def _refusal(path: Path, error: BaseException) -> UserError:
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist")
    if isinstance(error, MemoryError):
        return UserError(f"{path} needs more memory than there is; if it is not damaged, work where there is more")
    if isinstance(error, OSError):
        return UserError(f"cannot read {path}: {error.strerror or text}")
    return UserError(f"{path} is damaged or cut short ({text}); restore it or create it again")
