"""SAM-Med3D (arXiv:2310.15161) as an nnU-Net trainer: simulated clicks, and every class without one."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_ext.architectures.sam_med3d.in_viewers import SAMMed3DInViewers
from nnunet_ext.architectures.sam_med3d.promptable import Interaction, PromptableSAMMed3D
from nnunet_ext.checkpoints.sam_med3d import INTERACTIONS
from nnunet_ext.checkpoints.viewer_folder import write_viewer_folder
from nnunet_ext.clicks.prompted_object import PreparedVolume
from nnunet_ext.clicks.scores import USERS, PromptedScore, click_through, make_user, summarise
from nnunet_ext.files import write_json
from nnunet_ext.plans.network import check_configuration, network_arguments
from nnunet_ext.prompts.channels import CHANNELS
from nnunet_ext.steps.sam_med3d import Batch, choose_objects, step
from nnunet_ext.trainers.interrupts import ends_in_one_line
from nnunet_ext.trainers.recipe import ADAMW
from nnunet_ext.trainers.shared import SharedTrainer


class nnUNetTrainerSAMMed3D(SharedTrainer):
    """SAM-Med3D on any 3D configuration nnU-Net plans, from scratch or from published weights.

    Each sample of a batch gets one object, one of the classes in its patch. An interaction with it is simulated
    (`nnunet_ext.prompts`) and all its rounds are scored with Dice and cross-entropy, as published; the output channels'
    own tokens are scored with nnU-Net's loss, which is this project's addition. The patch is resized to the network's
    cube and the logits back.

    Faults of the published training that are mended here: an object without any error left does not end the run; the
    mask that decides on the next click has the threshold of inference; half of the batches see all clicks so far, as
    inference does, not only the newest; intensities are normalised per case, not per batch; and a patch without
    an object is scored by its automatic segmentation alone.

    AdamW with nnU-Net's poly schedule, one learning rate for all parts, gradients clipped at 1. The authors have 8e-4
    for the encoder and a tenth of it for the rest in training with a batch of 480, and 8e-5 in fine-tuning:
    NNUNET_EXT_LEARNING_RATE sets it.
    """

    recipe = replace(ADAMW, weight_decay=0.1)

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        check_configuration("sam_med3d", PlansManager(plans), configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        # Clicks need an object in the patch more often than nnU-Net's third of the samples.
        self.oversample_foreground_percent = 0.67

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        arguments = network_arguments("sam_med3d", configuration_manager)
        image_channels = len(configuration_manager.normalization_schemes)
        if (num_input_channels, num_output_channels) == (image_channels + CHANNELS, 2):
            # An interactive session of a viewer asks; training and prediction have the image alone.
            return SAMMed3DInViewers(image_channels, axes=plans_manager.transpose_forward, **arguments)
        return PromptableSAMMed3D(num_input_channels, num_output_channels, **arguments)

    def on_train_start(self) -> None:
        super().on_train_start()
        # Not earlier: weights to start from carry the setting of their own data set.
        self.bare_network().has_regions.fill_(self.label_manager.has_regions)
        if self.local_rank == 0:
            write_viewer_folder(self.output_folder_base, self.dataset_json, INTERACTIONS)

    def train_step(self, batch: dict) -> dict:
        data, target = self._to_device(batch)
        assert isinstance(target, Tensor)
        labels = self.label_manager
        chosen = choose_objects(target, labels.has_regions, labels.ignore_label)
        interaction = Interaction.draw(self.bare_network().rounds)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = step(self.network, Batch(data, target, *chosen, interaction), self.loss)
        self.step(loss, batch)
        return {"loss": loss.detach().float().cpu().numpy()}

    @ends_in_one_line
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        super().perform_actual_validation(save_probabilities)
        self.network.eval()
        scores = self._prompted_scores()
        if self.is_ddp:
            gathered: list = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, scores)
            scores = [score for part in gathered for score in part]
        if self.local_rank == 0:
            self._write_prompted(scores)

    def _prompted_scores(self) -> list[PromptedScore]:
        """Click through this rank's share of the validation cases, on their preprocessed grid."""
        _, keys = self.do_split()
        keys = sorted(keys)
        if self.is_ddp:
            keys = keys[self.local_rank :: dist.get_world_size()]
        dataset = self.dataset_class(self.preprocessed_dataset_folder, keys)
        network = self.bare_network()
        scores = []
        for number, case in enumerate(dataset.identifiers):
            data, segmentation, _, _ = dataset.load_case(case)
            configuration = self.configuration_manager
            volume = PreparedVolume(
                torch.from_numpy(data[:]).float(), tuple(configuration.patch_size), tuple(configuration.spacing)
            )
            segmentation = segmentation[0][:] if segmentation.ndim == 4 else segmentation[:]
            ignore = self.label_manager.ignore_label
            ignored = None if ignore is None else segmentation == ignore
            for target, labels in self._targets().items():
                reference = np.isin(segmentation, labels)
                if not reference.any():
                    continue
                for user in USERS:
                    clicker = make_user(user, volume.spacing_mm, seed=number)
                    with self.autocast():
                        dice, nsd = click_through(network, volume, reference, clicker, ignored=ignored)
                    scores.append(PromptedScore(case, target, user, dice, nsd))
            self.print_to_log_file(f"clicked through {case}", also_print_to_console=False)
        return scores

    def _targets(self) -> dict[str, tuple[int, ...]]:
        """Name of each class or region -> its label values."""
        named = {k: v for k, v in self.dataset_json["labels"].items() if k not in ("background", "ignore")}
        return {name: tuple(v) if isinstance(v, (list, tuple)) else (v,) for name, v in named.items()}

    def _write_prompted(self, scores: list[PromptedScore]) -> None:
        from nnunet_ext.reports.clicks import write_click_curves

        summary = summarise(scores)
        folder = os.path.join(self.output_folder, "validation")
        write_json(os.path.join(folder, "prompted_summary.json"), summary)
        write_click_curves(summary, os.path.join(folder, "prompted_summary.png"), self.plans_manager.dataset_name)
        for user, found in summary["users"].items():
            curve = ", ".join(f"{value:.3f} at {n}" for n, value in found["mean"]["Dice"].items())
            self.print_to_log_file(f"Dice under simulated clicks ({user}, sees the reference): {curve}")
