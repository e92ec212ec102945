"""A network's keyword arguments for one configuration of the plans.

Plans that name one of our networks carry its arguments; under any other plans a network has its published sizes and
takes from the configuration what depends on the patch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext import models
from nnunet_ext.errors import TrainingError


def network_arguments(name: str, configuration: ConfigurationManager) -> dict[str, Any]:
    """Keyword arguments of the network of model `name` for this configuration.

    Raises:
        TrainingError: the plans name another of our networks.
    """
    model = models.find(name)
    named = configuration.network_arch_class_name
    if named == model.network:
        return dict(configuration.network_arch_init_kwargs)
    if named in {other.network for other in models.rows()}:
        raise TrainingError(f"these plans are for {named}, not for {model.network}; choose other plans with -p")
    return arguments_for_patch(name, "base", configuration.patch_size, configuration.pool_op_kernel_sizes)


def arguments_for_patch(
    name: str | models.Model, size: str, patch_size: list[int], pool_op_kernel_sizes: list[list[int]]
) -> dict[str, Any]:
    """Keyword arguments of a size of the model, completed with what follows from the patch.

    Args:
        name: of the model, or its row.
        size: one of its sizes.
        patch_size: voxels per axis.
        pool_op_kernel_sizes: nnU-Net's strides for this patch, the first of them 1 on every axis.
    """
    model = models.find(name)
    arguments = dict(model.sizes[size])
    if model.from_patch is not None:
        arguments.update(models.load(model.from_patch)(patch_size, pool_op_kernel_sizes))
    return arguments


def check_configuration(name: str, plans_manager: PlansManager, configuration: str) -> None:
    """Refuse a configuration whose axes the model has no form for, or a cascade's second stage where it takes none.

    Args:
        name: of the model.
        plans_manager: of the data set.
        configuration: one of the plans'.

    Raises:
        TrainingError: naming the configurations of these plans that can be trained.
    """
    model = models.find(name)
    cascades = any("cascade" in trainer.inputs for trainer in model.trainers)
    possible = []
    for other in plans_manager.available_configurations:
        planned = plans_manager.get_configuration(other)
        if len(planned.patch_size) in model.axes and (cascades or planned.previous_stage_name is None):
            possible.append(other)
    if configuration in possible:
        return
    planned = plans_manager.get_configuration(configuration)
    axes = len(planned.patch_size)
    why = (
        "continues a previous stage" if axes in model.axes else f"has patches of {'two' if axes == 2 else 'three'} axes"
    )
    choice = f"choose {' or '.join(possible)}" if possible else "these plans have no such configuration; plan one"
    remark = f" ({model.hint})" if model.hint else ""
    raise TrainingError(
        f"{model.title} trains on {'volumes' if 3 in model.axes else 'slices'} and configuration {configuration!r} of "
        f"{plans_manager.dataset_name} {why}; {choice}{remark}"
    )


def check_preprocessor(
    name: str | models.Model, plans_name: str, dataset: str, configuration: Mapping[str, Any]
) -> None:
    """Refuse data that were not preprocessed as the model needs them.

    Args:
        name: of the model, or its row.
        plans_name, dataset: for the message.
        configuration: of the plans.

    Raises:
        TrainingError: naming the planner to use.
    """
    model = models.find(name)
    if model.preprocessor in (None, configuration.get("preprocessor_name")):
        return
    number = dataset.removeprefix("Dataset").partition("_")[0].lstrip("0") or dataset
    raise TrainingError(
        f"{model.title} needs data as {model.preprocessor} makes them, which {plans_name} does not name; run "
        f"nnUNetv2_plan_and_preprocess -d {number} -pl {model.planner} and choose -p nnUNet{model.suffix}Plans"
    )


def count_parameters(network: nn.Module) -> int:
    """Parameters of a network; a mean of its weights that is kept beside them does not count again."""
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("average."))


def network_builder(trainer: Any, manager: PlansManager, settings: ConfigurationManager) -> Callable[..., nn.Module]:
    """The trainer's `build_network_architecture` with all but channels given, in the form it has or had before 2.7."""
    build = trainer.build_network_architecture
    if "plans_manager" in inspect.signature(build).parameters:
        return lambda *channels, **more: build(manager, settings, *channels, **more)
    described = (
        settings.network_arch_class_name,
        settings.network_arch_init_kwargs,
        settings.network_arch_init_kwargs_req_import,
    )
    return lambda *channels, **more: build(*described, *channels, **more)
