"""MedSegDiff-V2 (arXiv:2301.11798) as an nnU-Net trainer: what is best per second, the paper's, and the control."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_ext.architectures.medsegdiff import MedSegDiffV2
from nnunet_ext.architectures.medsegdiff.sampled import Averaged, DirectControl, SampledMedSegDiffV2
from nnunet_ext.plans.network import network_arguments
from nnunet_ext.steps.medsegdiff import Batch, diffused_mask, published_step, step
from nnunet_ext.trainers import run_record
from nnunet_ext.trainers.recipe import ADAMW
from nnunet_ext.trainers.shared import SharedTrainer

# The paper's weight of cross-entropy beside Dice.
BETA = 10.0
# Of the weights' mean; the first steps have less.
AVERAGE_DECAY = 0.999
# What validation within the epochs may cost: a sample of this many steps.
QUICK_STEPS = 5
# How the paper differs from the plans' network.
PAPER: dict[str, Any] = {
    "prediction": "noise",
    "show_image": False,
    "sampling": {"sampler": "ddpm", "steps": 100, "samples": 10, "fusion": "staple"},
}


class nnUNetTrainerMedSegDiffV2Direct(SharedTrainer):
    """The condition model of MedSegDiff-V2 without diffusion: the control it is measured against.

    All three share AdamW and a running mean of the weights, which predicts.
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
        self.enable_deep_supervision = False

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        arguments = network_arguments("medsegdiff", configuration_manager)
        return DirectControl(num_input_channels, num_output_channels, **arguments)

    def after_update(self) -> None:
        network = self.bare_network()
        assert isinstance(network, Averaged)
        network.update_average(AVERAGE_DECAY)


class nnUNetTrainerMedSegDiffV2(nnUNetTrainerMedSegDiffV2Direct):
    """MedSegDiff-V2 in any configuration nnU-Net plans, set up for the most accuracy per second.

    The diffusion model predicts the mask itself, one channel per class in [-1, 1], and is scored with nnU-Net's
    Dice + cross-entropy, as is the condition model at every step; two DDIM steps predict. Sampler, steps, samples, seed
    and fusion can be set at every prediction (docs/environment.md) and are saved in the plans.json beside it.
    """

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        return _build(plans_manager, configuration_manager, num_input_channels, num_output_channels, False)

    def on_train_start(self) -> None:
        super().on_train_start()
        # Not earlier: weights to start from carry the setting of their own data set.
        self.bare_network().has_regions.fill_(self.label_manager.has_regions)

    def train_step(self, batch: dict) -> dict:
        data, target = self._to_device(batch)
        assert isinstance(target, Tensor)
        labels, network = self.label_manager, self.bare_network()
        x0, counted = diffused_mask(target, labels.num_segmentation_heads, labels.has_regions, labels.ignore_label)
        recycle = bool(network.recycle) and float(torch.rand(())) < network.recycle
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss_of(Batch(data, target, x0, counted, recycle))
        self.step(loss, batch)
        return {"loss": loss.detach().float().cpu().numpy()}

    def loss_of(self, batch: Batch) -> Tensor:
        """The loss of one step."""
        return step(self.network, batch, self.loss)

    def _gmacs(self) -> float | None:
        # Counted in parts: a run through all steps of all samples would be counted for minutes.
        network = self.bare_network()
        arguments = (self.num_input_channels, self.configuration_manager.patch_size, self.device)
        once, with_one = (run_record.count_gmacs(_Pass(network.average, n), *arguments) for n in (0, 1))
        if once is None or with_one is None:
            return None
        return round(once + (with_one - once) * network.sampling.steps * network.sampling.samples, 3)

    def validation_step(self, batch: dict) -> dict:
        network = self.bare_network()
        full = network.sampling
        network.sampling = replace(full, sampler="ddim", steps=min(full.steps, QUICK_STEPS), samples=1)
        try:
            return super().validation_step(batch)
        finally:
            network.sampling = full


class nnUNetTrainerMedSegDiffV2Paper(nnUNetTrainerMedSegDiffV2):
    """MedSegDiff-V2 as published: noise prediction, 100 steps, 10 samples, STAPLE.

    L_n + [t mod 5 == 0] (Dice + 10 cross-entropy), AdamW at a constant 1e-4. The paper does not show the image to the
    diffusion model but through its conditions, and does not say how many of its 1000 steps are skipped; 100 of them
    are visited here. Expect a prediction to take hundreds of times as long as that of the default.
    """

    recipe = replace(ADAMW, learning_rate=1e-4, schedule="constant")

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        return _build(plans_manager, configuration_manager, num_input_channels, num_output_channels, True)

    def initialize(self) -> None:
        super().initialize()
        self.weighted_loss = copy.deepcopy(self.loss)
        self.weighted_loss.weight_ce = BETA

    def loss_of(self, batch: Batch) -> Tensor:
        return published_step(self.network, batch, self.loss, self.weighted_loss)


class _Pass(nn.Module):
    """The condition, and some evaluations of the diffusion model."""

    def __init__(self, network: MedSegDiffV2, evaluations: int):
        super().__init__()
        self.network, self.evaluations = network, evaluations

    def forward(self, x: Tensor) -> Tensor:
        condition = self.network.condition(x)
        for _ in range(self.evaluations):
            with torch.enable_grad():  # keeping filters would look at the time step, which has no value here
                self.network.denoise(condition.logits, torch.zeros(1, dtype=torch.int64, device=x.device), condition)
        return condition.logits


def _build(
    plans_manager: PlansManager, configuration: ConfigurationManager, channels: int, classes: int, published: bool
) -> SampledMedSegDiffV2:
    arguments = network_arguments("medsegdiff", configuration)
    if published:
        # The presets' narrow diffusion model is this project's economy, not the paper's.
        arguments = {**arguments, **PAPER, "denoiser_width": arguments["width"]}
    network = SampledMedSegDiffV2(channels, classes, **arguments)
    # nnU-Net writes these plans beside predictions, so that each says how it was drawn.
    plans_manager.plans["nnunet_ext_sampling"] = asdict(network.sampling)
    return network
