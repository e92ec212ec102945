"""Label maps as DICOM SEG, on the slices of the series they were predicted from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_ext import __version__
from nnunet_ext.dicom.headers import need, quiet
from nnunet_ext.dicom.series import Series
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.files import atomic_path
from nnunet_ext.image_files import read_image, whole_numbers

# Names of labels belong to a data set; a terminology has no code for them. This scheme is private, as "99" says.
_SCHEME = "99NNUNET"


def write_segmentation(label_map: Path, series: Series, labels: dict[str, int | list[int]], output: Path) -> list[str]:
    """Write a label map as DICOM SEG, a segment per label or region; whole or not at all.

    Args:
        label_map: on the grid of the series.
        series: from which it was predicted.
        labels: name -> value, or values of a region, as in dataset.json; background and an ignore label are left out.
        output: the file.

    Returns:
        Names of the segments.

    Raises:
        UserError: highdicom is not installed, the label map lies on another grid or has values without a name, or the
            series lacks what a SEG needs.
    """
    hd = need("highdicom")
    pydicom = need("pydicom")
    image = read_image(label_map)
    _check_grid(label_map, image, series)
    array = whole_numbers(label_map, sitk.GetArrayFromImage(image))
    named = {name: np.atleast_1d(value) for name, value in labels.items() if name not in ("background", "ignore")}
    unknown = sorted(set(np.unique(array).tolist()) - {0, *(int(v) for values in named.values() for v in values)})
    if unknown:
        raise UserError(f"{label_map} holds the value {unknown[0]}, which no label of dataset.json has")
    masks = np.stack([np.isin(array, values) for values in named.values()], axis=-1).astype(np.uint8)
    try:
        with quiet():
            sources = [pydicom.dcmread(header.path, stop_before_pixels=True) for header in series.headers]
            content = _dataset(hd, sources, masks, list(named))
    except Exception as error:  # of highdicom, for what a header lacks
        folder = series.headers[0].path.parent
        raise UserError(f"{folder}: no SEG can refer to this series ({reason_of(error)[:300]})") from None
    with atomic_path(output) as temporary, quiet():
        content.save_as(temporary)
    return list(named)


def _check_grid(label_map: Path, image: sitk.Image, series: Series) -> None:
    if image.GetDimension() != 3 or image.GetSize()[::-1] != series.shape:
        raise UserError(
            f"{label_map} has {image.GetSize()[::-1]} voxels, and its series {series.shape} slices, rows and columns"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    # NIfTI keeps single precision: over a whole volume that is less than this part of a voxel.
    voxel = math.sqrt(float(np.square(series.affine[:3, :3]).sum(0).min()))
    corner = np.array([*image.GetSize(), 1.0])
    off = max(np.abs((affine - series.affine) @ place).max() for place in (corner, [0, 0, 0, 1], [corner[0], 0, 0, 1]))
    if off > 0.05 * voxel:
        raise UserError(
            f"{label_map} lies on another grid than its series ({off:.3g} mm apart); predict the images that data "
            "convert dicom made of it"
        )


def _dataset(hd: Any, sources: list[Any], masks: np.ndarray, names: list[str]) -> Any:
    from pydicom.sr.codedict import codes

    made_by = hd.AlgorithmIdentificationSequence(
        name="nnU-Net", version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=hd.sr.CodedConcept(str(number), _SCHEME, name[:64]),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=made_by,
        )
        for number, name in enumerate(names, start=1)
    ]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=masks,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=9000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="nnunet_ext",
        manufacturer_model_name="nnunet_ext",
        software_versions=__version__,
        device_serial_number="0",
        series_description="Segmentation by nnU-Net",
        content_label="SEGMENTATION",
    )
