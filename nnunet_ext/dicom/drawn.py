"""SEG and RTSTRUCT as masks on the grid of the series they were drawn on."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnunet_ext.dicom.headers import SEG, Header, need, quiet
from nnunet_ext.dicom.series import Series
from nnunet_ext.errors import UserError, one_line, reason_of

# Of a slice's distance: how far off its slice a contour may lie.
_OFF_SLICE = 0.1
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def read_drawn(header: Header, series: Series) -> dict[str, np.ndarray]:
    """Name -> bool mask (slices, rows, columns) of each segment or region that has an area.

    Args:
        header: of a SEG or RTSTRUCT file.
        series: on which it was drawn.

    Raises:
        UserError: it is damaged, of another series or frame of reference, lies outside the image, or two of its
            structures have one name.
    """
    read = _segments if header.text("SOPClassUID") == SEG else _regions
    frame = series.headers[0].text("FrameOfReferenceUID")
    try:
        with quiet():
            found = read(header, series, frame)
    except UserError:
        raise
    except Exception as error:  # pydicom and highdicom, given damaged content, raise anything
        raise header.refusal(f"it cannot be read ({reason_of(error)[:200]})") from None
    names = [name for name, _ in found]
    for name in names:
        if not name or names.count(name) > 1:
            raise header.refusal(f"{names.count(name)} structures are called {name!r}; names must be there and differ")
    return dict(found)


def _segments(header: Header, series: Series, frame: str) -> list[tuple[str, np.ndarray]]:
    need("highdicom")
    from highdicom.seg import segread

    seg = segread(header.path)
    uids = [slice_.text("SOPInstanceUID") for slice_ in series.headers]
    known = {str(uid) for *_, uid in seg.get_source_image_uids()}
    if not known & set(uids):
        raise header.refusal("it was drawn on another series than the one beside it")
    size = (int(seg.Rows), int(seg.Columns))
    if size != series.shape[1:]:
        raise header.refusal(f"its frames have {size} rows and columns, and the series {series.shape[1:]}")
    _check_places(header, seg, series)
    found = []
    for number in seg.segment_numbers:
        pixels = seg.get_pixels_by_source_instance(
            uids,
            segment_numbers=[number],
            ignore_spatial_locations=True,  # compared above
            assert_missing_frames_are_empty=True,
            rescale_fractional=True,
        )
        label = one_line(str(seg.get_segment_description(number).segment_label))
        found.append((label, np.asarray(pixels)[..., 0] > 0.5))
    return found


def _check_places(header: Header, seg: Any, series: Series) -> None:
    """Every frame must lie where the slice lies that it refers to."""
    places = {one.text("SOPInstanceUID"): one.numbers("ImagePositionPatient", 3) for one in series.headers}
    shared = getattr(seg, "SharedFunctionalGroupsSequence", [None])[0]
    orientation = getattr(shared, "PlaneOrientationSequence", None)
    own = series.headers[0].numbers("ImageOrientationPatient", 6)
    for frame in seg.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        turned = (orientation or frame.PlaneOrientationSequence)[0].ImageOrientationPatient
        sources = [
            str(source.ReferencedSOPInstanceUID)
            for derived in getattr(frame, "DerivationImageSequence", [])
            for source in getattr(derived, "SourceImageSequence", [])
        ]
        wanted = [places[uid] for uid in sources if uid in places]
        if not wanted:
            raise header.refusal("a frame refers to no slice of the series beside it")
        if not np.allclose(wanted[0], np.array(position, float), atol=1e-2) or not np.allclose(
            own, np.array(turned, float), atol=1e-3
        ):
            raise header.refusal("a frame lies elsewhere than the slice it refers to")


def _regions(header: Header, series: Series, frame: str) -> list[tuple[str, np.ndarray]]:
    pydicom = need("pydicom")
    content = pydicom.dcmread(header.path)
    frames = {str(one.FrameOfReferenceUID) for one in getattr(content, "ReferencedFrameOfReferenceSequence", [])}
    if frame and frames and frame not in frames:
        raise header.refusal("it was drawn in another frame of reference than that of the series beside it")
    names = {int(roi.ROINumber): one_line(str(roi.ROIName)).strip() for roi in content.StructureSetROISequence}
    to_index = np.linalg.inv(series.affine)
    found = []
    for region in content.ROIContourSequence:
        contours = [one for one in getattr(region, "ContourSequence", []) if one.ContourGeometricType in _CLOSED]
        if not contours:
            continue  # points and lines have no area
        name = names[int(region.ReferencedROINumber)]
        mask: np.ndarray = np.zeros(series.shape, bool)
        for contour in contours:
            points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
            index = points @ to_index[:3, :3].T + to_index[:3, 3]
            _fill(header, name, mask, index)
        found.append((name, mask))
    return found


def _fill(header: Header, name: str, mask: np.ndarray, index: np.ndarray) -> None:
    """Turn over every pixel whose centre a contour encloses: a contour within another one is a hole.

    Args:
        header, name: for messages.
        mask: (slices, rows, columns), changed in place.
        index: (n, 3) of a contour's points, as column, row, slice.
    """
    from matplotlib.path import Path as Polygon

    number = int(np.round(index[0, 2])) if np.isfinite(index).all() else -1
    low, high = index[:, :2].min(0), index[:, :2].max(0)
    edge = np.array(mask.shape[:0:-1]) - 0.5
    if not 0 <= number < len(mask) or (low < -0.5 - 1e-3).any() or (high > edge + 1e-3).any():
        raise header.refusal(f"a contour of {name!r} lies outside the image")
    if np.abs(index[:, 2] - number).max() > _OFF_SLICE:
        raise header.refusal(f"a contour of {name!r} lies between two slices")
    left, top = np.maximum(np.floor(low), 0).astype(int)
    right, bottom = np.minimum(np.ceil(high) + 1, edge + 0.5).astype(int)
    pixels = np.indices((bottom - top, right - left)).reshape(2, -1).T + (top, left)
    inside = Polygon(index[:, :2]).contains_points(pixels[:, ::-1])
    mask[number, top:bottom, left:right] ^= inside.reshape(bottom - top, right - left)
