"""Surface distances: known geometry, the plain definition, and MONAI as an independent reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from nnunet_ext.evaluation import surface_distances, surface_distances_plain, surface_metrics

SPACING = (3.0, 1.0, 0.5)


def blobs(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Two label maps with ragged objects that touch each other and the edge; 2D for every fourth seed."""
    rng = np.random.default_rng(seed)
    ndim = 2 if seed % 4 == 0 else 3
    shape, spacing = rng.integers(5, 24, ndim), tuple(rng.uniform(0.3, 5.0, ndim).tolist())
    field = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.3, 2))
    other = np.roll(field, rng.integers(0, 4), axis=0) + 0.3 * rng.random() * field.std() * rng.standard_normal(shape)
    edges = np.quantile(field, np.linspace(0.5, 1, count + 1)[:-1])
    return np.digitize(field, edges), np.digitize(other, edges), spacing


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_cube_lies_at_its_physical_shift(axis):
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[4:12, 4:12, 4:12] = 1
    found = surface_distances(reference, np.roll(reference, 4, axis), SPACING, [1])[1]
    assert found.reference_to_prediction.max() == pytest.approx(4 * SPACING[axis])
    # 8^3 voxels without the inner 6^3
    assert len(found.reference_to_prediction) == len(found.prediction_to_reference) == 8**3 - 6**3


def test_single_voxels_and_directions():
    reference, prediction = np.zeros((2, 9, 9, 9), np.uint8)
    reference[1, 1, 1] = 1
    prediction[1, 1, 1] = prediction[3, 5, 7] = 1
    found = surface_distances(reference, prediction, SPACING, [1])[1]
    assert found.reference_to_prediction.tolist() == [0.0]
    assert sorted(found.prediction_to_reference) == pytest.approx([0.0, np.hypot(np.hypot(6, 4), 3)])


def test_concentric_spheres_beyond_the_look_up_window():
    grid = np.stack(np.meshgrid(*[np.arange(-24, 25)] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    found = surface_distances((radius <= 20).astype(int), (radius <= 8).astype(int), (1, 1, 1), [1])[1]
    assert np.all(np.abs(np.concatenate([found.reference_to_prediction, found.prediction_to_reference]) - 12) < 1.5)


def test_edge_of_the_image_is_border():
    full = np.ones((4, 5, 6), np.uint8)
    found = surface_distances(full, full, SPACING, [1])[1]
    assert len(found.reference_to_prediction) == 4 * 5 * 6 - 2 * 3 * 4
    assert found.reference_to_prediction.max() == 0


def test_neighbours_at_the_ends_of_rows_are_not_adjacent():
    # The end of one row lies beside the start of the next in memory only.
    reference, prediction = np.zeros((2, 6, 6, 6), np.uint8)
    reference[2, 2, 5] = 1
    prediction[2, 3, 0] = 1
    found = surface_distances(reference, prediction, (1, 1, 1), [1])[1]
    assert found.reference_to_prediction.tolist() == pytest.approx([np.sqrt(26)])


def test_one_slice_is_measured_in_its_plane():
    reference = np.zeros((1, 12, 12), np.uint8)
    reference[0, 2:8, 2:8] = 1
    found = surface_distances(reference, np.roll(reference, 1, 2), (10.0, 1.0, 2.0), [1])[1]
    assert len(found.reference_to_prediction) == 20  # the frame of a 6 x 6 square
    assert found.reference_to_prediction.max() == 2.0


def test_absent_labels():
    reference = np.zeros((5, 5), int)
    reference[2, 2] = 1
    found = surface_distances(reference, np.zeros_like(reference), (1, 1), [1, 7])
    assert found[1].reference_to_prediction.tolist() == [np.inf]
    assert len(found[1].prediction_to_reference) == 0
    assert len(found[7].reference_to_prediction) == len(found[7].prediction_to_reference) == 0


@pytest.mark.parametrize("count", [1, 5])
def test_agrees_with_the_plain_definition(count):
    for seed in range(60):
        reference, prediction, spacing = blobs(seed, count)
        labels = range(1, count + 1)
        fast = surface_distances(reference, prediction, spacing, labels)
        plain = surface_distances_plain(reference, prediction, spacing, labels)
        for label in labels:
            for direction in ("reference_to_prediction", "prediction_to_reference"):
                ours, expected = (np.sort(getattr(d[label], direction)) for d in (fast, plain))
                np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=f"seed {seed}, {direction}")


def test_maps_larger_than_one_step_of_the_search():
    rng = np.random.default_rng(0)
    reference, prediction = rng.integers(0, 3, (2, 40, 60, 70))
    fast, plain = (f(reference, prediction, SPACING, [1, 2]) for f in (surface_distances, surface_distances_plain))
    for label in (1, 2):
        ours, expected = (np.sort(d[label].prediction_to_reference) for d in (fast, plain))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)


def test_labels_of_any_value_and_more_than_a_byte_holds():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 300, (30, 30)) * 7
    prediction = np.roll(reference, 1, axis=1)
    labels = [7 * i for i in range(1, 300)]
    fast = surface_distances(reference, prediction, (1, 1), labels)
    plain = surface_distances_plain(reference, prediction, (1, 1), labels)
    for label in labels:
        ours, expected = fast[label].reference_to_prediction, plain[label].reference_to_prediction
        np.testing.assert_allclose(np.sort(ours), np.sort(expected), atol=1e-9)


def test_other_values_are_background():
    reference, prediction, spacing = blobs(1, 4)
    both = surface_distances(reference, prediction, spacing, [2])[2]
    alone = surface_distances(1 * (reference == 2), 1 * (prediction == 2), spacing, [1])[1]
    np.testing.assert_array_equal(both.reference_to_prediction, alone.reference_to_prediction)


def test_hd95_equals_monai():
    compared = 0
    for seed in range(80):
        reference, prediction, spacing = blobs(seed, 2)
        found = surface_distances(reference, prediction, spacing, [1, 2])
        masks = [torch.from_numpy(np.stack([m == 1, m == 2])[None]) for m in (prediction, reference)]
        theirs = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=list(spacing))
        for label, expected in zip((1, 2), theirs[0].numpy(), strict=True):
            if np.isfinite(expected):
                # MONAI interpolates the percentile in float32.
                assert surface_metrics(found[label])["HD95"] == pytest.approx(expected, rel=1e-5, abs=1e-5), seed
                compared += 1
    assert compared > 120


@pytest.mark.parametrize(
    ("reference", "spacing", "labels", "message"),
    [
        (np.zeros((4, 4), int), (1, 1, 1), [1], "spacing must be 2 positive numbers"),
        (np.zeros((4, 4), int), (1, 0), [1], "spacing must be 2 positive numbers"),
        (np.zeros((4, 4), int), (1, 1), [0], "labels must be positive"),
        (np.zeros((4, 4)), (1, 1), [1], "label maps hold integers"),
        (np.zeros((4, 5), int), (1, 1), [1], "must agree"),
    ],
)
def test_bad_arguments(reference, spacing, labels, message):
    with pytest.raises(ValueError, match=message):
        surface_distances(reference, np.zeros((4, 4), int), spacing, labels)
