"""Labels from logits on the image's own grid: those of nnU-Net's export, crop, transpose and regions included."""

from __future__ import annotations

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy import ndimage

from nnunet_ext.inference.export import segmentation_of_logits

ORGANS = {"labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}}


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


def test_another_order_of_the_plans_is_kept():
    """All else is compared in test_as_nnunet.py."""
    plans, configuration, labels = managers(ORGANS, [1.0, 1.0, 1.0], [0, 1, 2], order=3)
    noise = np.random.default_rng(0).standard_normal((5, 6, 10, 9))
    logits = torch.from_numpy((ndimage.gaussian_filter(noise, (0, 2, 2, 2)) * 20).astype(np.float16))
    properties = {
        "spacing": [0.7, 0.8, 0.9],
        "shape_before_cropping": (9, 14, 13),
        "shape_after_cropping_and_before_resampling": (8, 13, 12),
        "bbox_used_for_cropping": [[1, 9], [0, 13], [1, 13]],
    }
    arguments = (logits, plans, configuration, labels, properties)
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(*arguments)
    np.testing.assert_array_equal(segmentation_of_logits(*arguments), expected)
    assert len(np.unique(expected)) >= 3


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
