"""The fast resampling equals nnU-Net's own: images within rounding, label maps voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from nnunet_ext.ops.resample import plain_image, plain_labels, resample_image, resample_labels

SHAPES = [
    ((20, 31, 26), (33, 17, 26)),  # up, down, unchanged
    ((9, 40, 33), (7, 52, 41)),
    ((1, 24, 30), (1, 15, 47)),  # one slice, as in 2d data
    ((12, 12, 12), (24, 24, 24)),  # an even factor: exact ties at every boundary
    ((5, 16, 2), (3, 8, 7)),
]


def image_of(shape, seed=0, offset=0.0):
    noise = np.random.default_rng(seed).standard_normal((2, *shape))
    return (ndimage.gaussian_filter(noise, (0, 1, 1, 1)) * 3 + offset).astype(np.float32)


def labels_of(shape, count=5, seed=0, dtype=np.int8):
    """Regions with smooth borders, and -1 as nnU-Net writes outside the nonzero region."""
    noise = np.random.default_rng(seed).standard_normal((count, *shape))
    regions = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5)).argmax(0)
    return (regions - 1)[None].astype(dtype)


@pytest.mark.parametrize("separate_axis", [None, 0, 1, 2])
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_images(old, new, order, separate_axis):
    image = image_of(old)
    found, expected = (f(image, new, order, separate_axis) for f in (resample_image, plain_image))
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * image.std()


@pytest.mark.parametrize("order_z", [1, 3])
def test_splines_along_the_coarse_axis(order_z):
    image = image_of((9, 20, 22))
    found, expected = (f(image, (14, 31, 17), 3, 0, order_z) for f in (resample_image, plain_image))
    assert np.abs(found - expected).max() <= 1e-5 * image.std()


def test_small_contrast_on_a_large_offset():
    """Unnormalised channels: results are at most neighbours in float32, whose step from 256 to 512 is 2^-15."""
    image = image_of((20, 31, 26), offset=300.0)
    assert np.abs(resample_image(image, (33, 17, 30)) - plain_image(image, (33, 17, 30))).max() <= 2**-15


@pytest.mark.parametrize("separate_axis", [None, 0])
@pytest.mark.parametrize("brightest", [1.0, 1e3, 1e5])
def test_error_is_a_share_of_the_range(brightest, separate_axis):
    """One bright voxel sets the error of all others: it is bounded by the range of the values, not by their SD."""
    image = image_of((24, 40, 36))
    image[:, 12, 20, 18] = brightest
    found, expected = (f(image, (31, 50, 29), 3, separate_axis) for f in (resample_image, plain_image))
    assert np.abs(found - expected).max() <= 2e-6 * np.ptp(image)
    if brightest > 1 and separate_axis is None:
        assert np.abs(found - expected).max() > 2e-5 * expected.std()


@pytest.mark.parametrize("separate_axis", [None, 0, 2])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_labels(old, new, dtype, separate_axis):
    labels = labels_of(old, dtype=dtype)
    found, expected = (f(labels, new, separate_axis) for f in (resample_labels, plain_labels))
    assert found.dtype == expected.dtype
    # Rational factors make exact ties, which nnU-Net leaves to the rounding of its scores.
    scores = np.stack([resample_image((labels == k).astype(float), new, 1, separate_axis) for k in range(-1, 4)])
    second, first = np.sort(scores, axis=0)[-2:]
    clear = first - second > 1e-9
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert clear.mean() > 0.5 and (found != expected).mean() < 0.05


def test_large_label_values_and_many_places_between_labels():
    """Random labels: nearly every voxel lies between labels, and rounding decides some equal weights."""
    labels = np.random.default_rng(0).choice([0, 7, 300, 40000], (1, 30, 40, 50)).astype(np.int32)
    found, expected = (f(labels, (43, 57, 61)) for f in (resample_labels, plain_labels))
    assert (found != expected).mean() < 1e-3
    assert set(np.unique(found)) <= {0, 7, 300, 40000}


def test_a_transposed_view_is_as_good_as_a_copy():
    labels = labels_of((14, 20, 17)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(resample_labels(labels, (20, 20, 30)), resample_labels(labels.copy(), (20, 20, 30)))


def test_nothing_to_do_returns_the_input():
    image, labels = image_of((4, 5, 6)), labels_of((4, 5, 6))
    assert resample_image(image, (4, 5, 6)) is image
    assert resample_labels(labels, (4, 5, 6)) is labels
