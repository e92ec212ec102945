"""What is read from disk, and what is refused with the file's name: damage, other grids, strange values, other sets."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.dying_work import half_unless_seven
from helpers.toy_label_maps import AFFINE, case, save

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation import check_same_grid, evaluate_case, evaluate_folder, labels_from_values, read_label_map
from nnunet_ext.workers import in_workers

LABELS = labels_from_values([1, 2])


def test_array_and_spacing_are_those_of_simpleitk(tmp_path):
    path = tmp_path / "a.nii.gz"
    save(path, case(1))
    found = read_label_map(path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(found.array, sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(found.spacing_mm, image.GetSpacing()[::-1], rtol=1e-6)
    assert found.spacing_mm == pytest.approx((2.5, 0.8, 0.7))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".png"])
def test_formats_agree(tmp_path, ending):
    array = case(0)[3] if ending == ".png" else case(0)
    image = sitk.GetImageFromArray(array)
    if ending != ".png":
        image.SetSpacing((0.5, 0.6, 3.0))
        image.SetOrigin((10.0, -20.0, 30.0))
        image.SetDirection((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
        sitk.WriteImage(image, str(tmp_path / "reference.nii.gz"))
        save_reference = read_label_map(tmp_path / "reference.nii.gz")
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    found = read_label_map(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(found.array, array)
    if ending == ".png":
        assert found.spacing_mm == (1.0, 1.0)
    else:
        check_same_grid(save_reference, found)  # the same place in the patient, whatever the format


def test_what_simpleitk_wrote_fits_what_it_read(tmp_path):
    # nnU-Net reads the image and writes the prediction with SimpleITK, which keeps one of NIfTI's two transforms.
    turned = AFFINE.copy()
    turned[:3, 3] += 7.0
    image = nibabel.Nifti1Image(case(0).T, None)
    image.set_qform(AFFINE, 1)
    image.set_sform(turned, 2)
    nibabel.save(image, tmp_path / "reference.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "reference.nii.gz")), str(tmp_path / "prediction.nii.gz"))
    assert evaluate_case(tmp_path / "reference.nii.gz", tmp_path / "prediction.nii.gz", LABELS).foreground_dice == 1


def test_whole_numbers_stored_as_floats_are_read_exactly(tmp_path):
    save(tmp_path / "a.nii.gz", case(0).astype(np.float32))
    found = read_label_map(tmp_path / "a.nii.gz")
    assert found.array.dtype.kind == "i"
    np.testing.assert_array_equal(found.array, case(0))


def test_scaled_values_are_scaled(tmp_path):
    image = nibabel.Nifti1Image(case(0).T, AFFINE)
    image.header.set_slope_inter(2.0, 0.0)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(
        read_label_map(tmp_path / "a.nii").array, nibabel.load(tmp_path / "a.nii").get_fdata().T
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF  # in the checksum
    path.write_bytes(bytes(data))


def halve(path: Path) -> None:
    with gzip.open(path) as file:
        content = file.read()
    path.write_bytes(gzip.compress(content[: len(content) // 2]))


def fraction(path: Path) -> None:
    save(path, case(2) + np.float32(0.5))


def no_number(path: Path) -> None:
    save(path, np.where(case(2) == 2, np.nan, case(2)).astype(np.float32))


def unknown(path: Path) -> None:
    save(path, case(2) + np.uint8(1))


def another_shape(path: Path) -> None:
    save(path, case(2)[:, :, :1])


def moved(path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 3] += 0.01
    save(path, case(2), affine)


def stretched(path: Path) -> None:
    save(path, case(2), AFFINE @ np.diag([1.01, 1, 1, 1]))


def flipped(path: Path) -> None:
    save(path, case(2), AFFINE @ np.diag([1, -1, 1, 1]))


def series(path: Path) -> None:
    save(path, np.stack([case(2)] * 3))


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {
    truncate: "damaged or cut short",
    corrupt: "damaged or cut short",
    halve: "damaged or cut short",
    empty: "damaged or cut short",
    fraction: "holds the value 0.5; a label map has whole numbers",
    no_number: "holds the value nan",
    unknown: "holds the value 3; expected only 0-2",
    another_shape: r"shape \(8, 14, 1\), but the reference has \(8, 14, 18\)",
    moved: r"origin \[ *12.01.*but the reference has \[ *12",
    stretched: "spacing .*but the reference has",
    flipped: "direction .*but the reference has",
    series: "expected one 2D or 3D label map",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_bad_file_is_named_and_costs_only_its_case(dataset, damage):
    bad = dataset / "predictions" / "case_2.nii.gz"
    damage(bad)
    result = evaluate_folder(dataset / "references", dataset / "predictions")
    assert [c.pair.case for c in result.cases] == ["case_0", "case_1", "case_3", "case_4"]
    (failure,) = result.failures
    assert failure.pair.case == "case_2" and failure.message.startswith(str(bad)) and "\n" not in failure.message
    with pytest.raises(UserError, match=DAMAGES[damage]):
        evaluate_case(dataset / "references" / "case_2.nii.gz", bad, LABELS)


def test_all_cases_bad_is_an_error(dataset):
    for path in (dataset / "predictions").iterdir():
        truncate(path)
    with pytest.raises(UserError, match=r"none of the 5 case\(s\) could be evaluated; the first: .*case_\d.nii.gz"):
        evaluate_folder(dataset / "references", dataset / "predictions")


def test_missing_prediction_is_refused_or_counted_as_empty(dataset):
    (dataset / "predictions" / "case_3.nii.gz").unlink()
    with pytest.raises(UserError, match=r"1 case\(s\) \(case_3\) of .*--allow-missing"):
        evaluate_folder(dataset / "references", dataset / "predictions")
    result = evaluate_folder(dataset / "references", dataset / "predictions", allow_missing=True)
    assert result.missing == ("case_3",)
    missed = result.cases[3]
    assert missed.foreground_dice == 0 and missed.status(1) == missed.status(2) == "missed"


def test_prediction_without_reference_is_refused(dataset):
    save(dataset / "predictions" / "case_9.nii.gz", case(0))
    with pytest.raises(UserError, match=r"\(case_9\) in .*predictions have no reference"):
        evaluate_folder(dataset / "references", dataset / "predictions", allow_missing=True)


def test_the_same_case_in_two_formats_is_refused(dataset):
    save(dataset / "predictions" / "case_1.nii", case(1))
    with pytest.raises(UserError, match="holds case case_1 twice"):
        evaluate_folder(dataset / "references", dataset / "predictions", [1, 2])


def test_other_files_are_overlooked(dataset):
    (dataset / "predictions" / "case_0.npz").write_bytes(b"")
    (dataset / "predictions" / "overview.png").write_bytes(b"")
    assert len(evaluate_folder(dataset / "references", dataset / "predictions").cases) == 5


@pytest.mark.parametrize("which", ["references", "predictions"])
def test_folder_without_label_maps(dataset, which):
    for path in (dataset / which).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f"{which} holds no label map"):
        evaluate_folder(dataset / "references", dataset / "predictions")


def test_workers_give_the_same_results(dataset, monkeypatch):
    alone = evaluate_folder(dataset / "references", dataset / "predictions", processes=1)
    monkeypatch.setattr("nnunet_ext.evaluation.folder._ALONE_SECONDS", 0.0)
    truncate(dataset / "predictions" / "case_4.nii.gz")
    shared = evaluate_folder(dataset / "references", dataset / "predictions", processes=2)
    assert shared.cases == alone.cases[:4]
    assert [f.pair.case for f in shared.failures] == ["case_4"]


@pytest.mark.slow
def test_a_killed_worker_costs_only_its_item():
    found = dict(in_workers(half_unless_seven, [1, 2, 3, 7, 4, 5], 2))
    assert found == {1: 0.5, 2: 1.0, 3: 1.5, 7: None, 4: 2.0, 5: 2.5}


@pytest.mark.slow
def test_workers_that_never_work_end():
    assert dict(in_workers(half_unless_seven, [7, 7], 2)) == {7: None}
