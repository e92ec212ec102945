"""nnU-Net's own network under this package's training conditions: the baseline the others are compared with."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.trainers.shared import SharedTrainer


class nnUNetTrainerExt(SharedTrainer):
    """nnU-Net's U-Net, loss and optimiser unchanged, with settings from the environment and safe checkpoints."""

    compiles = True

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        nnUNetTrainer.set_deep_supervision_enabled(self, enabled)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        return nnUNetTrainer._get_deep_supervision_scales(self)
