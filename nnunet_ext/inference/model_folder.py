"""Open the folder nnU-Net's training leaves: files checked, checkpoints read without running code, network built."""

from __future__ import annotations

import pydoc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.checkpoints.load import read_trusted, read_without_code
from nnunet_ext.discovery import lookup
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.inference.model_files import read_dataset_json, read_plans
from nnunet_ext.json_object import is_text, shown
from nnunet_ext.plans.network import network_builder

_OTHERWISE = "if you trust whoever made it, add --trust, which loads it as nnU-Net does and runs what it holds"


def open_model_folder(
    predictor: nnUNetPredictor,
    folder: Path,
    folds: Sequence[str | int] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    *,
    trust: bool = False,
    otherwise: str = _OTHERWISE,
) -> None:
    """Initialise a predictor with a trained model, as its own `initialize_from_trained_model_folder` does.

    Args:
        predictor: nnU-Net's or a subclass.
        folder: holds plans.json, dataset.json and the folders of the folds.
        folds: numbers or "all", whose predictions are averaged; None takes the first there is.
        checkpoint: name of the file in the folder of each fold.
        trust: read checkpoints as nnU-Net does, which runs whatever they hold, and call whatever the plans name.
        otherwise: what to do about a model that needs `trust`, for the message.

    Raises:
        UserError: a file is missing or damaged, a checkpoint holds more than tensors and plain values, or the files do
            not go together.
    """
    lookup.enable()
    dataset = read_dataset_json(folder)
    paths = _checkpoints(folder, folds, checkpoint)
    contents = [read_training_checkpoint(path, trust, otherwise) for path in paths]
    first, name = contents[0], contents[0]["init_args"]["configuration"]
    manager, settings = read_plans(folder, name, dataset)
    axes = first.get("inference_allowed_mirroring_axes")
    if axes is not None and not all(axis in range(len(settings.patch_size)) for axis in axes):
        raise UserError(f"{paths[0]} allows mirroring along the axes {shown(list(axes))}, which {name} does not have")
    weights = [content["network_weights"] for content in contents]
    if not trust:
        _check_trust(folder / "plans.json", settings, otherwise)
    network = _build(folder, first["trainer_name"], manager, settings, dataset, weights[0])
    # The first fold's last, because they stay.
    for path, parameters in reversed(list(zip(paths, weights, strict=True))):
        try:
            network.load_state_dict(parameters)
        except Exception as error:  # networks load in ways of their own
            raise UserError(f"{path} does not fit {folder / 'plans.json'} ({reason_of(error)[:300]})") from None
    predictor.manual_initialization(network, manager, settings, weights, dataset, first["trainer_name"], axes)


def _checkpoints(folder: Path, folds: Sequence[str | int] | None, checkpoint: str) -> list[Path]:
    there = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    for fold in folds or there[:1] or ["*"]:
        if str(fold) not in there:
            found = " ".join(there) or "none"
            raise UserError(f"{folder} holds no fold_{fold}/{checkpoint}; folds with {checkpoint}: {found}")
    return [folder / f"fold_{fold}" / checkpoint for fold in folds or there[:1]]


def read_training_checkpoint(path: Path, trust: bool = False, otherwise: str = _OTHERWISE) -> Mapping[str, Any]:
    """A checkpoint of nnU-Net's training, with the entries that prediction uses of the types nnU-Net gives them.

    Raises:
        UserError: it is missing, damaged, something else, or holds more than tensors and plain values without `trust`.
    """
    content = read_trusted(path) if trust else read_without_code(path, otherwise)

    def wrong(what: str) -> UserError:
        return UserError(f"{path} is no checkpoint of nnU-Net: {what}; restore it or train again")

    if not isinstance(content, Mapping):
        raise wrong(f"it holds {shown(content)}")
    arguments, weights = content.get("init_args"), content.get("network_weights")
    if not is_text(content.get("trainer_name")):
        raise wrong("trainer_name is no text")
    if not isinstance(arguments, Mapping) or not is_text(arguments.get("configuration")):
        raise wrong("init_args names no configuration")
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(key, str) for key in weights):
        raise wrong("network_weights holds no parameters by name")
    axes = content.get("inference_allowed_mirroring_axes")
    if axes is not None and not (isinstance(axes, (tuple, list)) and all(type(axis) is int for axis in axes)):
        raise wrong("inference_allowed_mirroring_axes is no list of axes")
    return content


def find_trainer(name: str, trained: str) -> Any:
    """The class of a trainer, wherever nnU-Net finds it.

    Args:
        name: of the class.
        trained: what it trained, for the message.

    Raises:
        UserError: it is not installed.
    """
    lookup.enable()
    try:
        return recursive_find_trainer_class_by_name(name)
    except Exception as error:  # the modules of plug-ins are imported on the way
        raise UserError(
            f"{trained} was trained by {shown(name)}, which is not installed here ({reason_of(error)[:300]})"
        ) from None


def _check_trust(plans: Path, settings: ConfigurationManager, otherwise: str) -> None:
    """Ask the class that plans name whether it would call more than classes of networks on their behalf.

    Raises:
        UserError: it would.
    """
    try:
        ask = getattr(pydoc.locate(settings.network_arch_class_name), "why_untrusted", None)
        reason = ask and ask(settings.network_arch_init_kwargs)
    except Exception as error:  # what they name is imported on the way
        raise UserError(f"{plans} describes a network that does not work ({reason_of(error)[:300]})") from None
    if reason:
        raise UserError(f"{plans} names {reason}; {otherwise}")


def _build(
    folder: Path,
    trainer_name: str,
    manager: PlansManager,
    settings: ConfigurationManager,
    dataset: dict[str, Any],
    weights: Mapping[str, Any],
) -> nn.Module:
    """The network the plans describe, not larger than its weights."""
    plans = folder / "plans.json"
    trainer = find_trainer(trainer_name, str(folder))
    inputs = determine_num_input_channels(manager, settings, dataset)
    outputs = manager.get_label_manager(dataset).num_segmentation_heads

    def build() -> Any:
        named = pydoc.locate(settings.network_arch_class_name)
        if named is not None and not (isinstance(named, type) and issubclass(named, nn.Module)):
            raise UserError(f"{settings.network_arch_class_name} is no network")
        return network_builder(trainer, manager, settings)(inputs, outputs, enable_deep_supervision=False)

    try:
        with torch.device("meta"):
            sketch = build()
        wanted = sum(parameter.numel() for parameter in sketch.parameters())
    except Exception:
        sketch, wanted = None, 0  # not every network can be built without memory; if there is more to it, see below
    stored = sum(value.numel() for value in weights.values() if isinstance(value, torch.Tensor))
    if wanted > stored:
        raise UserError(f"{plans} describes a network of {wanted} parameters; its checkpoint holds {stored}")
    try:
        if type(sketch).__module__.startswith("dynamic_network_architectures."):
            # Made of torch's own layers, which all compute without memory and time.
            _try_without_memory(sketch, (1, inputs, *settings.patch_size))
        network = build()
    except Exception as error:  # classes that plans name raise what they like
        raise UserError(f"{plans} describes a network that does not work ({reason_of(error)[:300]})") from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{plans}: {trainer_name} builds no network")
    return network


def _try_without_memory(sketch: nn.Module, shape: Sequence[int]) -> None:
    """Run a network on the meta device, so that shapes that do not go together are found before an image is read.

    Raises:
        Exception: the network's own.
    """
    try:
        sketch.eval()(torch.empty(*shape, device="meta"))
    except RuntimeError as error:
        # Seen now and then in torch 2.15 where one of its own tensors was on the CPU: that says nothing of the network.
        if "not on the expected device meta" not in str(error):
            raise
