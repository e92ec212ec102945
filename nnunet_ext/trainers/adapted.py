"""Any network named by its path (`nnunet_ext plan --network`) as an nnU-Net trainer."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext import models
from nnunet_ext.architectures.adapted import AdaptedNetwork
from nnunet_ext.errors import TrainingError, UserError
from nnunet_ext.plans.adapted import package_of
from nnunet_ext.trainers.recipe import ADAMW
from nnunet_ext.trainers.shared import SharedTrainer

_NETWORK = models.find("adapted").network


class nnUNetTrainerNetwork(SharedTrainer):
    """A network of any package in any configuration its plans were written for; labels, regions, ignore label, cascade.

    Everything about the network stands in the plans. AdamW with nnU-Net's polynomial decay trains it, because
    transformers need it and convolutions do not mind; the loss is nnU-Net's, over all heads the network returns.
    """

    recipe = ADAMW

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        arguments = _arguments(self.configuration_manager)
        self.enable_deep_supervision = len(arguments["training"]) > 1

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        arguments = _arguments(configuration_manager)
        try:
            return AdaptedNetwork(num_input_channels, num_output_channels, enable_deep_supervision, **arguments)
        except UserError as error:
            raise TrainingError(str(error)) from error

    def initialize(self) -> None:
        arguments = _arguments(self.configuration_manager)
        if self.is_ddp and arguments.get("idle"):
            self.fail(
                f"{arguments['network']} has {arguments['idle']} parameters without a gradient, which distributed "
                "training does not allow; train on one GPU"
            )
        super().initialize()

    def on_train_start(self) -> None:
        super().on_train_start()
        arguments = _arguments(self.configuration_manager)
        self._record["network"] = {
            "path": arguments["network"],
            "package": package_of(arguments["network"]),
            "called_with": (arguments.get("found") or {}).get("called with"),
        }
        self._write_record()


def _arguments(configuration: ConfigurationManager) -> dict[str, Any]:
    """Keyword arguments of the network, from the plans.

    Raises:
        TrainingError: the plans name no network by its path.
    """
    if configuration.network_arch_class_name != _NETWORK:
        raise TrainingError(
            f"these plans are for {configuration.network_arch_class_name}; nnUNetTrainerNetwork needs plans of "
            "nnunet_ext plan --network PATH, chosen with -p"
        )
    return dict(configuration.network_arch_init_kwargs)
