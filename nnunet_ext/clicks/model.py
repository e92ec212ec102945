"""A promptable network with its way of preparing images: from an nnU-Net result folder or an official checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D
from nnunet_ext.checkpoints.viewer_folder import INFO
from nnunet_ext.clicks.prepared import PreparedImage
from nnunet_ext.clicks.prompted_object import PromptedObject
from nnunet_ext.clicks.viewer_session import SessionModel, open_in_session
from nnunet_ext.errors import UserError
from nnunet_ext.images import Image
from nnunet_ext.quiet import quiet_predictor


@dataclass(frozen=True)
class PromptModel:
    """What a session or a folder prediction needs.

    Attributes:
        network: in evaluation mode, on its device.
        prepare: image -> `nnunet_ext.clicks.prepared.PreparedImage`.
        labels: names and values; None if the model knows none, as official weights.
        channels: files per case.
        file_ending: of images and label maps.
        source: the folder or file it came from.
    """

    network: PromptableSAMMed3D
    prepare: Callable
    labels: Mapping[str, int] | None
    channels: int
    file_ending: str
    source: Path

    def begin(self, prepared: PreparedImage, start: np.ndarray | None = None) -> PromptedObject:
        """A new object in a prepared image, from nothing or from a mask on its grid."""
        return PromptedObject(self.network, prepared.volume, start)


def load_trained(
    folder: str | os.PathLike[str],
    fold: str | None = None,
    checkpoint: str = "checkpoint_final.pth",
    device: torch.device | str = "cpu",
    *,
    trust: bool = False,
) -> PromptModel | SessionModel:
    """Load one fold of a folder that nnUNetTrainerSAMMed3D or nnUNetTrainerInteractive trained.

    The latter, and other folders with an `inference_info.json`, run in the session of viewers.

    Args:
        folder: `nnUNet_results/DATASET/nnUNetTrainerSAMMed3D__PLANS__CONFIGURATION`.
        fold: such as "0" or "all"; None takes the first there is.
        checkpoint: name of the file in the fold's folder.
        device: where to run.
        trust: read the checkpoint as nnU-Net does, which runs whatever it holds.

    Raises:
        UserError: see `open_model_folder`; or another trainer, or images read by a reader that turns them.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_ext.clicks.prepared import PlannedImage
    from nnunet_ext.inference.model_folder import open_model_folder

    folder = Path(folder)
    with quiet_predictor():
        predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False, perform_everything_on_device=False)
    open_model_folder(predictor, folder, None if fold is None else (fold,), checkpoint, trust=trust)
    network = predictor.network
    if not isinstance(network, PromptableSAMMed3D):
        if (folder / INFO).is_file():
            return open_in_session(folder, fold, checkpoint, device, trust=trust)
        raise UserError(
            f"{folder} was trained by {predictor.trainer_name} and has no {INFO}; prompts need nnUNetTrainerSAMMed3D "
            "or nnUNetTrainerInteractive"
        )
    plans, configuration, dataset = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    if "Reorient" in plans.plans["image_reader_writer"]:
        raise UserError(
            f"{folder} reads images with {plans.plans['image_reader_writer']}, which turns them; not supported"
        )
    named = {name: value for name, value in dataset["labels"].items() if name not in ("background", "ignore")}
    # A region's value in label maps is nnU-Net's.
    labels = dict(zip(named, dataset.get("regions_class_order") or named.values(), strict=True))

    def prepare(image: Image) -> PlannedImage:
        return PlannedImage(image, plans, configuration, dataset)

    return PromptModel(
        network.to(device).eval(), prepare, labels, network.input_channels, dataset["file_ending"], folder
    )


def load_official(file: str | os.PathLike[str], device: torch.device | str = "cpu") -> PromptModel:
    """Load a checkpoint of the official code (`vit_b_ori`, such as `sam_med3d_turbo.pth`), read without running code.

    Raises:
        UserError: not readable, or of another network.
    """
    from nnunet_ext.checkpoints import load_strict, read_checkpoint
    from nnunet_ext.clicks.prepared import OfficialImage

    weights = read_checkpoint(file)
    network = PromptableSAMMed3D(1, 2)
    try:
        load_strict(network.sam, weights)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    size = network.sam.img_size
    return PromptModel(
        network.to(device).eval(), lambda image: OfficialImage(image, size), None, 1, ".nii.gz", Path(file)
    )
