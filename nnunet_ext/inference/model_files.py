"""The dataset.json and plans.json of a trained model, checked before nnU-Net builds anything by them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.json_object import JsonObject, is_number

# Wider windows exist on no disk, and more voxels would not fit any memory.
_WIDEST_PATCH, _LARGEST_PATCH = 1 << 15, 1 << 30
# No layer has so many channels and no network so many layers; more would only take time and memory until it fails.
_LARGEST_ARGUMENT = 1 << 24
_LARGEST_LABEL = 65535
_REMEDY = "restore the model's folder"


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """dataset.json of a model folder, with the channels, labels and file ending that prediction uses.

    Raises:
        UserError: it is missing or damaged; the message names the key.
    """
    about = JsonObject.read(_existing(folder, "dataset.json"), _REMEDY)
    channels = "modality" if "modality" in about.content else "channel_names"
    if not about.texts_by_key(channels):
        about.refuse(channels, "at least one channel")
    if not re.fullmatch(r"(\.\w+)+", about.text("file_ending")):
        about.refuse("file_ending", "the end of a file name such as .nii.gz")
    labels = about.object("labels")
    for name in labels.names():
        values = labels.content[name] if isinstance(labels.content[name], list) else [labels.content[name]]
        if not values or not all(_is_count(value, 0, _LARGEST_LABEL) for value in values):
            labels.refuse(name, f"a whole number from 0 to {_LARGEST_LABEL} or a list of them")
    if labels.content.get("background") != 0:
        labels.refuse("background", "0")
    about.optional_numbers("regions_class_order", whole=True)
    return about.content


def channels_of(dataset: dict[str, Any]) -> int:
    """Of the images, without those of a previous stage; `dataset` as `read_dataset_json` gives it."""
    return len(dataset["modality"] if "modality" in dataset else dataset["channel_names"])


def read_plans(folder: Path, configuration: str, dataset: dict[str, Any]) -> tuple[PlansManager, ConfigurationManager]:
    """plans.json of a model folder and one of its configurations, as far as prediction uses them.

    What the plans name is looked up, and normalisation and resampling are tried on a few voxels, so that no case fails
    for what is wrong with the plans.

    Args:
        folder: of the model.
        configuration: such as 3d_fullres.
        dataset: as `read_dataset_json` gives it.

    Raises:
        UserError: the file is missing or damaged, names what is not installed, or does not go with the data set.
    """
    about = JsonObject.read(_existing(folder, "plans.json"), _REMEDY)
    about.text("image_reader_writer")
    about.optional_text("label_manager")
    forward, backward = (_order(about, f"transpose_{way}") for way in ("forward", "backward"))
    if [forward[axis] for axis in backward] != [0, 1, 2]:
        about.refuse("transpose_backward", f"the inverse of transpose_forward, which is {forward}")
    _check_configuration(_inherited(about, configuration), channels_of(dataset))
    key = "foreground_intensity_properties_per_channel"
    old = "foreground_intensity_properties_by_modality"
    intensities = about.object(old if key not in about.content and old in about.content else key)
    for channel in range(channels_of(dataset)):
        intensities.object(str(channel))

    manager = PlansManager(about.content)
    settings = _tried(about, "its configuration", lambda: manager.get_configuration(configuration))
    _tried(about, "its labels", lambda: manager.get_label_manager(dataset).num_segmentation_heads)
    _tried(about, "image_reader_writer", lambda: manager.image_reader_writer_class)
    if _tried(about, "preprocessor_name", lambda: settings.preprocessor_class) is None:
        raise UserError(f"{about.file} names the preprocessor {settings.preprocessor_name}, which is not installed")
    for channel in range(channels_of(dataset)):
        _tried(about, f"normalization_schemes[{channel}]", partial(_normalise, manager, settings, channel))
    for what in ("data", "seg", "probabilities"):
        _tried(about, f"resampling_fn_{what}", partial(_resample, settings, what))
    return manager, settings


def _existing(folder: Path, name: str) -> Path:
    for needed in ("plans.json", "dataset.json"):
        if not (folder / needed).is_file():
            raise UserError(
                f"{folder} holds no {needed}; give the folder that holds fold_0, plans.json and dataset.json"
            )
    return folder / name


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _order(about: JsonObject, key: str) -> list[int]:
    axes = about.optional_numbers(key, whole=True) or []
    if sorted(axes) != [0, 1, 2]:
        about.refuse(key, "an order of the axes 0, 1 and 2")
    return axes


def _inherited(about: JsonObject, name: str) -> JsonObject:
    """A configuration with what it inherits."""
    configurations = about.object("configurations")
    merged: dict[str, Any] = {}
    visited: list[str] = []
    parent: str | None = name
    while parent is not None:
        if parent in visited:
            raise UserError(f"{about.file}: configurations inherit in a circle: {', '.join(visited)}; {_REMEDY}")
        visited.append(parent)
        found = configurations.object(parent)
        merged = {**found.content, **merged}
        parent = found.optional_text("inherits_from")
    return JsonObject(about.file, merged, f"configurations.{name}", _REMEDY)


def _check_configuration(settings: JsonObject, channels: int) -> None:
    settings.text("preprocessor_name")
    settings.optional_text("previous_stage")
    patch = settings.optional_numbers("patch_size", whole=True) or []
    if len(patch) not in (2, 3) or not all(1 <= n <= _WIDEST_PATCH for n in patch) or math.prod(patch) > _LARGEST_PATCH:
        settings.refuse("patch_size", "two or three whole numbers of voxels")
    spacing = settings.optional_numbers("spacing") or []
    if len(spacing) != len(patch) or not all(1e-6 <= step <= 1e6 for step in spacing):
        settings.refuse("spacing", f"{len(patch)} numbers above 0, as many as patch_size has")
    if len(settings.texts("normalization_schemes")) != channels:
        settings.refuse("normalization_schemes", f"{channels}, as many as dataset.json has channels")
    masks = settings.content.get("use_mask_for_norm")
    if not isinstance(masks, list) or len(masks) != channels or not all(isinstance(mask, bool) for mask in masks):
        settings.refuse("use_mask_for_norm", f"a list of {channels} times true or false")
    for what in ("data", "seg", "probabilities"):
        settings.text(f"resampling_fn_{what}")
        settings.object(f"resampling_fn_{what}_kwargs")
    if "architecture" not in settings.content and "UNet_class_name" in settings.content:
        return  # the form of nnU-Net before 2.2, which it reads itself
    architecture = settings.object("architecture")
    architecture.text("network_class_name")
    arguments = architecture.object("arch_kwargs")
    for key in architecture.texts("_kw_requires_import"):
        arguments.optional_text(key)
        if key not in arguments.content:
            architecture.refuse("_kw_requires_import", "names out of arch_kwargs")
    for key in arguments.names():
        if not _is_modest(arguments.content[key]):
            arguments.refuse(key, f"values within -{_LARGEST_ARGUMENT} and {_LARGEST_ARGUMENT}")


def _is_modest(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_modest, value.values()))
    if isinstance(value, list):
        return all(map(_is_modest, value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return is_number(value) and abs(value) <= _LARGEST_ARGUMENT
    return True


def _tried(about: JsonObject, what: str, attempt: Callable[[], Any]) -> Any:
    """What `attempt` returns; it runs nnU-Net's code, or that of plug-ins, on what the plans say."""
    try:
        return attempt()
    except Exception as error:
        raise UserError(f"{about.file}: {what} cannot be used ({reason_of(error)}); {_REMEDY}") from None


def _normalise(manager: PlansManager, settings: ConfigurationManager, channel: int) -> None:
    place = Path(nnunetv2.__path__[0], "preprocessing", "normalization")
    scheme = settings.normalization_schemes[channel]
    found = find_class_by_name.recursive_find_python_class(str(place), scheme, "nnunetv2.preprocessing.normalization")
    if found is None:
        raise UserError(f"{scheme} is not installed")
    properties = manager.foreground_intensity_properties_per_channel[str(channel)]
    normaliser = found(use_mask_for_norm=settings.use_mask_for_norm[channel], intensityproperties=properties)
    result = normaliser.run(np.arange(8, dtype=np.float32).reshape(2, 2, 2) / 8, np.zeros((2, 2, 2), np.int8))
    if not np.isfinite(result).all():
        raise UserError(f"{scheme} gives values that are not finite")


def _resample(settings: ConfigurationManager, what: str) -> None:
    resample = getattr(settings, f"resampling_fn_{what}")
    few: np.ndarray = np.zeros((1, 2, 4, 4), np.float32)
    found = resample(few, (2, 5, 5), (1.0, 1.25, 1.25), (1.0, 1.0, 1.0))
    if tuple(found.shape) != (1, 2, 5, 5):
        raise UserError(f"it gives the shape {tuple(found.shape)} for (1, 2, 5, 5)")
