"""Plans for a data set with the architecture of a network that was trained on another, so that its weights fit."""

from __future__ import annotations

import copy
import math
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.errors import UserError
from nnunet_ext.files import write_json
from nnunet_ext.plans.write import checked_name, read_base_plans


def inherit_architecture(
    folder: Path, base_plans: str, configuration: str, trained: ConfigurationManager, plans_name: str
) -> None:
    """Write plans whose one configuration has the architecture that was trained, and all else as planned before.

    The patch is rounded to the nearest multiple of what the architecture downsamples by.

    Args:
        folder: of the preprocessed data set.
        base_plans: existing plans of the data set.
        configuration: one of these.
        trained: the configuration the network was trained with.
        plans_name: of the new plans; what has this name is replaced.

    Raises:
        UserError: the plans are damaged or have no such configuration, the new name cannot be used, the numbers of axes
            differ, or the architecture belongs to the patch it was trained on.
    """
    plans = read_base_plans(folder, base_plans, folder.name)
    if configuration not in plans["configurations"]:
        raise UserError(f"-c {configuration} is not in {base_plans}.json: {', '.join(plans['configurations'])}")
    planned = PlansManager(copy.deepcopy(plans)).get_configuration(configuration)
    arguments = trained.network_arch_init_kwargs
    if len(trained.patch_size) != len(planned.patch_size):
        raise UserError(
            f"the weights are of a network for {len(trained.patch_size)} axes and {configuration} of {base_plans}.json "
            f"has {len(planned.patch_size)}; choose another configuration with -c"
        )
    if "patch_size" in arguments:
        raise UserError(
            f"{trained.network_arch_class_name} is built for one patch; plan the data set with nnunet_ext plan and the "
            "same size instead, and give these plans with -p: its weights are resized"
        )
    steps = [math.prod(axis) for axis in zip(*trained.pool_op_kernel_sizes, strict=True)]
    patch = [max(1, round(size / step)) * step for size, step in zip(planned.patch_size, steps, strict=True)]
    described = copy.deepcopy(planned.configuration)
    described["patch_size"] = patch
    described["architecture"] = copy.deepcopy(trained.configuration["architecture"])
    plans["plans_name"] = checked_name(plans_name)
    plans["configurations"] = {configuration: described}
    write_json(folder / f"{plans_name}.json", plans)
