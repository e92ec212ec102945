"""SAM-Med3D's published weights as a model folder, which viewers and `nnunet_ext predict-prompts` open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunet_ext import models
from nnunet_ext.checkpoints.sam_med3d import INTERACTIONS
from nnunet_ext.checkpoints.viewer_folder import write_viewer_folder
from nnunet_ext.files import atomic_folder, write_json
from nnunet_ext.plans.network import network_arguments


def write_published_folder(
    folder: str | os.PathLike[str],
    weights: Mapping[str, Tensor],
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
) -> None:
    """Write the folder, with one fold.

    The weights saw arrays in (x, y, z) order and windows normalised one by one: the folder's plans say so.

    Args:
        folder: must not exist yet.
        weights: of a `PromptableSAMMed3D` that was built for the plans.
        plans, configuration, dataset_json: of the data set.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    model = models.find("sam_med3d")
    assert model.weights is not None
    settings = PlansManager(dict(plans)).get_configuration(configuration)
    arguments = {**network_arguments("sam_med3d", settings), "normalise_windows": True}
    architecture: dict[str, Any] = {
        "network_class_name": model.network,
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }
    described = {
        **plans,
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "configurations": {configuration: {**settings.configuration, "architecture": architecture}},
    }
    checkpoint = {
        "network_weights": dict(weights),
        "trainer_name": model.trainers[0].name,
        "init_args": {"configuration": configuration},
        "inference_allowed_mirroring_axes": None,
    }
    with atomic_folder(folder) as temporary:
        write_json(temporary / "plans.json", described)
        write_json(temporary / "dataset.json", dict(dataset_json))
        write_viewer_folder(temporary, {"licence": model.weights.licence}, INTERACTIONS)
        (temporary / "fold_0").mkdir()
        torch.save(checkpoint, temporary / "fold_0" / "checkpoint_final.pth")
