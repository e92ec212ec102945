"""Fusion: labels equal to SimpleITK's, fast equal to plain, and what happens where votes leave no choice."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.sampled_maps import sampled_label_maps

from nnunet_ext.diffusion.fusion import fuse, majority, staple
from nnunet_ext.diffusion.fusion_plain import staple_plain
from nnunet_ext.diffusion.votes import vote_patterns

UNDECIDED = 99


def by_simpleitk(name: str, labels: np.ndarray) -> np.ndarray:
    itk = getattr(sitk, name)()
    if name == "STAPLEImageFilter":
        itk.SetForegroundValue(1)
    else:
        itk.SetLabelForUndecidedPixels(UNDECIDED)
    return sitk.GetArrayFromImage(itk.Execute([sitk.GetImageFromArray(sample) for sample in labels]))


@pytest.mark.parametrize("samples, noise", [(2, 0.3), (3, 1.0), (5, 0.3), (10, 0.6)])
def test_masks_as_simpleitk(samples, noise):
    labels = sampled_label_maps((14, 16, 18), samples, 2, noise=noise, seed=samples)
    found = staple(labels)
    expected = by_simpleitk("STAPLEImageFilter", labels)
    # Both stop at changes below 1e-7, and ours are given in single precision.
    np.testing.assert_allclose(found.probabilities(2)[1], expected, atol=1e-6)
    np.testing.assert_array_equal(found.labels, expected > 0.5)
    np.testing.assert_array_equal(found.labels, staple_plain(labels))


def test_sensitivity_and_specificity_as_simpleitk():
    labels = sampled_label_maps((14, 16, 18), 6, 2)
    itk = sitk.STAPLEImageFilter()
    itk.Execute([sitk.GetImageFromArray(sample) for sample in labels])
    found = staple(labels)
    np.testing.assert_allclose(found.confusion[:, 1, 1], itk.GetSensitivity(), atol=1e-9)
    np.testing.assert_allclose(found.confusion[:, 0, 0], itk.GetSpecificity(), atol=1e-9)


# Two samples tie wherever they differ, ten often; a gap in the labels moves ITK's count of ties.
@pytest.mark.parametrize("samples, labels, noise", [(2, 4, 0.5), (3, 5, 1.0), (4, 3, 0.8), (7, 4, 0.3), (10, 5, 1.0)])
@pytest.mark.parametrize("values", [(0, 1, 2, 3, 4), (0, 2, 3, 7, 8)], ids=str)
def test_labels_as_simpleitk(samples, labels, noise, values):
    maps = sampled_label_maps((14, 14, 14), samples, labels, noise=noise, seed=samples)
    maps = np.array(values, dtype=np.uint8)[maps]
    found = staple(maps, undecided=UNDECIDED)
    np.testing.assert_array_equal(found.labels, by_simpleitk("MultiLabelSTAPLEImageFilter", maps))
    np.testing.assert_array_equal(staple(maps).labels, staple_plain(maps))
    np.testing.assert_allclose(found.probabilities(9).sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("samples", [2, 3, 4, 10])
def test_majority_as_simpleitk(samples):
    labels = sampled_label_maps((10, 12, 14), samples, 4, noise=1.0)
    expected = by_simpleitk("LabelVotingImageFilter", labels)
    assert (expected == UNDECIDED).any()
    np.testing.assert_array_equal(majority(labels, undecided=UNDECIDED), expected)
    # Without such a label, the smallest of those with most votes.
    votes = (labels[None] == np.arange(4).reshape(-1, 1, 1, 1, 1)).sum(1)
    np.testing.assert_array_equal(majority(labels), votes.argmax(0))


@pytest.mark.parametrize("value", [0, 1, 5])
@pytest.mark.parametrize("samples", [1, 4])
def test_one_label_alone(value, samples):
    labels = np.full((samples, 3, 4), value, dtype=np.uint8)
    found = staple(labels)
    assert np.array_equal(found.labels, labels[0]) and found.iterations == 0
    assert found.probabilities(6)[value].min() == 1
    assert np.array_equal(staple_plain(labels), labels[0]) and np.array_equal(majority(labels), labels[0])


@pytest.mark.parametrize("labels", [2, 4])
def test_samples_that_agree(labels):
    one = sampled_label_maps((6, 7, 8), 1, labels)
    found = staple(np.repeat(one, 5, axis=0))
    np.testing.assert_array_equal(found.labels, one[0])
    assert found.probabilities(labels).max(0).min() == 1


def test_samples_that_never_agree():
    """Three samples, three labels, no two alike: nothing is more probable, so the smallest label stands."""
    labels = np.stack([np.full((4, 4), k) for k in (1, 2, 3)]).astype(np.uint8)
    assert (majority(labels) == 1).all() and (majority(labels, undecided=0) == 0).all()
    assert (staple(labels).labels == staple_plain(labels)).all()


def test_one_empty_sample_among_full_ones():
    labels = np.ones((5, 3, 3), dtype=np.uint8)
    labels[2] = 0
    labels[:, 0] = 0
    found = staple(labels)
    np.testing.assert_array_equal(found.labels, labels[0])
    assert np.isfinite(found.confusion).all() and found.confusion[2, 1, 1] < 1e-6


def test_a_bad_sample_among_good_ones_is_outvoted_by_reliability():
    """Two good samples against three that share errors elsewhere: STAPLE learns who is who, the majority cannot."""
    rng = np.random.default_rng(0)
    truth = rng.random(4000) < 0.5
    flip = [0.02, 0.02, 0.4, 0.4, 0.4]
    labels = np.stack([truth ^ (rng.random(4000) < rate) for rate in flip]).astype(np.uint8)
    assert (staple(labels).labels == truth).mean() > (majority(labels) == truth).mean() + 0.05


def test_products_over_many_samples_do_not_vanish():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 200)
    right = rng.random((2000, 200)) < 0.5
    labels = np.where(right, truth, rng.integers(0, 3, (2000, 200))).astype(np.uint8)
    found = staple(labels)
    np.testing.assert_array_equal(found.labels, truth)
    assert found.weights.max(axis=1).min() > 0.999


@pytest.mark.parametrize("samples, labels", [(3, 2), (10, 14), (60, 200)])
def test_patterns_know_every_voxel(samples, labels):
    """60 samples of 200 labels do not fit in one 64-bit code."""
    rng = np.random.default_rng(1)
    maps = rng.integers(0, labels, (samples, 300)).astype(np.uint8)
    maps[:, :200] = maps[:1, :200]  # unanimous
    maps[:, 250:] = maps[:, 200:250]  # twice the same
    maps[1:, 249] = maps[1:, 248]  # differ by the first sample alone
    patterns = vote_patterns(maps)
    np.testing.assert_array_equal(patterns.look_up(patterns.votes), maps.T)
    assert patterns.counts.sum() == 300 and len(np.unique(patterns.votes, axis=0)) == len(patterns.votes)


@pytest.mark.parametrize("grid", [(6, 7), (4, 5, 6)], ids=str)
def test_fuse_probabilities(grid):
    logits = torch.randn(5, 3, *grid, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(1)
    labels = probabilities.argmax(1).to(torch.uint8).numpy()
    torch.testing.assert_close(fuse(probabilities), probabilities.mean(0))
    np.testing.assert_array_equal(fuse(probabilities, "majority").argmax(0), majority(labels))
    fused = fuse(probabilities, "staple")
    torch.testing.assert_close(fused, torch.from_numpy(staple(labels).probabilities(3)))
    assert fused.shape == (3, *grid) and fused.dtype == probabilities.dtype


def test_fuse_regions_one_by_one():
    probabilities = torch.rand(5, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    masks = (probabilities > 0.5).numpy()
    fused = fuse(probabilities, "staple", regions=True)
    for k in range(2):
        np.testing.assert_array_equal(fused[k] > 0.5, staple(masks[:, k]).labels)
    torch.testing.assert_close(fuse(probabilities, "majority", regions=True), torch.from_numpy(masks).float().mean(0))


def test_bad_input():
    with pytest.raises(ValueError, match="expected one of mean, majority, staple"):
        fuse(torch.zeros(2, 2, 3, 3), "median")
    with pytest.raises(ValueError, match="expected \\(samples, classes"):
        fuse(torch.zeros(0, 2, 3, 3))
    with pytest.raises(ValueError, match="whole numbers from 0"):
        staple(np.full((2, 3), -1))
    with pytest.raises(ValueError, match="whole numbers from 0"):
        majority(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least one voxel"):
        staple(np.zeros((3, 0), dtype=np.uint8))
