"""Every transform against batchgeneratorsv2's own: the same draws from the same seed, and the same result."""

# ruff: noqa: NPY002 (batchgeneratorsv2 draws from the global generator)

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from helpers.augmentation import cloned, nnunet_transforms, patch_sample

from nnunet_ext.augmentation.convert import Pipeline, TransformFailed, _converted, convert
from nnunet_ext.augmentation.randomness import Random
from nnunet_ext.augmentation.spatial import Spatial

# What nnU-Net plans, in small: (patch, what the loader reads for it, channels, labels, what else).
SETTINGS = {
    "cube": ((24, 24, 24), (38, 38, 38), 4, 3, {}),
    "odd-sizes": ((17, 30, 23), (20, 41, 30), 1, 1, {}),
    "smaller-than-the-patch": ((24, 20, 22), (18, 40, 15), 2, 20, {}),
    "anisotropic-dummy-2d": ((6, 40, 36), (6, 57, 55), 2, 3, {}),
    "2d": ((48, 40), (68, 61), 3, 4, {}),
    "2d-uint8": ((33, 40), (30, 61), 1, 1, {"dtype": torch.uint8}),
    "regions-and-ignore": ((20, 24, 24), (30, 36, 35), 1, 4, {"regions": [(1, 2, 3), (2, 3), 3], "ignore": 4}),
    "cascade": ((20, 20, 20), (30, 31, 30), 1, 2, {"cascade": True}),
    "masked-int8": ((20, 20, 20), (30, 31, 30), 2, 2, {"mask": True, "dtype": torch.int8}),
}  # fmt: skip


def draws(setting, seeds):
    """For each seed: the transforms, and a sample to put through them."""
    patch, size, channels, labels, rest = SETTINGS[setting]
    dtype = rest.get("dtype", torch.int16)
    rest = {key: value for key, value in rest.items() if key != "dtype"}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        sample = patch_sample(size, channels, labels, rng, cascade="cascade" in rest, dtype=dtype)
        composed = nnunet_transforms(patch, labels=labels, **rest)
        if dtype == torch.uint8:  # which holds no -1
            composed.transforms[0].padding_value_seg = 0
        yield seed, composed, sample


def assert_same(found, expected, name):
    image, reference = found["image"], expected["image"]
    assert image.shape == reference.shape and image.dtype == reference.dtype, name
    error = (image - reference).abs().max().item() / (reference.max() - reference.min()).item()
    assert error <= 1e-5, f"{name}: images differ by {error:.1e} of their range"
    maps, references = (
        [x] if isinstance(x, torch.Tensor) else x for x in (found["segmentation"], expected["segmentation"])
    )
    assert len(maps) == len(references)
    for labels, others in zip(maps, references, strict=True):
        assert labels.dtype == others.dtype and torch.equal(labels, others), (
            f"{name}: {(labels != others).sum()} labels"
        )


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_transform_does_what_nnunets_does(setting):
    for seed, composed, sample in draws(setting, 8):
        # Before any draw: some of batchgeneratorsv2's transforms remember.
        steps = _converted(copy.deepcopy(composed.transforms))
        transforms = list(composed.transforms)
        if isinstance(steps[0], Spatial) and steps[0].planes:
            transforms[:3] = [ComposeTransforms(transforms[:3])]
        assert len(steps) == len(transforms)
        for number, (step, transform) in enumerate(zip(steps, transforms, strict=True)):
            np.random.seed(seed)
            torch.manual_seed(seed + number)
            random = Random(seed, seed + number)
            found = step(cloned(sample), random)
            sample = transform(**cloned(sample))
            assert_same(found, sample, f"{step.name}, seed {seed}")
            # Nothing more and nothing less was drawn.
            assert np.random.random_sample() == random.uniform() and torch.rand(1) == random.rand(1), step.name


def test_the_whole_augmentation_does_what_nnunets_does():
    for seed, composed, sample in draws("cube", 6):
        pipeline = convert(copy.deepcopy(composed))
        assert isinstance(pipeline, Pipeline) and not pipeline.unchanged
        np.random.seed(seed)
        torch.manual_seed(seed)
        expected = composed(**cloned(sample))
        assert_same(pipeline(cloned(sample), Random(seed, seed)), expected, f"seed {seed}")


@pytest.mark.parametrize("setting", ["cube", "smaller-than-the-patch", "anisotropic-dummy-2d", "2d"])
def test_what_a_patch_does_not_look_at_need_not_be_there(setting):
    for seed, composed, sample in draws(setting, 8):
        spatial = _converted(composed.transforms)[0]
        axes = len(spatial.patch_size)
        parameters = spatial.draw(sample["image"].shape, Random(seed, seed))
        window = spatial.window(
            sample["image"].shape[-axes:],
            **{"affine": parameters["affine"], "center": parameters["center_location_in_pixels"]},
        )
        part = tuple(slice(first, first + n) for first, n in zip(window.origin, window.shape, strict=True))
        read = {key: value[(..., *part)].clone() for key, value in sample.items()}
        expected, found = spatial.apply(cloned(sample), **parameters), spatial.apply(read, **parameters, window=window)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_ties_go_as_batchgeneratorsv2_breaks_them():
    """Half-voxel shifts put every border voxel exactly between two labels, some between four."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, (1, 12, 13, 14)).astype(np.int16))
    sample = {"image": torch.zeros(1, 12, 13, 14), "segmentation": labels}
    for size in ((12, 13, 14), (9, 9, 9), (16, 16, 16)):
        transform = SpatialTransform(size, 0, False, border_mode_seg="constant", padding_value_seg=-1)
        for affine in (np.eye(3), np.eye(3)[[2, 0, 1]], -np.eye(3), 0.5 * np.eye(3)):
            transform.p_scaling, transform.scaling = 1, (1, 1)
            parameters = transform.get_parameters(**sample)
            shift = [c - n / 2 for c, n in zip(parameters["center_location_in_pixels"], labels.shape[1:], strict=True)]
            grid = transform._get_base_grid_clone() @ torch.from_numpy(affine.T).float() + torch.tensor(shift)
            parameters["grid"] = (grid / (torch.tensor(labels.shape[1:]) / 2)).flip(-1)
            parameters["affine"] = affine
            expected = transform.apply(cloned(sample), **parameters)["segmentation"]
            assert torch.equal(Spatial(transform).apply(cloned(sample), **parameters)["segmentation"], expected)


class OwnTransform(ImageOnlyTransform):
    """A user's: doubles the image."""

    def _apply_to_image(self, img, **params):
        return img * 2


class OwnGamma(GammaTransform):
    """A user's: says nothing."""


def test_what_is_not_known_stays_as_it_is():
    elastic = SpatialTransform((8, 8), 0, False, p_elastic_deform=0.5)
    by_function = GammaTransform(lambda **_: 1.5, 0, False, 1, 1)
    known = GammaTransform((0.7, 1.5), 0, False, 1, 1)
    composed = ComposeTransforms(
        [elastic, RandomTransform(OwnTransform()), by_function, OwnGamma((1, 2), 0, False, 1, 1), known]
    )
    pipeline = convert(composed)
    assert pipeline.unchanged == ["SpatialTransform", "OwnTransform", "GammaTransform", "OwnGamma"]
    sample = {"image": torch.ones(1, 4, 4), "segmentation": torch.zeros(1, 4, 4, dtype=torch.int16)}
    assert torch.equal(pipeline.steps[1](sample, Random(0, 0))["image"], torch.full((1, 4, 4), 2.0))


def test_a_transform_that_fails_is_named():
    class Failing(ImageOnlyTransform):
        def _apply_to_image(self, img, **params):
            raise ValueError("no")

    pipeline = convert(ComposeTransforms([RandomTransform(Failing())]))
    with pytest.raises(TransformFailed, match="Failing") as caught:
        pipeline({"image": torch.ones(1, 4, 4)}, Random(0, 0))
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_constant_image_stays_finite():
    for transform in (GammaTransform((0.7, 1.5), 1, False, 1, 1), GammaTransform((0.7, 1.5), 0, False, 1, 0)):
        sample = {"image": torch.full((1, 5, 6, 7), 3.0), "segmentation": torch.zeros(1, 5, 6, 7, dtype=torch.int16)}
        torch.manual_seed(0), np.random.seed(0)
        expected = transform(**cloned(sample))
        assert torch.allclose(convert(transform)(sample, Random(0, 0))["image"], expected["image"], atol=1e-6)
