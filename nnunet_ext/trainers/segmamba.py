"""SegMamba (arXiv:2401.13560) as an nnU-Net trainer."""

from __future__ import annotations

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.architectures.segmamba import SegMamba
from nnunet_ext.plans.network import network_arguments
from nnunet_ext.trainers.shared import SharedTrainer


class nnUNetTrainerSegMamba(SharedTrainer):
    """SegMamba in any configuration nnU-Net plans: 2d, 3d_fullres, 3d_lowres, cascade; labels, regions, ignore label.

    The network's sizes come from the plans when these name SegMamba (`nnunet_ext plan`), else they are the paper's,
    downsampled by the plan's own strides. The optimiser of the paper is nnU-Net's (SGD 1e-2, momentum 0.99, poly);
    the loss is nnU-Net's Dice + cross-entropy where the paper's code has cross-entropy alone, so that networks
    and not losses are compared. Deep supervision is off, as in the paper, unless the plans ask for extra heads
    (`supervised_stages`).
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        arguments = network_arguments("segmamba", self.configuration_manager)
        self.enable_deep_supervision = arguments.get("supervised_stages", 0) > 0

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        arguments = network_arguments("segmamba", configuration_manager)
        deep_supervision = enable_deep_supervision and arguments.get("supervised_stages", 0) > 0
        return SegMamba(num_input_channels, num_output_channels, deep_supervision, **arguments)
