"""Labels from logits on the image's own grid: those of nnU-Net's export, crop, transpose and regions included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy import ndimage

from nnunet_ext.inference.export import segmentation_of_logits

ORGANS = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
}


def managers(description, spacing, transpose, order=1):
    arguments = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
    configuration = {
        "spacing": spacing,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": arguments,
        "architecture": {},
    }
    plans = PlansManager(
        {
            "dataset_name": "Dataset990_Phantoms",
            "transpose_forward": transpose,
            "transpose_backward": list(np.argsort(transpose)),
            "configurations": {"3d_fullres": configuration},
            "label_manager": "LabelManager",
        }
    )
    return plans, plans.get_configuration("3d_fullres"), plans.get_label_manager(description)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("description", [ORGANS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize(
    ("spacing", "transpose", "order"),
    [([1.0, 1.0, 1.0], [0, 1, 2], 1), ([6.0, 0.9, 1.1], [1, 0, 2], 1), ([1.0, 1.0, 1.0], [0, 1, 2], 3)],
    ids=["isotropic", "separate-z", "another-order"],
)
def test_equal_to_nnunets_export(spacing, transpose, order, description, dtype):
    plans, configuration, labels = managers(description, spacing, transpose, order)
    noise = np.random.default_rng(0).standard_normal((labels.num_segmentation_heads, 12, 20, 18))
    logits = torch.from_numpy((ndimage.gaussian_filter(noise, (0, 2, 2, 2)) * 20).astype(dtype))
    properties = {
        "spacing": [[0.7, 0.8, 0.9], [0.9, 5.0, 0.8]][transpose[0]],
        "shape_before_cropping": (16, 33, 29),
        "shape_after_cropping_and_before_resampling": (15, 31, 27),
        "bbox_used_for_cropping": [[1, 16], [0, 31], [2, 29]],
    }
    arguments = (plans, configuration, labels, properties)
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(logits, *arguments)
    found = segmentation_of_logits(logits, *arguments)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    # Both round resized logits to half precision, as predictions have them. Single-precision ones are not rounded, so a
    # voxel or two of 15,000, where two classes are equal to 1e-7, may differ from nnU-Net's double precision.
    assert (found != expected).mean() <= {np.float16: 0, np.float32: 2e-4}[dtype]
    assert len(np.unique(found)) >= 4


def test_equal_logits_go_to_the_first_class():
    plans, configuration, labels = managers(ORGANS, [1.0, 1.0, 1.0], [0, 1, 2])
    logits = np.zeros((5, 2, 3, 4), np.float16)
    logits[0], logits[2] = -0.0, 0.0
    properties = {
        "spacing": [1.0, 1.0, 1.0],
        "shape_before_cropping": (2, 3, 4),
        "shape_after_cropping_and_before_resampling": (2, 3, 4),
        "bbox_used_for_cropping": [[0, 2], [0, 3], [0, 4]],
    }
    assert not segmentation_of_logits(logits, plans, configuration, labels, properties).any()
