"""ExactFastPreprocessor gives nnU-Net what DefaultPreprocessor would, and nnU-Net finds it by the name in the plans."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.plans.preprocessor import ExactFastPreprocessor, _FastResampling

RESAMPLING = {
    f"resampling_fn_{what}{suffix}": value
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1))
    for suffix, value in (
        ("", "resample_data_or_seg_to_shape"),
        ("_kwargs", {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}),
    )
}


def plans(spacing, preprocessor, transpose=(0, 1, 2)):
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": preprocessor,
        "batch_size": 2,
        "patch_size": [16, 32, 32],
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        **copy.deepcopy(RESAMPLING),
    }
    return PlansManager(
        {
            "dataset_name": "Dataset990_Phantoms",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": list(transpose),
            "transpose_backward": list(np.argsort(transpose)),
            "configurations": {"3d_fullres": configuration},
            "foreground_intensity_properties_per_channel": {"0": {}},
            "label_manager": "LabelManager",
            "experiment_planner_used": "ExperimentPlanner",
        }
    )


def test_nnunet_finds_it_by_name():
    """Its results are compared in tests/inference/test_as_nnunet.py."""
    configuration = plans((1.0, 1.0, 1.0), "ExactFastPreprocessor").get_configuration("3d_fullres")
    assert configuration.preprocessor_class is ExactFastPreprocessor


@pytest.mark.parametrize("wanted", [[0, 1, 2, 9], [[1, 2], [2], (7, 9), [-1, 0, 1, 2, 7]]], ids=["labels", "regions"])
def test_the_same_places_are_drawn(wanted):
    """Training crops around these: the random numbers must be nnU-Net's."""
    seg = np.random.default_rng(0).choice([-1, 0, 1, 2, 7], (1, 30, 41, 43), p=[0.3, 0.5, 0.15, 0.04, 0.01])
    sample = "_sample_foreground_locations"
    expected, found = (getattr(c, sample)(seg, wanted) for c in (DefaultPreprocessor, ExactFastPreprocessor))
    assert found.keys() == expected.keys()
    for key, places in expected.items():
        np.testing.assert_array_equal(found[key], places)
        assert np.asarray(found[key]).dtype == np.asarray(places).dtype


def test_other_resampling_functions_of_the_plans_are_kept():
    manager = plans((1.0, 1.0, 1.0), "ExactFastPreprocessor")
    configuration = manager.get_configuration("3d_fullres").configuration
    configuration["resampling_fn_data"] = "resample_torch_fornnunet"
    configuration["resampling_fn_seg_kwargs"]["order"] = 3
    fast = _FastResampling(configuration)
    assert fast.resampling_fn_data.func.__name__ == "resample_torch_fornnunet"
    assert fast.resampling_fn_seg.func.__name__ == "resample_data_or_seg_to_shape"
