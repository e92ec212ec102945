"""Folders of trained models of nnU-Net's own trainer, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


def unet(axes: int = 3, stages: int = 2) -> dict:
    """The `architecture` of a configuration: nnU-Net's U-Net for images of that many axes.

    Two stages have no deep supervision to train with, and give nnU-Net's loss weights of 0 / 0.
    """
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4, 8, 8][:stages],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * stages,
            "strides": [[1] * axes, *[[1, 2, 2][-axes:]] * (stages - 1)],
            "n_conv_per_stage": [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def resampling(what: str, order: int) -> dict:
    return {
        f"resampling_fn_{what}": "resample_data_or_seg_to_shape",
        f"resampling_fn_{what}_kwargs": {
            "is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None,
        },
    }  # fmt: skip


def plans(name: str = "Dataset990_Phantoms") -> dict:
    """Plans of one channel and a small U-Net, with all that prediction reads."""
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 32, 32],
        "spacing": [5.0, 2.2, 2.2],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": unet(),
        **resampling("data", 3),
        **resampling("seg", 1),
        **resampling("probabilities", 1),
    }
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def write_model(
    base: Path,
    dataset: dict,
    described: dict | None = None,
    configuration: str = "3d_fullres",
    folds: int = 1,
    mirroring: Sequence[int] = (0, 2),
) -> Path:
    """A model folder below `base` with random weights, one set per fold.

    Args:
        base: a folder.
        dataset: dataset.json.
        described: plans.json; None is `plans()`, for one channel.
        configuration: of the plans.
        folds: how many there are, from 0.
        mirroring: axes of test-time augmentation.
    """
    described = plans() if described is None else described
    model = base / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    model.mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(described))
    (model / "dataset.json").write_text(json.dumps(dataset))
    torch.manual_seed(0)
    manager = PlansManager(described)
    settings = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, settings, dataset)
    heads = manager.get_label_manager(dataset).num_segmentation_heads
    for fold in range(folds):
        network = nnUNetTrainer.build_network_architecture(manager, settings, channels, heads, False)
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": configuration},
            "inference_allowed_mirroring_axes": tuple(mirroring),
        }
        (model / f"fold_{fold}").mkdir()
        torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
    return model
