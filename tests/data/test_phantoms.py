"""The phantoms: reproducible, complete, and as awkward as they claim to be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.data import phantoms
from nnunet_ext.data.phantoms import LABELS, SMALLEST_LABEL, make_dataset, make_phantom
from nnunet_ext.errors import UserError


def test_two_numbers_decide_a_case():
    once, again = make_phantom(seed=3, index=1), make_phantom(seed=3, index=1)
    np.testing.assert_array_equal(once.image, again.image)
    np.testing.assert_array_equal(once.labels, again.labels)
    assert (once.spacing_mm, once.origin_mm, once.direction) == (again.spacing_mm, again.origin_mm, again.direction)
    for other in (make_phantom(seed=3, index=2), make_phantom(seed=4, index=1)):
        assert other.labels.shape != once.labels.shape or (other.labels != once.labels).mean() > 0.01


@pytest.mark.parametrize("index", range(8))
def test_every_case_has_every_label_and_thick_slices(index):
    phantom = make_phantom(seed=0, index=index)
    counts = np.bincount(phantom.labels.ravel())
    assert len(counts) == len(LABELS) and counts.min() >= SMALLEST_LABEL
    assert phantom.image.shape == phantom.labels.shape
    assert phantom.spacing_mm[0] > 2 * phantom.spacing_mm[1]


def test_noise_is_rician_and_grey_values_overlap():
    ratios = []
    for index in range(6):
        phantom = make_phantom(seed=1, index=index)
        air = phantom.image[:, [0, 0, 1, 1, -1, -1], [0, 1, 0, -1, 0, -1]].astype(float)
        ratios.append(air.mean() / air.std())
    # Where there is no signal, Rician noise is Rayleigh noise: mean / deviation = sqrt(pi / (4 - pi)).
    assert np.mean(ratios) == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.06)

    def grey(name):
        return phantom.image[phantom.labels == LABELS[name]]

    assert np.median(grey("lesion")) < np.median(grey("liver"))
    for dark, bright in (("liver", "kidneys"), ("kidneys", "vessel")):
        assert np.median(grey(dark)) < np.median(grey(bright))
        assert np.percentile(grey(dark), 98) > np.percentile(grey(bright), 2)


def test_dataset_is_in_nnunets_raw_format(tmp_path):
    folder = make_dataset(tmp_path / "raw" / "Dataset900_Phantoms", num_training=2, num_test=1, seed=5)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 2
    assert description["labels"] == {"background": 0, "liver": 1, "vessel": 2, "kidneys": 3, "lesion": 4}
    assert description["channel_names"] == {"0": "MR"} and description["file_ending"] == ".nii.gz"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.nii.gz"))
    assert files == [
        "imagesTr/phantom_001_0000.nii.gz",
        "imagesTr/phantom_002_0000.nii.gz",
        "imagesTs/phantom_003_0000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
        "labelsTr/phantom_002.nii.gz",
        "labelsTs/phantom_003.nii.gz",
    ]
    expected = make_phantom(seed=5, index=2)
    image = sitk.ReadImage(str(folder / "imagesTs" / "phantom_003_0000.nii.gz"))
    labels = sitk.ReadImage(str(folder / "labelsTs" / "phantom_003.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected.image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), expected.labels)
    np.testing.assert_allclose(image.GetSpacing(), expected.spacing_mm[::-1], atol=1e-5)
    for a, b in ((image.GetOrigin(), labels.GetOrigin()), (image.GetDirection(), labels.GetDirection())):
        np.testing.assert_allclose(a, b, atol=1e-6)
    axes = np.array(image.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-5)
    assert np.abs(axes - np.eye(3)).max() > 0.02 and np.abs(image.GetOrigin()).max() > 1


def test_interrupted_dataset_leaves_nothing(tmp_path, monkeypatch):
    real_write, written = phantoms.sitk.WriteImage, []

    def write_two_then_stop(*arguments, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments)
        real_write(*arguments, **options)

    monkeypatch.setattr(phantoms.sitk, "WriteImage", write_two_then_stop)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "Dataset900_Phantoms", num_training=5, num_test=1)
    assert len(written) == 2 and list(tmp_path.iterdir()) == []


def test_refuses_what_is_there_and_what_cannot_be_written(tmp_path):
    (tmp_path / "Dataset900_Phantoms").mkdir()
    with pytest.raises(UserError, match="Dataset900_Phantoms exists already"):
        make_dataset(tmp_path / "Dataset900_Phantoms", num_training=5, num_test=1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*Dataset900_Phantoms"):
        make_dataset(tmp_path / "file" / "Dataset900_Phantoms", num_training=5, num_test=1)
