"""The dataset.json and plans.json of a trained model, tried before nnU-Net builds anything by them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
from nnunetv2.utilities import find_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.json_object import JsonObject
from nnunet_ext.plans import files as plans_files
from nnunet_ext.plans.files import channels_of, check_planned, file_ending, inherited

_REMEDY = "restore the model's folder"
# nnU-Net's function that gives back what it gets, and what plans name functions for.
_UNCHANGED, _RESAMPLED = "no_resampling_hack", ("data", "seg", "probabilities")


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """dataset.json of a model folder, with the channels, labels and file ending that prediction uses.

    Raises:
        UserError: it is missing or damaged; the message names the key.
    """
    file = _existing(folder, "dataset.json")
    content = plans_files.read_dataset_json(file, _REMEDY)
    file_ending(JsonObject(file, content, remedy=_REMEDY))
    return content


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
    check_planned(inherited(about, configuration), channels_of(dataset))
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


def _order(about: JsonObject, key: str) -> list[int]:
    axes = about.optional_numbers(key, whole=True) or []
    if sorted(axes) != [0, 1, 2]:
        about.refuse(key, "an order of the axes 0, 1 and 2")
    return axes


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
    # Plans of viewers' voxels resample nothing at all.
    kept = all(settings.configuration.get(f"resampling_fn_{each}") == _UNCHANGED for each in _RESAMPLED)
    if tuple(found.shape) != ((1, 2, 4, 4) if kept else (1, 2, 5, 5)):
        raise UserError(f"it gives the shape {tuple(found.shape)} for (1, 2, 5, 5)")
