"""plans.json and dataset.json read with the type of every value checked that planning and prediction use."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.json_object import JsonObject, is_number

# Wider windows exist on no disk, and more voxels would not fit any memory.
_WIDEST_PATCH, _LARGEST_PATCH = 1 << 15, 1 << 30
# No layer has so many channels and no network so many layers; more would only take time and memory until it fails.
_LARGEST_ARGUMENT = 1 << 24
_LARGEST_LABEL = 65535


def read_dataset_json(file: Path, remedy: str) -> dict[str, Any]:
    """A dataset.json with its channels and labels.

    Raises:
        UserError: it is missing or damaged; the message names the key.
    """
    about = JsonObject.read(file, remedy)
    channels = "modality" if "modality" in about.content else "channel_names"
    if not about.texts_by_key(channels):
        about.refuse(channels, "at least one channel")
    labels = about.object("labels")
    for name in labels.names():
        values = labels.content[name] if isinstance(labels.content[name], list) else [labels.content[name]]
        if not values or not all(_is_count(value, 0, _LARGEST_LABEL) for value in values):
            labels.refuse(name, f"a whole number from 0 to {_LARGEST_LABEL} or a list of them")
    if labels.content.get("background") != 0:
        labels.refuse("background", "0")
    about.optional_numbers("regions_class_order", whole=True)
    return about.content


def file_ending(about: JsonObject) -> str:
    """Of the images and label maps that a dataset.json describes.

    Raises:
        UserError: it is no ending.
    """
    ending = about.text("file_ending")
    if not re.fullmatch(r"(\.\w+)+", ending):
        about.refuse("file_ending", "the end of a file name such as .nii.gz")
    return ending


def channels_of(dataset: dict[str, Any]) -> int:
    """Of the images, without those of a previous stage; `dataset` as `read_dataset_json` gives it."""
    return len(dataset["modality"] if "modality" in dataset else dataset["channel_names"])


def read_plans(file: Path, remedy: str) -> JsonObject:
    """Plans whose configurations are objects that inherit from each other in no circle.

    Raises:
        UserError: the file is missing or damaged.
    """
    about = JsonObject.read(file, remedy)
    for name in about.object("configurations").names():
        inherited(about, name)
    return about


def num_outputs(file: Path, dataset: dict[str, Any]) -> int:
    """Channels of a network's output: labels with the background, or regions; `dataset` as read from `file`.

    Raises:
        UserError: nnU-Net cannot make sense of the labels.
    """
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    try:
        return int(LabelManager(dataset["labels"], dataset.get("regions_class_order")).num_segmentation_heads)
    except Exception as error:  # assertions and whatever its loops meet
        raise UserError(f"{file}: its labels cannot be used ({reason_of(error)}); restore it") from None


def inherited(about: JsonObject, name: str) -> JsonObject:
    """A configuration with what it inherits."""
    configurations = about.object("configurations")
    merged: dict[str, Any] = {}
    visited: list[str] = []
    parent: str | None = name
    while parent is not None:
        if parent in visited:
            raise UserError(f"{about.file}: configurations inherit in a circle: {', '.join(visited)}; {about.remedy}")
        visited.append(parent)
        found = configurations.object(parent)
        merged = {**found.content, **merged}
        parent = found.optional_text("inherits_from")
    return JsonObject(about.file, merged, f"configurations.{name}", about.remedy)


def check_planned(settings: JsonObject, channels: int) -> None:
    """What preprocessing, a network and prediction take out of a configuration.

    Args:
        settings: as `inherited` gives it.
        channels: of the data set's images.

    Raises:
        UserError: naming the key whose value is not of its kind, or too large for any network.
    """
    settings.text("preprocessor_name")
    settings.optional_text("previous_stage")
    check_patch(settings)
    if len(settings.texts("normalization_schemes")) != channels:
        settings.refuse("normalization_schemes", f"{channels}, as many as dataset.json has channels")
    masks = settings.content.get("use_mask_for_norm")
    if not isinstance(masks, list) or len(masks) != channels or not all(isinstance(mask, bool) for mask in masks):
        settings.refuse("use_mask_for_norm", f"a list of {channels} times true or false")
    for what in ("data", "seg", "probabilities"):
        settings.text(f"resampling_fn_{what}")
        settings.object(f"resampling_fn_{what}_kwargs")
    check_network(settings)


def check_patch(settings: JsonObject) -> None:
    """Refuse a patch or a spacing that no image has; raises as `check_planned`."""
    patch = settings.optional_numbers("patch_size", whole=True) or []
    if len(patch) not in (2, 3) or not all(1 <= n <= _WIDEST_PATCH for n in patch) or math.prod(patch) > _LARGEST_PATCH:
        settings.refuse("patch_size", "two or three whole numbers of voxels")
    spacing = settings.optional_numbers("spacing") or []
    if len(spacing) != len(patch) or not all(1e-6 <= step <= 1e6 for step in spacing):
        settings.refuse("spacing", f"{len(patch)} numbers above 0, as many as patch_size has")


def check_network(settings: JsonObject) -> None:
    """Refuse a network whose arguments are not what nnU-Net takes, or too large; raises as `check_planned`."""
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


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
