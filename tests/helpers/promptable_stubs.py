"""A promptable network whose answers are known, and a folder as training leaves it, without training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D

SIZES = {
    "img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "out_channels": 48,
    "window_size": 0, "global_attention": [], "iou_hidden": 8,
}  # fmt: skip


class Bright(PromptableSAMMed3D):
    """Answers every click with the bright voxels of the window; counts how often it encoded."""

    def __init__(self):
        super().__init__(1, 2, sizes={**SIZES, "img_size": 16, "patch_size": 4})
        self.encoded = 0
        self.seen: list = []

    def embed(self, x):
        self.encoded += 1
        return x

    def segment(self, embedding, points, low_res, patch):
        self.seen.append((None if points is None else points.labels[0].tolist(), low_res.clone()))
        return F.interpolate((embedding[:, :1] > 0.5).float() * 10 - 5, (16, 16, 16), mode="nearest-exact")


def trained_folder(base: Path, spacing=(2.0, 1.0, 1.0), labels=None, seed: int = 0) -> Path:
    """A result folder of nnUNetTrainerSAMMed3D with random weights: two labels, one channel, patch of 16x16x16."""
    labels = labels or {"background": 0, "liver": 1, "spleen": 2}
    architecture = {
        "network_class_name": "nnunet_ext.architectures.sam_med3d.PromptableSAMMed3D",
        "arch_kwargs": {"sizes": SIZES, "rounds": 3},
        "_kw_requires_import": [],
    }
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": False}
    configuration = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [16, 16, 16], "median_image_size_in_voxels": [16.0, 16.0, 16.0], "spacing": list(spacing),
        "normalization_schemes": ["NoNormalization"], "use_mask_for_norm": [False], "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling, "architecture": architecture,
    }  # fmt: skip
    plans = {
        "dataset_name": "Dataset007_Toy", "plans_name": "toy", "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": list(spacing), "original_median_shape_after_transp": [16, 16, 16],
        "transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0], "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration}, "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }  # fmt: skip
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    folder = base / "nnUNetTrainerSAMMed3D__toy__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    torch.manual_seed(seed)
    network = PromptableSAMMed3D(1, len(labels), sizes=SIZES, rounds=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    checkpoint = {
        "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainerSAMMed3D",
        "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": None,
    }  # fmt: skip
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def interactive_folder(base: Path, patch_size=(64, 64, 64)) -> Path:
    """A result folder of nnUNetTrainerInteractive with random weights."""
    from nnunet_ext.architectures.interactive.model import InteractiveNetwork
    from nnunet_ext.checkpoints.viewer_folder import write_viewer_folder

    other = trained_folder(base)
    plans = json.loads((other / "plans.json").read_text())
    plans["transpose_forward"] = plans["transpose_backward"] = [0, 1, 2]
    arguments = {"strides": [[1, 1, 1], [2, 2, 2]], "features": 4, "blocks": [1, 1]}
    plans["configurations"]["3d_fullres"].update(
        **{f"resampling_fn_{what}": "no_resampling_hack" for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": {} for what in ("data", "seg", "probabilities")},
        preprocessor_name="ViewerPreprocessor",
        patch_size=list(patch_size),
        normalization_schemes=["ZScoreNormalization"],
        architecture={
            "network_class_name": "nnunet_ext.architectures.interactive.InteractiveNetwork",
            "arch_kwargs": arguments,
            "_kw_requires_import": [],
        },
    )
    folder = base / "nnUNetTrainerInteractive__toy__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = json.loads((other / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(dataset))
    write_viewer_folder(folder, dataset)
    torch.manual_seed(0)
    network = InteractiveNetwork(1, **arguments)
    checkpoint = {
        "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainerInteractive",
        "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": None,
    }  # fmt: skip
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder
