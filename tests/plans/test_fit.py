"""Patch and batch: nnU-Net's steps, the largest that fits, and no estimate more than needed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_ext.errors import TrainingError
from nnunet_ext.models.universeg import MODEL as UNIVERSEG
from nnunet_ext.plans import fit as module
from nnunet_ext.plans.fit import Data, first_fitting, fit, patches
from nnunet_ext.plans.memory import StepMemory, fits_gpu

SHAPES = {
    "isotropic": ((1.0, 1.0, 1.0), (138, 169, 138)),
    "thick slices": ((5.0, 0.8, 0.8), (55, 240, 256)),
    "two axes": ((0.3, 0.3), (540, 800)),
}


@pytest.mark.parametrize(("spacing", "median"), SHAPES.values(), ids=SHAPES)
def test_steps_are_those_of_nnunet(spacing, median):
    """nnU-Net's own search, with voxels in place of its feature maps, ends at the first of our patches that is small
    enough, for whatever it may use."""
    planner = ExperimentPlanner.__new__(ExperimentPlanner)
    vars(planner).update(
        dataset_json={"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}},
        dataset_fingerprint={"median_relative_size_after_cropping": 1.0},
        preprocessor_name="", UNet_max_features_2d=512, UNet_max_features_3d=320, UNet_base_num_features=32,
        UNet_featuremap_min_edge_length=4, UNet_class=ExperimentPlanner, UNet_min_batch_size=2,
        max_dataset_covered=0.05, UNet_blocks_per_stage_encoder=(2,) * 14, UNet_blocks_per_stage_decoder=(2,) * 13,
        UNet_reference_val_corresp_GB=1, UNet_reference_val_corresp_bs_2d=2, UNet_reference_val_corresp_bs_3d=2,
        UNet_reference_val_2d=1, UNet_reference_val_3d=1,
    )  # fmt: skip
    planner.static_estimate_VRAM_usage = lambda patch, *_: math.prod(map(int, patch))
    ours = patches(spacing, median)
    for voxels in np.geomspace(ours[0].voxels, ours[0].voxels / 40, 12):
        planner.UNet_vram_target_GB = voxels = voxels + 1  # not a rounding error below
        plan = planner.get_plans_for_configuration(np.array(spacing), np.array(median, float), "", 1e9, {})
        first = next(patch for patch in ours if patch.voxels <= voxels)
        assert tuple(map(int, plan["patch_size"])) == first.size
        assert plan["architecture"]["arch_kwargs"]["strides"] == first.strides


@pytest.mark.parametrize("poolings", [4, 5, None])
@pytest.mark.parametrize(("spacing", "median"), SHAPES.values(), ids=SHAPES)
def test_patches_can_be_pooled_and_do_not_exceed_the_image(spacing, median, poolings):
    found = patches(spacing, median, poolings)
    for patch in found:
        used = patch.strides if poolings is None else patch.strides[: poolings + 1]
        multiples = [math.prod(stride[axis] for stride in used) for axis in range(len(median))]
        assert all(n % m == 0 and n < whole + m for n, m, whole in zip(patch.size, multiples, median, strict=True))
    assert all(n >= whole for n, whole in zip(found[0].size, median, strict=True))
    voxels = [patch.voxels for patch in found]
    assert voxels == sorted(set(voxels), reverse=True) and min(found[-1].size) <= 16
    assert max(patches(spacing, median, poolings, largest=64)[0].size) == 64


def bowed(x):
    """Memory that is not quite linear."""
    return StepMemory(50, 50, 50, round(3 * x + x**1.3))


@pytest.mark.parametrize("budget", [100, 200, 500, 5_000, 50_000, 10_000_000])
def test_the_first_that_fits_with_few_estimates(budget):
    extents, asked = list(range(2000, 0, -3)), []

    def memory(i):
        asked.append(i)
        return bowed(extents[i])

    found = first_fitting(extents, memory, budget)
    expected = next((i for i, x in enumerate(extents) if bowed(x).total <= budget), None)
    assert found == expected and len(asked) < 12


CT = Data((1.0, 1.0, 1.0), (300, 400, 400), 300 * 400 * 400 * 100.0, 1, 3)


@pytest.fixture
def simple_memory(monkeypatch):
    """A gigabyte of weights and 300 bytes per voxel; returns what is asked for."""
    asked = []

    def estimate(model, arguments, channels, classes, patch, batch):
        asked.append((tuple(patch), batch))
        return StepMemory(10**9, 0, 0, 300 * math.prod(patch) * batch)

    monkeypatch.setattr(module, "estimate", estimate)
    return asked


def test_patch_before_batch(simple_memory):
    found = fit("segmamba", "base", CT, 24)
    budget = fits_gpu(24e9)
    need = 1e9 + 300 * math.prod(found.patch_size) * 2
    assert found.batch_size == 2 and 0.9 * budget < need <= budget and found.gigabytes <= 24
    # nnU-Net does not go beyond 256 cubed; these images do.
    large = fit("segmamba", "base", CT, 80)
    assert math.prod(large.patch_size) > 256**3


def test_the_rest_of_the_memory_is_for_the_batch(simple_memory):
    small = Data((1.0, 1.0, 1.0), (64, 64, 64), 64**3 * 10_000.0, 1, 3)
    found = fit("segmamba", "base", small, 8)
    assert found.patch_size == (64, 64, 64)
    assert 1e9 + 300 * 64**3 * found.batch_size <= fits_gpu(8e9) < 1e9 + 300 * 64**3 * (found.batch_size + 1)
    # But no batch sees more than a twentieth of the data set, nor fewer samples than two.
    few = Data((1.0, 1.0, 1.0), (64, 64, 64), 64**3 * 100.0, 1, 3)
    assert fit("segmamba", "base", few, 8).batch_size == 5
    fewest = Data((1.0, 1.0, 1.0), (64, 64, 64), 64**3 * 5.0, 1, 3)
    assert fit("segmamba", "base", fewest, 8).batch_size == 2


def test_networks_that_resize_their_input(simple_memory):
    slices = Data((1.0, 1.0), (240, 240), 240**2 * 1e5, 1, 3)
    assert fit("universeg", "base", slices, 80).batch_size == UNIVERSEG.batch_size
    assert max(fit("sam_med3d", "base", CT, 80).patch_size) == 128
    assert max(fit("sam_med3d", "tiny", CT, 80).patch_size) == 64
    assert fit("sam_med3d", "base", CT, 8, patch_size=(128, 128, 128)).patch_size == (128, 128, 128)


def test_nothing_fits(simple_memory):
    with pytest.raises(TrainingError, match=r"SegMamba tiny needs 1\.8 GB .* more than 1 GB; raise the memory target"):
        fit("segmamba", "tiny", CT, 1)
