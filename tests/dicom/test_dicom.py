"""DICOM to a data set and back: values, geometry and labels are equal, and what is wrong is one line."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers.dicom_files import COLUMN, ROW, SPACING, STEP, place, square, uid_of, write_rtstruct, write_series
from highdicom.seg import segread

from nnunet_ext.cli.main import main

SHAPE = (5, 12, 16)


@pytest.fixture
def clinic(tmp_path):
    """A folder of one case, and its volume."""
    volume = np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype(np.int16)
    return write_series(tmp_path / "clinic" / "case1", volume), volume


def convert(clinic, *more):
    target = clinic[0].parent.parent / "Dataset040_Toy"
    return main(["data", "convert", "dicom", str(clinic[0].parent), str(target), "-q", *more]), target


def label_map():
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 2:9, 3:12] = 1
    labels[2, 4:6, 5:8] = 2
    return labels


def write_seg(clinic, labels, names, out):
    """Through the command, from a label map on the grid of the converted image."""
    status, target = convert(clinic)
    assert status == 0
    folder = clinic[0].parent.parent / "predicted"
    folder.mkdir()
    (split,) = target.glob("images*")
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(sitk.ReadImage(str(split / "case1_0000.nii.gz")))
    sitk.WriteImage(image, str(folder / "case1.nii.gz"))
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **names}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return main(["data", "dicom-seg", str(folder), str(clinic[0].parent), str(out), "-q"])


def test_a_series_keeps_its_values_and_its_place(clinic):
    status, target = convert(clinic)
    image = sitk.ReadImage(str(target / "imagesTs" / "case1_0000.nii.gz"))
    assert status == 0 and np.array_equal(sitk.GetArrayFromImage(image), clinic[1])
    assert image.GetSpacing() == pytest.approx((SPACING[1], SPACING[0], STEP))
    for index in ((0, 0, 0), (15, 11, 4), (3, 2, 1)):
        expected = place(index[2], index[1], index[0])
        assert image.TransformIndexToPhysicalPoint(index) == pytest.approx(expected, abs=1e-3)
    assert json.loads((target / "dataset.json").read_text())["channel_names"] == {"0": "CT"}


def test_label_maps_go_out_as_seg_and_come_back(clinic, tmp_path):
    labels = label_map()
    assert write_seg(clinic, labels, {"organ": 1, "lesion": 2}, clinic[0]) == 0
    seg = segread(clinic[0] / "case1.dcm")
    assert [seg.get_segment_description(n).segment_label for n in (1, 2)] == ["organ", "lesion"]
    # As a viewer finds it: in the patient, without the series beside it; slices against their normal.
    found = seg.get_volume(combine_segments=True, allow_missing_positions=True)
    normal, last = np.cross(ROW, COLUMN), np.flatnonzero(labels.any((1, 2)))[-1]
    affine = np.column_stack([-normal * STEP, np.array(COLUMN) * SPACING[0], np.array(ROW) * SPACING[1]])
    assert np.allclose(found.affine[:3, :3], affine, atol=1e-3)
    assert np.allclose(found.affine[:3, 3], place(last), atol=1e-2)
    assert np.array_equal(found.array, labels[last : last - len(found.array) : -1]) and len(found.array) == 3
    target = tmp_path / "Dataset041_Back"
    words = ["data", "convert", "dicom", str(clinic[0].parent), str(target), "-q", "--labels", "organ", "lesion"]
    assert main(words) == 0
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(target / "labelsTr" / "case1.nii.gz"))), labels)
    assert json.loads((target / "dataset.json").read_text())["labels"] == {"background": 0, "organ": 1, "lesion": 2}


def test_regions_are_segments_that_overlap(clinic, tmp_path):
    assert write_seg(clinic, label_map(), {"whole": [1, 2], "core": 2, "ignore": 3}, tmp_path / "out") == 0
    seg = segread(tmp_path / "out" / "case1.dcm")
    volume = seg.get_volume(allow_missing_positions=True)
    assert volume.array[..., 0].sum() == (label_map() > 0).sum() and volume.array[..., 1].sum() == 6


def test_rtstruct_is_filled_by_pixel_centres(clinic):
    regions = {
        "body": [(n, square(0.5, 10.5)) for n in range(1, 4)] + [(2, square(3.5, 6.5))],  # with a hole
        "lesion": [(2, square(3.6, 5.4))],
        "marker": [],
    }
    write_rtstruct(clinic[0] / "rt.dcm", regions)
    status, target = convert(clinic)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(target / "labelsTr" / "case1.nii.gz")))
    expected = np.zeros(SHAPE, np.uint8)
    expected[1:4, 1:11, 1:11] = 1
    expected[2, 4:7, 4:7] = 0
    expected[2, 4:6, 4:6] = 2
    assert status == 0 and np.array_equal(labels, expected)


def edited(number, **changes):
    """Changes one file of the series."""

    def change(clinic):
        path = sorted(clinic[0].iterdir())[number]
        content = pydicom.dcmread(path)
        for key, value in changes.items():
            setattr(content, key, value)
        content.save_as(path)

    return change


def slice_at(shift):
    """Moves the second slice along the normal, or across it."""

    def change(clinic):
        edited(1, ImagePositionPatient=[f"{value:.6f}" for value in place(1) + shift])(clinic)

    return change


def lacks_a_slice(clinic):
    sorted(clinic[0].iterdir())[2].unlink()


def two_series(clinic):
    write_series(clinic[0], clinic[1], "later")


def tilted(clinic):
    for number, path in enumerate(sorted(clinic[0].iterdir())):
        content = pydicom.dcmread(path)
        content.ImagePositionPatient = [f"{v:.6f}" for v in place(number) + np.array(COLUMN) * number * 0.5]
        content.save_as(path)


def of_syntax(uid):
    def change(clinic):
        path = sorted(clinic[0].iterdir())[1]
        content = pydicom.dcmread(path)
        content.file_meta.TransferSyntaxUID = uid
        content.PixelData = pydicom.encaps.encapsulate([b"x" * 100])
        content.save_as(path)

    return change


def struct(*contours, name="organ"):
    return lambda clinic: write_rtstruct(clinic[0] / "rt.dcm", {name: contours})


def overlapping(clinic):
    write_rtstruct(clinic[0] / "rt.dcm", {"a": [(1, square(1, 5))], "b": [(1, square(4, 8))]})


def of_another_frame(clinic):
    path = write_rtstruct(clinic[0] / "rt.dcm", {"a": [(1, square(1, 5))]})
    content = pydicom.dcmread(path)
    content.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = uid_of("other")
    content.save_as(path)


def cut(clinic):
    path = sorted(clinic[0].iterdir())[1]
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lacks_a_slice, "1 slice(s) are missing between series_07.dcm and series_21.dcm, which are 5 mm apart"),
        (slice_at(np.cross(ROW, COLUMN) * 0.4), "the distance of slices varies: 2.9 mm between"),
        (slice_at(np.array(ROW) * 0.5), "shifted against each other (a tilted gantry)"),
        (tilted, "shifted against each other (a tilted gantry)"),
        (slice_at(place(2) - place(1)), "lie at the same place"),
        (edited(2, PixelSpacing=[0.7, 0.8]), "PixelSpacing is 0.7 0.8, and 0.7 0.9 in series_00.dcm"),
        (edited(2, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), "ImageOrientationPatient is 1 0 0 0 1 0"),
        (edited(2, Rows=11), "Rows is 11, and 12 in"),
        (edited(2, NumberOfFrames=3), "holds several frames"),
        (edited(0, ImagePositionPatient=None), "ImagePositionPatient is missing or damaged"),
        (two_series, "holds 2 series: later (5 images), series (5 images)"),
        (of_syntax("1.2.840.10008.1.2.4.201"), "High-Throughput JPEG 2000"),
        (of_syntax("1.2.840.10008.1.2.4.70"), "its pixels cannot be read"),
        (cut, "its pixels cannot be read"),
        (struct((1, square(3, 20))), "a contour of 'organ' lies outside the image"),
        (struct((7, square(3, 5))), "a contour of 'organ' lies outside the image"),
        (struct((1.5, square(3, 5))), "a contour of 'organ' lies between two slices"),
        (overlapping, "'a' and 'b' overlap, and a voxel has one label"),
        (of_another_frame, "another frame of reference"),
        (lambda clinic: [path.unlink() for path in clinic[0].iterdir()], "holds no DICOM images"),
        (lambda clinic: (clinic[0] / "x.dcm").write_bytes(b"x" * 200), "x.dcm is no DICOM file, or damaged"),
    ],
)
def test_what_is_wrong_is_one_line(clinic, capfd, change, words):
    change(clinic)
    status, target = convert(clinic)
    (line,) = capfd.readouterr().err.splitlines()
    assert status == 1 and words in line and "case1" in line, line
    assert not target.exists()


def test_overlap_is_settled_by_name(clinic, capsys):
    overlapping(clinic)
    assert convert(clinic, "--labels", "a", "none")[0] == 1
    assert "has no structure 'none' of --labels; it has a, b" in capsys.readouterr().err
    status, target = convert(clinic, "--labels", "b", "a")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(target / "labelsTr" / "case1.nii.gz")))
    assert status == 0 and labels[1, 4, 4] == 2 and labels[1, 6, 6] == 1


def test_label_maps_of_another_grid_are_refused(clinic, tmp_path, capsys):
    assert write_seg(clinic, label_map(), {"organ": 1}, tmp_path / "out") == 1
    assert "holds the value 2, which no label of dataset.json has" in capsys.readouterr().err
    path = tmp_path / "predicted" / "case1.nii.gz"
    image = sitk.ReadImage(str(path))
    image.SetOrigin([value + 1 for value in image.GetOrigin()])
    sitk.WriteImage(image, str(path))
    words = ["data", "dicom-seg", str(path.parent), str(clinic[0].parent), str(tmp_path / "out"), "-q"]
    assert main(words) == 1
    assert "lies on another grid than its series (1 mm apart)" in capsys.readouterr().err
    path.rename(path.with_name("case2.nii.gz"))
    assert main(words) == 1
    assert f"has no series: {clinic[0].parent / 'case2'} does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
