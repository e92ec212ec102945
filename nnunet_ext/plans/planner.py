"""nnU-Net's planners for these networks: patch and batch by the memory of the network that will be trained.

    nnUNetv2_plan_and_preprocess -d 4 -pl nnUNetPlannerSegMamba -gpu_memory_target 24
    nnUNetv2_train 4 3d_fullres 0 -p nnUNetSegMambaPlans -tr nnUNetTrainerSegMamba

Spacing, normalisation and resampling are nnU-Net's, so data preprocessed under its default plans are used again where
these agree. Each planner is nnU-Net's with another patch, batch and network in every configuration.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_ext import models
from nnunet_ext.errors import TrainingError
from nnunet_ext.files import read_json
from nnunet_ext.plans.files import channels_of, num_outputs
from nnunet_ext.plans.fit import Data, fit
from nnunet_ext.plans.write import (
    FAST_PREPROCESSOR,
    PREPROCESSOR,
    architecture,
)

# What preprocessed data depend on, in a configuration of the plans and in the plans.
DATA_KEYS = ("spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_seg",
             "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs")  # fmt: skip
COMMON_DATA_KEYS = ("transpose_forward", "foreground_intensity_properties_per_channel")
STOCK_PLANS = "nnUNetPlans"


class ModelPlanner(ExperimentPlanner):
    """nnU-Net's planner for one network.

    Attributes:
        model: its row.
        size: one of the model's sizes; a subclass may set another.
    """

    model: models.Model
    size = "base"

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = PREPROCESSOR,
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ):
        spacing = overwrite_target_spacing or self.model.spacing_mm
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            # The same output in a tenth of the time; another one was asked for.
            FAST_PREPROCESSOR if preprocessor_name == PREPROCESSOR else preprocessor_name,
            plans_name or f"nnUNet{self.model.suffix}Plans",
            list(spacing) if spacing else None,
            suppress_transpose,
        )
        if self.model.configurations and "3d_lowres" not in self.model.configurations:
            self.lowres_creation_threshold = 0.0

    @staticmethod
    def static_estimate_VRAM_usage(*args: Any, **kwargs: Any) -> float:
        """Nothing: nnU-Net's search for a patch of its own U-Net ends at once."""
        return 1.0

    def get_plans_for_configuration(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict:
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        if len(spacing) not in self.model.axes:
            return plan  # left out by save_plans
        data = Data(
            tuple(map(float, spacing)),
            tuple(round(n) for n in median_shape[: len(spacing)]),
            approximate_n_voxels_dataset,
            channels_of(self.dataset_json),
            num_outputs(Path(self.raw_dataset_folder, "dataset.json"), self.dataset_json),
        )
        fitted = fit(self.model.name, self.size, data, self.UNet_vram_target_GB, patch_size=self.model.patch_size)
        return {
            **plan,
            "patch_size": list(fitted.patch_size),
            "batch_size": fitted.batch_size,
            "architecture": architecture(self.model.name, fitted.arguments),
            **({"training": dict(training)} if (training := self.model.training.get(self.size)) else {}),
        }

    def save_plans(self, plans: dict) -> None:
        wanted = self.model.configurations or tuple(plans["configurations"])
        kept = {
            name: configuration
            for name, configuration in plans["configurations"].items()
            if name in wanted and len(configuration.get("patch_size", ())) in self.model.axes
        }
        if not kept:
            raise TrainingError(
                f"{self.dataset_name} has images of two axes; {self.model.title} needs volumes: choose a planner of "
                "a network for slices"
            )
        # A cascade's second stage has the sizes of the configuration it inherits from.
        heirs = {
            name: c
            for name, c in plans["configurations"].items()
            if {c.get("inherits_from"), c.get("previous_stage")} <= kept.keys()
        }
        left_out = [name for name in plans["configurations"] if name not in kept | heirs]
        if left_out:
            print(f"Not planned for {self.model.title}: {', '.join(left_out)}")
        recursive_fix_for_json_export(plans)
        plans["configurations"] = {**kept, **heirs}
        self._reuse_preprocessed(plans)
        super().save_plans(plans)

    def _reuse_preprocessed(self, plans: dict) -> None:
        """Name the data of nnU-Net's default plans where preprocessing again would give the same."""
        path = Path(str(nnUNet_preprocessed), self.dataset_name, f"{STOCK_PLANS}.json")
        if not path.is_file() or self.preprocessor_name != FAST_PREPROCESSOR:
            return
        stock, own = read_json(path), json.loads(json.dumps(plans))  # lists for tuples, as in the file
        if any(stock.get(key) != own[key] for key in COMMON_DATA_KEYS):
            return
        for name, configuration in own["configurations"].items():
            theirs = stock["configurations"].get(name, {})
            if theirs.get("preprocessor_name") in (PREPROCESSOR, FAST_PREPROCESSOR) and all(
                theirs.get(key) == configuration[key] for key in DATA_KEYS
            ):
                plans["configurations"][name]["data_identifier"] = theirs["data_identifier"]


def __getattr__(name: str) -> type[ModelPlanner]:
    """The planner of that name, made when it is asked for: `nnUNetPlannerSegMamba` and so on, one per model."""
    for model in models.planned().values():
        if model.planner == name:
            return _planner_of(model.name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _planner_of(model_name: str) -> type[ModelPlanner]:
    model = models.find(model_name)
    facts = {"__module__": __name__, "__doc__": f"{model.title}.", "model": model}
    base = models.load(model.planner_class) if model.planner_class else ModelPlanner
    return type(str(model.planner), (base,), facts)
