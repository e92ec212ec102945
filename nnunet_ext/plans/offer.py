"""What each size of GPU allows on a data set that nnU-Net has planned, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext import models
from nnunet_ext.errors import UserError
from nnunet_ext.plans.fit import Data, Fit, fit

MEMORY_SIZES_GB = (8.0, 11.0, 16.0, 24.0, 40.0, 80.0)


@dataclass(frozen=True)
class Offer:
    """What fits a GPU of `gpu_gigabytes` in one configuration, or, in one line, why nothing does."""

    gpu_gigabytes: float
    configuration: str
    fit: Fit | None
    refusal: str | None = None


def offers(
    model: str | models.Model,
    size: str,
    configurations: dict[str, Data],
    gpu_gigabytes: Sequence[float],
    batch_size: int | None = None,
) -> Iterator[Offer]:
    """One offer per configuration and GPU, in that order.

    Args:
        model, size: network and preset.
        configurations: what each is planned for, see `planned_data`.
        gpu_gigabytes: sizes of GPUs, 1e9 bytes each.
        batch_size: samples per step; None chooses them.
    """
    for name, data in configurations.items():
        for gigabytes in gpu_gigabytes:
            try:
                yield Offer(gigabytes, name, fit(model, size, data, gigabytes, batch_size=batch_size))
            except UserError as error:
                yield Offer(gigabytes, name, None, str(error))


def planned_data(plans: dict[str, Any], configuration: str, input_channels: int, num_classes: int, cases: int) -> Data:
    """What a configuration's patch depends on, from plans of nnU-Net.

    Args:
        plans: content of the file.
        configuration: one with a patch of its own.
        input_channels, num_classes: of the data set.
        cases: training images.

    Raises:
        UserError: the plans do not say how large the images are.
    """
    planned = plans["configurations"]
    own = planned[configuration]
    # As nnU-Net, which counts the voxels of volumes for slices too.
    counted = planned.get("3d_fullres", own) if len(own["spacing"]) == 2 else own
    for which in (own, counted):
        if not which.get("median_image_size_in_voxels"):
            raise UserError(
                f"{plans['plans_name']}.json lacks median_image_size_in_voxels in {configuration}, which says how "
                "large patches may become; plan again with nnUNetv2_plan_experiment"
            )
    return Data(
        tuple(map(float, own["spacing"])),
        tuple(round(n) for n in own["median_image_size_in_voxels"]),
        math.prod(counted["median_image_size_in_voxels"]) * cases,
        input_channels,
        num_classes,
    )
