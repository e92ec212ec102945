"""DICOM made by hand: a CT-like series, and what was drawn on it as SEG or RTSTRUCT."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

# Oblique, right-handed: rows and columns lie along no axis of the patient.
ROW, COLUMN = (0.8, 0.6, 0.0), (-0.6, 0.8, 0.0)
SPACING, STEP, ORIGIN = (0.7, 0.9), 2.5, (-30.0, 12.5, 100.0)


def uid_of(*words: object) -> str:
    """Always the same for the same words."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, ' '.join(map(str, words))).int}"


def _file(path: Path, kind: str, name: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, uid_of(name)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = kind, uid_of(name)
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "Toy^T", "1", "", ""
    made.StudyInstanceUID, made.StudyID, made.StudyDate, made.StudyTime = uid_of("study"), "1", "20260101", "120000"
    made.AccessionNumber, made.ReferringPhysicianName, made.Manufacturer = "", "", "toy"
    made.FrameOfReferenceUID, made.PositionReferenceIndicator = uid_of("frame"), ""
    return made


def place(slice_: float, row: float = 0, column: float = 0, step: float = STEP) -> np.ndarray:
    """LPS mm of a voxel."""
    normal = np.cross(ROW, COLUMN)
    along = np.array(ROW) * column * SPACING[1] + np.array(COLUMN) * row * SPACING[0]
    return np.array(ORIGIN) + along + normal * slice_ * step


def write_series(folder: Path, volume: np.ndarray, series: str = "series", **changes: object) -> Path:
    """The slices (slices, rows, columns) of int16, in files whose names are not in the order of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(volume):
        path = folder / f"{series}_{(number * 7) % 100:02d}.dcm"
        made = _file(path, CTImageStorage, f"{folder.name} {series} {number}")
        made.Modality, made.SeriesInstanceUID = "CT", uid_of(folder.name, series)
        made.SeriesDescription, made.SeriesNumber, made.InstanceNumber = series, 1, number + 1
        made.ImagePositionPatient = [f"{value:.6f}" for value in place(number)]
        made.ImageOrientationPatient, made.PixelSpacing = [*ROW, *COLUMN], list(SPACING)
        made.SliceThickness, made.ImageType = STEP, ["ORIGINAL", "PRIMARY", "AXIAL"]
        made.Rows, made.Columns = pixels.shape
        made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 1
        made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
        made.RescaleIntercept, made.RescaleSlope, made.KVP, made.AcquisitionNumber = -1024, 1, "", 1
        made.PixelData = (pixels.astype(np.int16) + 1024).tobytes()
        for key, value in changes.items():
            setattr(made, key, value)
        made.save_as(path)
    return folder


def write_rtstruct(path: Path, regions: dict[str, Sequence[tuple[int, Sequence[tuple[float, float]]]]]) -> Path:
    """Regions of contours, each a slice and its points (row, column)."""
    made = _file(path, RTStructureSetStorage, str(path.name))
    made.Modality, made.SeriesInstanceUID, made.StructureSetLabel = "RTSTRUCT", generate_uid(), "toy"
    frame = Dataset()
    frame.FrameOfReferenceUID = uid_of("frame")
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, uid_of("frame")
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for slice_, points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            values = [value for row, column in points for value in place(slice_, row, column)]
            contour.ContourData = [f"{value:.5f}" for value in values]
            drawn.ContourSequence.append(contour)
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(drawn)
    made.save_as(path)
    return path


def square(low: float, high: float) -> list[tuple[float, float]]:
    """A contour around the pixels between two borders."""
    return [(low, low), (low, high), (high, high), (high, low)]
