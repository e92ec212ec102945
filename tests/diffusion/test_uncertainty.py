"""Uncertainty: hand-made numbers, fast equal to plain, and the empty cases of every definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.sampled_maps import sampled_label_maps

from nnunet_ext.diffusion.uncertainty import (
    agreement,
    calibration_error,
    ged_squared,
    maps_of_probabilities,
    maps_of_votes,
    overlaps,
    pairwise_dice,
    pairwise_distance,
    vote_confidence,
)


def one_hot(labels: np.ndarray, classes: int) -> torch.Tensor:
    """(R, classes, *grid)."""
    return torch.from_numpy(np.stack([labels == k for k in range(classes)], axis=1).astype(np.float32))


def test_votes_are_probabilities_of_0_and_1():
    """Within the rounding of maps in single precision, as below."""
    labels = sampled_label_maps((6, 8, 10), 7, 4, noise=1.0)
    votes, probabilities = maps_of_votes(labels), maps_of_probabilities(one_hot(labels, 4))
    np.testing.assert_allclose(votes.entropy, probabilities.entropy, atol=1e-6)
    np.testing.assert_allclose(votes.variance, probabilities.variance, atol=1e-6)
    np.testing.assert_allclose(probabilities.mutual_information, probabilities.entropy, atol=1e-6)
    assert votes.entropy.shape == (6, 8, 10) and votes.entropy.dtype == np.float32


def test_maps_by_hand():
    """Two samples of one voxel each: certain and opposed, then equal and unsure."""
    opposed = maps_of_probabilities(torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]]))
    unsure = maps_of_probabilities(torch.full((2, 2, 1), 0.5))
    for maps, variance, mutual in ((opposed, 0.25, math.log(2)), (unsure, 0.0, 0.0)):
        assert maps.entropy[0] == pytest.approx(math.log(2))
        assert maps.variance[0] == pytest.approx(variance)
        assert maps.mutual_information[0] == pytest.approx(mutual, abs=1e-6)


def test_one_region_is_two_classes():
    p = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    regions, classes = maps_of_probabilities(p, regions=True), maps_of_probabilities(torch.cat((1 - p, p), 1))
    for name in ("entropy", "variance", "mutual_information"):
        np.testing.assert_allclose(getattr(regions, name), getattr(classes, name), atol=1e-6)


def test_overlaps_as_counted():
    labels = sampled_label_maps((6, 7, 8), 5, 4, noise=1.0)
    targets = (1, 3, (1, 2), 9)
    found = overlaps(labels, targets)
    for target, overlap in zip(targets, found, strict=True):
        masks = [np.isin(label, target) for label in labels]
        expected = [[(a & b).sum() for b in masks] for a in masks]
        np.testing.assert_array_equal(overlap, expected)


def test_ged_as_in_its_definition():
    maps = sampled_label_maps((6, 7, 8), 7, 2, noise=1.0)
    overlap = overlaps(maps, (1,))[0]

    def mean_distance(a, b, skip=False):
        values = []
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                union = np.logical_or(x, y).sum()
                if not (skip and i == j):
                    values.append(1 - np.logical_and(x, y).sum() / union if union else 0.0)
        return np.mean(values) if values else 0.0

    for split in (4, 6):
        s, y = maps[:split], maps[split:]
        for unbiased in (False, True):
            within = mean_distance(s, s, unbiased) + mean_distance(y, y, unbiased)
            expected = 2 * mean_distance(s, y) - within
            assert ged_squared(overlap, split, unbiased=unbiased) == pytest.approx(expected, abs=1e-12)


def test_ged_of_known_sets():
    a, b, empty = np.eye(3, dtype=np.uint8)[0], np.eye(3, dtype=np.uint8)[1], np.zeros(3, np.uint8)

    def ged(samples, references):
        return ged_squared(overlaps(np.stack([*samples, *references]), (1,))[0], len(samples))

    assert ged([a, b], [a, b]) == 0 and ged([a], [a]) == 0
    assert ged([a], [b]) == 2 and ged([empty], [a]) == 2
    assert ged([a, empty], [a, empty]) == 0  # two empty maps are alike
    assert math.isnan(ged([empty, empty], [empty]))
    with pytest.raises(ValueError, match="one reference"):
        ged([a, b], [])


def test_agreement_by_hand():
    maps = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=np.uint8)
    assert agreement(overlaps(maps, (1,))[0]) == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert agreement(overlaps(maps[[0, 0]], (1,))[0]) == 1
    assert math.isnan(agreement(overlaps(maps, (2,))[0])) and math.isnan(agreement(overlaps(maps[:1], (1,))[0]))
    # Two maps without the structure agree, when another has it.
    assert pairwise_dice(overlaps(maps[[0, 2, 2]], (1,))[0])[1, 2] == 1
    assert pairwise_distance(overlaps(maps[[0, 2, 2]], (1,))[0])[1, 2] == 0


def test_calibration_by_hand():
    confidence = np.array([0.9, 0.9, 0.6, 0.6], dtype=np.float32)
    assert calibration_error(confidence, np.array([1, 1, 1, 0.0])) == pytest.approx((2 * 0.1 + 0.2) / 4, abs=1e-6)
    assert calibration_error(confidence, np.array([1, 0.8, 0.6, 0.6])) == pytest.approx(0, abs=1e-6)
    # Over and under in one bin cancel, in two they do not.
    assert calibration_error(np.array([0.55, 0.75]), np.array([0.75, 0.55]), bins=1) == pytest.approx(0)
    assert calibration_error(np.array([0.55, 0.75]), np.array([0.75, 0.55])) == pytest.approx(0.2)
    assert math.isnan(calibration_error(confidence[:0], confidence[:0]))


def test_shares_of_ten_votes_fall_into_ten_bins():
    """k votes of 10 are the upper border of bin k; rounding must not move them."""
    shares = (np.arange(1, 11, dtype=np.float32) / np.float32(10)).repeat(2)
    alternating = np.where(np.arange(20) % 2, 1.0, -1.0) * 0.05
    assert calibration_error(shares, shares + alternating) == pytest.approx(0, abs=1e-6)
    assert calibration_error(shares, shares + 0.05 * np.where(np.arange(20) // 2 % 2, 1, -1)) == pytest.approx(0.05)


def test_confidence_of_votes():
    labels = np.array([[0, 1, 2], [0, 1, 1], [0, 1, 0], [0, 2, 0]], dtype=np.uint8)
    predicted, confidence = vote_confidence(labels)
    assert predicted.tolist() == [0, 1, 0] and confidence.tolist() == [1, 0.75, 0.5]
