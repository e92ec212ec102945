"""UNETR++ (arXiv:2212.04497) as an nnU-Net trainer."""

from __future__ import annotations

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.plans.network import check_configuration, network_arguments
from nnunet_ext.trainers.shared import SharedTrainer


class nnUNetTrainerUNETRPP(SharedTrainer):
    """UNETR++ in any 3d configuration nnU-Net plans, with the recipe of the authors' code.

    That recipe is nnU-Net's own (SGD 1e-2, momentum 0.99, weight decay 3e-5, poly, Dice + cross-entropy) with three
    outputs weighted 4/7, 2/7 and 1/7; nnU-Net would not count the last. The authors train in single precision;
    on CUDA the default here is nnU-Net's fp16 with attention in single precision, and NNUNET_EXT_PRECISION=fp32 is
    theirs.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        # Before anything is written.
        check_configuration("unetrpp", PlansManager(plans), configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        arguments = network_arguments("unetrpp", configuration_manager)
        return UNETRPP(num_input_channels, num_output_channels, enable_deep_supervision, **arguments)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        if self.enable_deep_supervision:
            loss = DeepSupervisionWrapper(loss.loss, (4 / 7, 2 / 7, 1 / 7))
        return loss
