"""The trainer: whatever nnunet_ext's trainers have, with another network."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_ext.plans.network import network_arguments
from nnunet_ext.trainers.shared import SharedTrainer
from toy_model.network import ToyNet


class nnUNetTrainerToy(SharedTrainer):
    """Toy."""

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device | None = None
    ):
        super().__init__(plans, configuration, fold, dataset_json, device or torch.device("cuda"))
        self.enable_deep_supervision = False

    @staticmethod
    def build_network_architecture(
        plans_manager,
        configuration_manager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        return ToyNet(num_input_channels, num_output_channels, **network_arguments("toy", configuration_manager))
