"""nnU-Net's planner for SAM-Med3D's published weights: 1.5 mm and 128x128x128, as they were trained.

nnUNetv2_plan_and_preprocess -d 4 -pl nnUNetPlannerSAMMed3D
nnUNetv2_train 4 3d_fullres 0 -p nnUNetSAMMed3DPlans -tr nnUNetTrainerSAMMed3D -pretrained_weights start.pth
"""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_ext.errors import UserError
from nnunet_ext.plans.network import arguments_for_patch
from nnunet_ext.plans.presets import NETWORKS

SPACING_MM, PATCH_SIZE, BATCH_SIZE = (1.5, 1.5, 1.5), (128, 128, 128), 2


class nnUNetPlannerSAMMed3D(ExperimentPlanner):
    """3d_fullres at 1.5 mm with patches of 128 voxels per axis and the published network."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetSAMMed3DPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ):
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            list(overwrite_target_spacing or SPACING_MM),
            suppress_transpose,
        )

    def save_plans(self, plans: dict) -> None:
        if "3d_fullres" not in plans["configurations"]:
            raise UserError(f"{self.dataset_name} has images of two axes; SAM-Med3D needs volumes")
        configuration = plans["configurations"]["3d_fullres"]
        strides = configuration["architecture"]["arch_kwargs"]["strides"]
        configuration["patch_size"] = list(PATCH_SIZE)
        configuration["batch_size"] = BATCH_SIZE
        configuration["architecture"] = {
            "network_class_name": NETWORKS["sam_med3d"],
            "arch_kwargs": arguments_for_patch("sam_med3d", "base", list(PATCH_SIZE), strides),
            "_kw_requires_import": [],
        }
        # The other configurations would have nnU-Net's network.
        plans["configurations"] = {"3d_fullres": configuration}
        super().save_plans(plans)
