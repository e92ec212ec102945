"""Write plans that name one of our networks, reusing data that are preprocessed already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_ext import models
from nnunet_ext.datasets import find_dataset
from nnunet_ext.errors import UserError
from nnunet_ext.files import write_json
from nnunet_ext.json_object import JsonObject
from nnunet_ext.plans.estimate import estimate
from nnunet_ext.plans.files import channels_of, check_patch, num_outputs, read_dataset_json, read_plans
from nnunet_ext.plans.fit import Data, fit
from nnunet_ext.plans.memory import on_gpu, sketch
from nnunet_ext.plans.network import arguments_for_patch, check_preprocessor, count_parameters
from nnunet_ext.plans.offer import planned_data

# nnU-Net's preprocessor and the one of equal output that takes its place in our plans.
PREPROCESSOR, FAST_PREPROCESSOR = "DefaultPreprocessor", "ExactFastPreprocessor"
_REMEDY = "restore it, or plan again with nnUNetv2_plan_and_preprocess"


@dataclass(frozen=True)
class Planned:
    """One configuration of the plans just written; `gigabytes` are estimated for training on a GPU."""

    configuration: str
    patch_size: tuple[int, ...]
    batch_size: int
    arguments: dict[str, Any]
    parameters: int
    preprocessed: bool
    gigabytes: float


def preprocessed_folder(dataset: str) -> Path:
    """Folder of a data set, given by name or number, under nnUNet_preprocessed.

    Raises:
        UserError: as `find_dataset`.
    """
    return find_dataset(dataset, "nnUNet_preprocessed", remedy=f"run nnUNetv2_plan_and_preprocess -d {dataset} first")


def write_plans(
    dataset: str,
    model: str | models.Model,
    size: str,
    *,
    base_plans: str = "nnUNetPlans",
    configurations: Sequence[str] | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    gpu_gigabytes: float | None = None,
    plans_name: str | None = None,
    progress: bool = False,
    dry_run: bool = False,
) -> tuple[Path, list[Planned]]:
    """Derive plans for `model` from nnU-Net's plans of the same data set.

    Spacing, normalisation and preprocessed folders stay those of `base_plans`, so nothing is preprocessed again; what
    is preprocessed later, and every predicted image, goes through `ExactFastPreprocessor`, whose output is equal.

    Args:
        dataset: name or number.
        model: name of the model, or its row.
        size: one of its sizes.
        base_plans: name of existing plans.
        configurations: which to keep; None keeps all that the network has a form for.
        patch_size: voxels per axis in the plan's axis order, for all kept configurations of that many axes.
        batch_size: samples per step, for all kept configurations; None keeps those planned, or the network's own.
        gpu_gigabytes: choose the patch, and the batch where none is given, to fit a GPU of this size, 1e9 bytes each.
        plans_name: None makes `base_plans` + model + size, and the GPU's size if one is given.
        progress: show a bar on stderr when it takes long.
        dry_run: write nothing.

    Returns:
        The file written, and what it plans.

    Raises:
        UserError: base plans missing, unknown configuration, a patch that does not fit, or nothing that fits the GPU.
    """
    if gpu_gigabytes is not None and patch_size:
        raise UserError("--gpu-memory-target chooses the patch; leave out --patch-size")
    row = models.find(model)
    folder = preprocessed_folder(dataset)
    description = read_description(folder)
    channels, outputs = channels_of(description), num_outputs(folder / "dataset.json", description)
    plans = read_base_plans(folder, base_plans, dataset)
    chosen = _choose(plans, model, configurations, base_plans)
    for name in chosen:
        check_preprocessor(row, base_plans, folder.name, plans["configurations"][name])
    suffix = "" if gpu_gigabytes is None else f"{gpu_gigabytes:g}GB"
    plans["plans_name"] = checked_name(plans_name or f"{base_plans}{row.suffix}{size.capitalize()}{suffix}")

    planned = []
    for name in tqdm(chosen, desc="plan", unit="configuration", delay=2, leave=False, disable=not progress):
        configuration = plans["configurations"][name]
        if gpu_gigabytes is not None:
            fitted = fit(model, size, _data(plans, name, description, outputs), gpu_gigabytes, batch_size=batch_size)
            configuration["batch_size"] = fitted.batch_size
            _set_patch(configuration, fitted.patch_size, name)
        else:
            configuration["batch_size"] = batch_size or row.batch_size or configuration["batch_size"]
            if patch_size is not None:
                _set_patch(configuration, patch_size, name)
        strides = configuration["architecture"]["arch_kwargs"]["strides"]
        arguments = arguments_for_patch(model, size, configuration["patch_size"], strides)
        configuration["architecture"] = architecture(model, arguments)
        configuration.pop("training", None)  # of the base plans' model
        if size in row.training:
            configuration["training"] = dict(row.training[size])
        sizes = (channels, outputs, configuration["patch_size"], configuration["batch_size"])
        planned.append(
            Planned(
                name,
                tuple(configuration["patch_size"]),
                configuration["batch_size"],
                arguments,
                _count_parameters(model, arguments, channels, outputs),
                (folder / configuration["data_identifier"]).is_dir(),
                round(on_gpu(estimate(model, arguments, *sizes).total) / 1e9, 2),
            )
        )
    # A configuration that still names nnU-Net's network would be trained with sizes nobody planned.
    kept = set(chosen)
    plans["configurations"] = {
        key: value
        for key, value in plans["configurations"].items()
        if key in kept or value.get("inherits_from") in kept
    }
    _preprocess_fast(plans)
    path = folder / f"{plans['plans_name']}.json"
    if not dry_run:
        write_json(path, plans)
    return path, planned


def data_of_plans(
    dataset: str,
    model: str | models.Model,
    *,
    base_plans: str = "nnUNetPlans",
    configurations: Sequence[str] | None = None,
) -> dict[str, Data]:
    """What the patch of each configuration depends on, for those `write_plans` would keep.

    Raises:
        UserError: as `write_plans`.
    """
    folder = preprocessed_folder(dataset)
    description = read_description(folder)
    plans = read_base_plans(folder, base_plans, dataset)
    outputs = num_outputs(folder / "dataset.json", description)
    chosen = _choose(plans, model, configurations, base_plans)
    return {name: _data(plans, name, description, outputs) for name in chosen}


def _choose(
    plans: dict[str, Any], model: str | models.Model, configurations: Sequence[str] | None, base_plans: str
) -> list[str]:
    """Configurations to plan: those asked for, or all the network has a form for."""
    own = {name: c for name, c in plans["configurations"].items() if "architecture" in c}
    row = models.find(model)
    formed = [key for key, value in own.items() if len(value["patch_size"]) in row.axes]
    chosen = formed if configurations is None else list(configurations)
    unknown = [key for key in chosen if key not in own]
    if unknown:
        raise UserError(f"-c {unknown[0]} is not in {base_plans}.json, which has {', '.join(own)}")
    misfits = [key for key in chosen if key not in formed]
    if misfits or not chosen:
        raise UserError(
            f"{row.title} takes {' or '.join(map(str, row.axes))} axes, so not {', '.join(misfits or own)} in "
            f"{base_plans}.json; {'choose -c ' + ' '.join(formed) if formed else 'plan such a configuration first'}"
        )
    return chosen


def _data(plans: dict[str, Any], configuration: str, description: dict[str, Any], outputs: int) -> Data:
    cases = description["numTraining"]
    return planned_data(plans, configuration, channels_of(description), outputs, cases)


def write_fast_preprocessing(dataset: str, base_plans: str = "nnUNetPlans", plans_name: str | None = None) -> Path:
    """Copy plans, nnU-Net's own or others, so that they name the fast preprocessor; nothing else changes.

    Args:
        dataset: name or number.
        base_plans: name of existing plans.
        plans_name: None makes `base_plans` + Fast.

    Raises:
        UserError: base plans are missing, or name a preprocessor of another kind.
    """
    folder = preprocessed_folder(dataset)
    plans = read_base_plans(folder, base_plans, dataset, checked=False)
    plans["plans_name"] = checked_name(plans_name or f"{base_plans}Fast")
    if not _preprocess_fast(plans):
        named = {str(c["preprocessor_name"]) for c in plans["configurations"].values() if "preprocessor_name" in c}
        raise UserError(
            f"{base_plans}.json names the preprocessor {', '.join(sorted(named)) or 'of no configuration'}; only "
            f"{PREPROCESSOR} can be replaced by one of equal output"
        )
    path = folder / f"{plans['plans_name']}.json"
    write_json(path, plans)
    return path


def _preprocess_fast(plans: dict[str, Any]) -> bool:
    """Replace nnU-Net's default preprocessor where it is named; whether there was one."""
    stock = [c for c in plans["configurations"].values() if c.get("preprocessor_name") == PREPROCESSOR]
    for configuration in stock:
        configuration["preprocessor_name"] = FAST_PREPROCESSOR
    return bool(stock)


def read_base_plans(folder: Path, name: str, dataset: str, checked: bool = True) -> dict[str, Any]:
    """Existing plans of a data set; with `checked`, every configuration that names a network is.

    Raises:
        UserError: there are none of that name, or they are damaged.
    """
    source = folder / f"{name}.json"
    if not source.is_file():
        raise UserError(f"{source} does not exist; run nnUNetv2_plan_and_preprocess -d {dataset} first")
    about = read_plans(source, _REMEDY)
    about.text("plans_name")
    configurations = about.object("configurations")
    for key, configuration in configurations.content.items():
        if checked and "architecture" in configuration:
            _check(configurations.object(key))
    return about.content


def read_description(folder: Path) -> dict[str, Any]:
    """The dataset.json of a preprocessed data set.

    Raises:
        UserError: it is missing or damaged.
    """
    description = read_dataset_json(folder / "dataset.json", _REMEDY)
    JsonObject(folder / "dataset.json", description, remedy=_REMEDY).whole("numTraining")
    return description


def _check(settings: JsonObject) -> None:
    """Refuse a configuration that lacks what `write_plans` takes out of it."""
    check_patch(settings)
    settings.whole("batch_size")
    settings.text("data_identifier")
    settings.optional_numbers("median_image_size_in_voxels")
    arguments = settings.object("architecture").object("arch_kwargs")
    strides, axes = arguments.content.get("strides"), len(settings.content["patch_size"])
    if not isinstance(strides, list) or not all(isinstance(stride, list) and len(stride) == axes for stride in strides):
        arguments.refuse("strides", f"a list of lists of {axes} whole numbers")


def checked_name(name: str) -> str:
    """The name of plans, if nnU-Net can use it.

    Raises:
        UserError: it names folders, or holds nnU-Net's separator.
    """
    if Path(name).name != name:
        raise UserError(f"plans name {name!r} must be the name of a file without folders")
    if "__" in name:
        raise UserError(f"plans name {name!r} may not contain '__', which nnU-Net uses to split folder names")
    return name


def _set_patch(configuration: dict[str, Any], patch_size: Sequence[int], name: str) -> None:
    """Take another patch, and the strides nnU-Net would choose for it."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    if len(patch_size) != len(configuration["patch_size"]):
        raise UserError(
            f"--patch-size {' '.join(map(str, patch_size))} has {len(patch_size)} axes, but {name} has "
            f"{len(configuration['patch_size'])}; choose configurations with -c"
        )
    if min(patch_size) < 4:
        raise UserError(f"--patch-size {' '.join(map(str, patch_size))} must be at least 4 on every axis")
    _, strides, _, _, _ = get_pool_and_conv_props(configuration["spacing"], list(patch_size), 4, 999999)
    configuration["patch_size"] = list(patch_size)
    configuration["architecture"]["arch_kwargs"]["strides"] = [[int(s) for s in stride] for stride in strides]


def _count_parameters(model: str | models.Model, arguments: dict[str, Any], channels: int, outputs: int) -> int:
    """Parameters of the network for this data set's channels and labels, without allocating them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        return count_parameters(sketch(lambda: models.find(model).build(channels, outputs, False, arguments)))


def architecture(model: str | models.Model, arguments: dict[str, Any]) -> dict[str, Any]:
    """The entry of a configuration that makes nnU-Net build this network."""
    return {"network_class_name": models.find(model).network, "arch_kwargs": arguments, "_kw_requires_import": []}
