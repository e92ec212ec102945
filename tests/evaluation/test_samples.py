"""Scores of one case's samples, by hand: four voxels, two samples, one reference."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from helpers.toy_label_maps import case, save

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.samples import measure, measure_files

SAMPLES = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=np.uint8)
REFERENCE = np.array([1, 1, 1, 0], dtype=np.uint8)


def test_votes_against_one_reference():
    found = measure(SAMPLES, (1,), [REFERENCE])
    assert found.scores["agreement"] == pytest.approx(2 / 3)
    assert found.scores["Dice"] == pytest.approx((4 / 5 + 2 / 4) / 2)
    # Distances to the reference 1/3 and 2/3, between the samples 1/2 in two of four pairs.
    assert found.scores["GED2"] == pytest.approx(2 * (1 / 3 + 2 / 3) / 2 - 2 * 0.5 / 4)
    # Votes say 1 (right, sure), 0 (wrong, half sure), 0 (wrong, sure), 0 (right, sure).
    assert found.scores["ECE"] == pytest.approx((abs(0 - 0.5) + abs(2 - 3)) / 4)
    assert found.scores["ECE_foreground"] == pytest.approx((abs(0 - 0.5) + abs(1 - 2)) / 3)
    assert found.source == "votes" and found.samples == 2
    assert found.entropy == pytest.approx(np.log(2) / 3) and found.variance == pytest.approx(0.25 / 3)


def test_calibration_of_stored_probabilities():
    foreground = np.array([0.9, 0.7, 0.2, 0.1], dtype=np.float32)
    found = measure(SAMPLES, (1,), [REFERENCE], mean=np.stack([1 - foreground, foreground]))
    # Predicted 1, 1, 0, 0; right, right, wrong, right; two of them with 0.9.
    assert found.scores["ECE"] == pytest.approx((abs(2 - 1.8) + abs(1 - 0.7) + abs(0 - 0.8)) / 4, abs=1e-6)


def test_ignored_voxels_count_nowhere():
    ignored = np.array([1, 9, 1, 0], dtype=np.uint8)
    found = measure(SAMPLES, (1,), [ignored], ignore=9)
    kept = measure(SAMPLES[:, [0, 2, 3]], (1,), [ignored[[0, 2, 3]]])
    assert found.scores == kept.scores and found.labels == kept.labels
    assert (found.entropy, found.variance) == (kept.entropy, kept.variance)
    assert found.maps.entropy.shape == (4,)  # the maps cover the image all the same


@pytest.mark.parametrize("kind", [np.uint32, np.uint64, np.int64])
def test_one_voxel_of_a_large_value_is_refused_not_tabled(tmp_path, kind):
    for index in range(2):
        save(tmp_path / f"sample_0{index}.nii.gz", case(0))
    odd = case(0).astype(kind)
    odd[0, 0, 0] = 2**31 + 2
    save(tmp_path / "sample_02.nii.gz", odd)
    tracemalloc.start()
    with pytest.raises(UserError, match="holds the value 2147483650; expected labels below 65536"):
        measure_files(sorted(tmp_path.glob("sample_*")))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
