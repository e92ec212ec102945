"""The planner of interactive models: data as viewers show them, and patches their session can refine in.

    nnUNetv2_plan_and_preprocess -d 4 -pl nnUNetPlannerInteractive

What it changes of nnU-Net's plans, and why, it prints.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack

from nnunet_ext.architectures.interactive.model import OUTPUTS
from nnunet_ext.environment import choice
from nnunet_ext.errors import TrainingError
from nnunet_ext.plans.estimate import estimate
from nnunet_ext.plans.files import channels_of
from nnunet_ext.plans.fit import MAX_COVERED, MIN_BATCH, MIN_EDGE, first_fitting, patches, strides_for
from nnunet_ext.plans.memory import StepMemory, fits_gpu, on_gpu
from nnunet_ext.plans.network import arguments_for_patch
from nnunet_ext.plans.planner import ModelPlanner
from nnunet_ext.plans.write import architecture
from nnunet_ext.prompts.channels import CHANNELS as INTERACTIONS

# AutoZoom refines in patches whose outer 24 voxels on every side do not count, and fails where nothing is left.
LEAST_PATCH = 64
CHANNELS = "NNUNET_EXT_INTERACTIVE_CHANNELS"
_CHANGES = """Planned for viewers, whose session shows a network the voxels of the file:
  no resampling, no cropping, axes as they are    (nnU-Net: {spacing} mm, coarsest axis first)
  one mean and deviation where the image is not zero, for every modality    (nnU-Net: by modality)
  patches of at least {least} voxels on every axis: AutoZoom refines in their middle; what lies outside of the image is
  neither computed nor learnt
  patch and batch by the memory of a step with {interactions} more channels"""


class InteractivePlanner(ModelPlanner):
    """Plans that `nnUNetTrainerInteractive` takes."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "ViewerPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = True,
    ):
        if overwrite_target_spacing is not None:
            raise TrainingError("interactive models train without resampling; leave out -overwrite_target_spacing")
        super().__init__(
            dataset_name_or_id, gpu_memory_target_in_gb, str(self.model.preprocessor), plans_name, None, True
        )
        self.lowres_creation_threshold = 0.0
        channels, asked = channels_of(self.dataset_json), choice(os.environ, CHANNELS, ("one", "all"))
        if channels > 1 and asked != "all":
            raise TrainingError(
                f"{self.dataset_name} has {channels} channels and viewers show one; make a data set of one of them, or "
                f"set {CHANNELS}=all for models that are clicked on from Python alone"
            )

    def generate_data_identifier(self, configuration_name: str) -> str:
        return f"{self.plans_identifier}_{configuration_name}"

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        channels = channels_of(self.dataset_json)
        return ["ZScoreNormalization"] * channels, [False] * channels

    def determine_resampling(self, *args: Any, **kwargs: Any) -> tuple:
        return no_resampling_hack, {}, no_resampling_hack, {}

    def determine_segmentation_softmax_export_fn(self, *args: Any, **kwargs: Any) -> tuple:
        return no_resampling_hack, {}

    def get_plans_for_configuration(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict:
        # Of the images as they are: nothing is resampled.
        shapes = np.array(self.dataset_fingerprint["shapes_after_crop"])
        shape = np.median(shapes, 0)[-len(spacing) :]
        voxels = float(shapes.prod(1, dtype=np.float64).sum())
        plan = super(ModelPlanner, self).get_plans_for_configuration(spacing, shape, data_identifier, voxels, _cache)
        if len(spacing) not in self.model.axes:
            return plan  # left out by save_plans
        patch, batch, arguments, gigabytes = self._fit(tuple(map(float, spacing)), [round(n) for n in shape], voxels)
        print(
            _CHANGES.format(spacing="x".join(f"{n:g}" for n in spacing), least=LEAST_PATCH, interactions=INTERACTIONS)
        )
        print(f"  here {'x'.join(map(str, patch))}, {batch} per batch: {gigabytes:.1f} GB\n")
        return {
            **plan,
            "patch_size": patch,
            "batch_size": batch,
            "architecture": architecture(self.model.name, arguments),
        }

    def _fit(
        self, spacing: tuple[float, ...], shape: list[int], voxels: float
    ) -> tuple[list[int], int, dict[str, Any], float]:
        """Patch, batch, the network's arguments and the memory of a step in GB of 1e9 bytes."""
        channels, budget = channels_of(self.dataset_json), fits_gpu(self.UNet_vram_target_GB * 1e9)

        def described(patch: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
            """Arguments of the network, which pools what images fill of a patch, and that part."""
            filled = [min(p, max(n, 2 * MIN_EDGE)) for p, n in zip(patch, shape, strict=True)]
            strides = [list(stride) for stride in strides_for(spacing, filled)]
            steps = [math.prod(axis) for axis in zip(*strides, strict=True)]
            computed = [min(p, n + -n % step) for p, n, step in zip(patch, filled, steps, strict=True)]
            return arguments_for_patch(self.model.name, self.size, list(patch), strides), computed

        def memory(patch: Sequence[int], batch: int) -> StepMemory:
            arguments, computed = described(patch)
            return estimate(self.model.name, arguments, channels, OUTPUTS, computed, batch)

        # Every axis of at least so many voxels, and of a multiple of what is pooled.
        sizes = [[max(n, LEAST_PATCH) for n in candidate.size] for candidate in patches(spacing, shape)]
        sizes = [size for i, size in enumerate(sizes) if size not in sizes[:i]]
        extents = [math.prod(described(size)[1]) for size in sizes]
        position = first_fitting(extents, lambda i: memory(sizes[i], MIN_BATCH), budget)
        if position is None:
            smallest, need = sizes[-1], on_gpu(memory(sizes[-1], MIN_BATCH).total) / 1e9
            raise TrainingError(
                f"early prompting needs {need:.1f} GB for a batch of {MIN_BATCH} with the smallest patch "
                f"{'x'.join(map(str, smallest))}; raise -gpu_memory_target, or plan a smaller network: nnunet_ext plan"
            )
        patch = sizes[position]
        most = max(MIN_BATCH, round(voxels * MAX_COVERED / extents[position]))
        batches = range(most, MIN_BATCH - 1, -1)
        batch = batches[first_fitting(batches, lambda i: memory(patch, batches[i]), budget) or 0]
        return patch, batch, described(patch)[0], on_gpu(memory(patch, batch).total) / 1e9
