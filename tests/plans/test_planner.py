"""Planners as nnU-Net's unmodified command finds and runs them, on a data set whose fingerprint is written by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers import nnunet_dataset

from nnunet_ext import models
from nnunet_ext.discovery.lookup import load
from nnunet_ext.discovery.table import find
from nnunet_ext.errors import TrainingError
from nnunet_ext.plans import fit, interactive
from nnunet_ext.plans.memory import StepMemory, on_gpu

NAME = "Dataset990_Phantoms"
SHAPE, SPACING = (44, 90, 80), (2.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """nnU-Net's folders with one image, a fingerprint of a larger data set, and nnU-Net's own plans."""
    from nnunet_ext.data.phantoms import make_dataset

    base = tmp_path_factory.mktemp("planned")
    for name in nnunet_dataset.FOLDERS:
        (base / name).mkdir()
    raw = make_dataset(base / "nnUNet_raw" / NAME, num_training=1, num_test=0)
    description = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": 200}))
    write_fingerprint(base, SHAPE, SPACING)
    nnunet_dataset.run(base, "nnUNetv2_plan_experiment", "-d", "990")
    return base


@pytest.fixture
def here(base, monkeypatch):
    """The same, for planners made in this process."""
    for name in nnunet_dataset.FOLDERS:
        monkeypatch.setenv(name, str(base / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    return base / "nnUNet_preprocessed" / NAME


@pytest.fixture
def quick_memory(monkeypatch):
    """A stand-in for the estimate: a gigabyte of weights, a thousand bytes per voxel."""

    def estimate(model, arguments, channels, classes, patch, batch):
        return StepMemory(10**9, 0, 0, 1000 * math.prod(patch) * batch)

    monkeypatch.setattr(fit, "estimate", estimate)
    monkeypatch.setattr(interactive, "estimate", estimate)


def write_fingerprint(base, shape, spacing):
    folder = base / "nnUNet_preprocessed" / NAME
    folder.mkdir(exist_ok=True)
    statistics = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [list(spacing)] * 5,
        "shapes_after_crop": [list(shape)] * 5,
        "foreground_intensity_properties_per_channel": {"0": statistics},
        "median_relative_size_after_cropping": 1.0,
    }
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def plan(model, **options):
    planner = load(find(models.find(model).planner, "planner"))(NAME, **options)
    return planner.plan_experiment()["configurations"]


def by_command(base, model, *flags):
    """The plans that nnU-Net's own command writes, and their configurations."""
    planner = ("-pl", models.find(model).planner)
    nnunet_dataset.run(base, "nnUNetv2_plan_experiment", "-d", "990", *planner, *flags)
    path = base / "nnUNet_preprocessed" / NAME / f"nnUNet{models.find(model).suffix}Plans.json"
    plans = json.loads(path.read_text())
    return plans, plans["configurations"]


def test_by_the_unmodified_command(base):
    plans, configurations = by_command(base, "universeg", "-gpu_memory_target", "2")
    assert plans["experiment_planner_used"] == "nnUNetPlannerUniverSeg" and list(configurations) == ["2d"]
    planned = configurations["2d"]
    assert planned["architecture"]["network_class_name"] == models.find("universeg").network
    assert planned["preprocessor_name"] == "ExactFastPreprocessor"
    assert planned["data_identifier"] == "nnUNetPlans_2d"
    # Episodes: as many as fit, and no more than eight.
    arguments, patch = planned["architecture"]["arch_kwargs"], planned["patch_size"]
    batch = planned["batch_size"]
    needs = [on_gpu(fit.estimate("universeg", arguments, 1, 3, patch, n).total) for n in (batch, batch + 1)]
    assert 1 <= batch < 8 and needs[0] <= 2e9 < needs[1]


@pytest.mark.slow
def test_the_largest_patch_that_fits(base):
    """SegMamba's published size with these images at 4 GB: what is planned fits, and one step larger does not."""
    _, configurations = by_command(base, "segmamba", "-gpu_memory_target", "4")
    planned = configurations["3d_fullres"]
    patch, arguments = tuple(planned["patch_size"]), planned["architecture"]["arch_kwargs"]
    assert arguments["dims"] == [48, 96, 192, 384] and arguments["strides"][0] == [1, 2, 2]
    candidates = fit.patches(SPACING, SHAPE, 4)
    position = [candidate.size for candidate in candidates].index(patch)
    assert position > 0 and planned["batch_size"] == 2
    fits, too_large = (
        on_gpu(fit.estimate("segmamba", arguments, 1, 3, candidates[i].size, 2).total) for i in (position, position - 1)
    )
    assert fits <= 4e9 < too_large
    # The table of `nnunet_ext plan` says the same of nnU-Net's plans.
    flags = ("--model", "segmamba", "--memory", "4", "-c", "3d_fullres", "--json")
    (offer,) = json.loads(nnunet_dataset.run(base, "nnunet_ext", "plan", "-d", "990", *flags).stdout)
    assert (tuple(offer["fit"]["patch_size"]), offer["fit"]["batch_size"]) == (patch, 2)


@pytest.mark.parametrize("model", [model.name for model in models.OWN if model.planner])
def test_forms_and_names(here, quick_memory, model):
    planned = plan(model)
    volumes = {"3d_fullres"}
    expected = {"sam_med3d": volumes, "unetrpp": volumes, "interactive": volumes, "universeg": {"2d"}}
    assert set(planned) == expected.get(model, {"2d", "3d_fullres"})
    written = json.loads((here / f"nnUNet{models.find(model).suffix}Plans.json").read_text())
    assert all(
        c["architecture"]["network_class_name"] == models.find(model).network
        for c in written["configurations"].values()
    )
    if model == "sam_med3d":
        assert planned["3d_fullres"]["spacing"] == [1.5] * 3 and planned["3d_fullres"]["patch_size"] == [128] * 3


def test_preprocessed_data_are_used_again_only_where_equal(here, quick_memory):
    again = {name: f"nnUNetPlans_{name}" for name in ("2d", "3d_fullres")}
    own = {name: f"nnUNetSegMambaPlans_{name}" for name in again}
    found = {}
    found["equal"] = plan("segmamba")
    found["spacing"] = plan("segmamba", overwrite_target_spacing=[1.5, 1.5, 1.5])
    found["preprocessor"] = plan("segmamba", preprocessor_name="OtherPreprocessor")
    stock = here / "nnUNetPlans.json"
    kept = stock.read_text()
    try:
        stock.write_text(kept.replace("ZScoreNormalization", "CTNormalization"))
        found["normalisation"] = plan("segmamba")
        stock.unlink()
        found["no stock plans"] = plan("segmamba")
    finally:
        stock.write_text(kept)
    assert {why: {name: c["data_identifier"] for name, c in planned.items()} for why, planned in found.items()} == {
        why: again if why == "equal" else own for why in found
    }
    assert found["preprocessor"]["2d"]["preprocessor_name"] == "OtherPreprocessor"


@pytest.fixture
def of_shape(base):
    """Another fingerprint for one test."""
    yield lambda shape, spacing: write_fingerprint(base, shape, spacing)
    write_fingerprint(base, SHAPE, SPACING)


def test_refusals_are_one_line(here, quick_memory, of_shape):
    with pytest.raises(TrainingError, match=r"SegMamba base needs 1\.8 GB .* more than 0\.9 GB; raise the memory"):
        plan("segmamba", gpu_memory_target_in_gb=0.9)
    of_shape((1, 90, 80), (999.0, 1.0, 1.0))
    with pytest.raises(TrainingError, match="has images of two axes; UNETR\\+\\+ needs volumes"):
        plan("unetrpp")
    assert set(plan("segmamba", plans_name="flat")) == {"2d"}


def test_interactive_patches_leave_room_for_autozoom_where_images_are_flat(here, quick_memory, of_shape):
    """Eight slices: the patch is as deep as it has to be, the network pools what is there, and memory is for that."""
    of_shape((8, 180, 160), (10.0, 1.5, 1.5))
    planned = plan("interactive", gpu_memory_target_in_gb=3)["3d_fullres"]
    assert planned["patch_size"][0] == 64 and min(planned["patch_size"]) >= 64
    strides = np.prod(planned["architecture"]["arch_kwargs"]["strides"], axis=0)
    assert strides[0] <= 2 and strides[1] >= 16
    computed = 8 * planned["patch_size"][1] * planned["patch_size"][2]
    assert 1000 * computed * planned["batch_size"] < 1.1e9 < 1000 * 64 * computed / 8
    assert planned["spacing"] == [10.0, 1.5, 1.5] and planned["median_image_size_in_voxels"] == [8, 180, 160]
    with pytest.raises(TrainingError, match=r"early prompting needs 2\.\d GB .* with the smallest patch 64x"):
        plan("interactive", gpu_memory_target_in_gb=1.9)
    with pytest.raises(TrainingError, match="without resampling; leave out -overwrite"):
        plan("interactive", overwrite_target_spacing=[1, 1, 1])


def test_a_cascade_keeps_both_stages(here, quick_memory, of_shape):
    of_shape((200, 300, 300), (1.0, 1.0, 1.0))
    planned = plan("unetrpp", gpu_memory_target_in_gb=4)
    assert set(planned) == {"3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    assert all(low > full for low, full in zip(planned["3d_lowres"]["spacing"], (1.0, 1.0, 1.0), strict=True))
    assert all(planned[name]["batch_size"] == 2 for name in ("3d_fullres", "3d_lowres"))
    assert planned["3d_lowres"]["data_identifier"] == "nnUNetUNETRPPPlans_3d_lowres"


@pytest.mark.slow
def test_planned_and_preprocessed_in_one_command(tmp_path):
    """nnUNetv2_plan_and_preprocess -pl, after nnU-Net's own: nothing but plans is added."""
    folder = nnunet_dataset.make(tmp_path)
    before = {path.name for path in folder.iterdir()}
    flags = ("-d", "990", "-pl", "nnUNetPlannerUNETRPP", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    nnunet_dataset.run(tmp_path, "nnUNetv2_plan_and_preprocess", *flags)
    assert {path.name for path in folder.iterdir()} - before == {"nnUNetUNETRPPPlans.json"}
