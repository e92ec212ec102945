"""TIFF stacks as nnU-Net keeps them: beside the voxels lies NAME.json with the spacing, for which TIFF has no field."""

from __future__ import annotations

import math
import re
from pathlib import Path

import SimpleITK as sitk
import tifffile

from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json, write_json

ENDINGS = (".tif", ".tiff")


def spacing_file(path: Path) -> Path | None:
    """Where nnU-Net finds the spacing of a stack, if it is there: NAME.json for NAME.tif and for NAME_0000.tif."""
    for stem in (path.stem, re.sub(r"_\d{4}$", "", path.stem)):
        found = path.with_name(f"{stem}.json")
        if found.is_file():
            return found
    return None


def with_spacing(image: sitk.Image, path: Path, spacing: Path) -> sitk.Image:
    """A stack as nnU-Net understands it, also one of three or four slices, which SimpleITK takes for colours.

    Args:
        image: what SimpleITK reads.
        path: its file.
        spacing: JSON with `spacing`, mm (z, y, x).

    Raises:
        UserError: the JSON holds no spacing, or the TIFF no volume.
    """
    content = read_json(spacing)
    numbers = content.get("spacing") if isinstance(content, dict) else None
    if (
        not isinstance(numbers, list)
        or len(numbers) != 3
        or not all(type(n) in (int, float) and math.isfinite(n) and n > 0 for n in numbers)
    ):
        raise UserError(f'{spacing} beside {path.name} must hold {{"spacing": [z, y, x]}} in mm, all above 0')
    if image.GetNumberOfComponentsPerPixel() > 1:
        try:
            array = tifffile.imread(path)
        except Exception as error:  # of many kinds
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is damaged ({reason}); restore it or create it again") from None
        if array.ndim != 3:
            raise UserError(f"{path} holds colours; with a spacing in {spacing.name} one number per voxel is expected")
        image = sitk.GetImageFromArray(array, isVector=False)
    elif image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    image.SetSpacing([float(n) for n in reversed(numbers)])
    return image


def number_of_voxels(path: Path) -> int:
    """Of a stack or picture; each colour is one. 0 where it cannot be told."""
    try:
        with tifffile.TiffFile(path) as file:
            return int(file.series[0].size)
    except Exception:  # of many kinds
        return 0


def write_spacing(path: Path, image: sitk.Image) -> None:
    """What nnU-Net writes beside the label map `path`, if that is a stack; without it nnU-Net takes 1 mm.

    Raises:
        UserError: it cannot be written.
    """
    if path.suffix.lower() not in ENDINGS or image.GetDimension() != 3:
        return
    beside = path.with_suffix(".json")
    if beside.is_file() or image.GetSpacing() != (1.0, 1.0, 1.0):
        write_json(beside, {"spacing": list(image.GetSpacing()[::-1])})
