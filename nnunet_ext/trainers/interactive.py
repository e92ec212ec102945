"""Early prompting (nnInteractive, arXiv:2503.08373) as an nnU-Net trainer: models that viewers open."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_ext.architectures.interactive.model import InteractiveNetwork, occupied
from nnunet_ext.augmentation.from_afar import BatchesFromAfar
from nnunet_ext.checkpoints.viewer_folder import write_viewer_folder
from nnunet_ext.clicks.scores import USERS, PromptedScore, follow, make_user, summarise
from nnunet_ext.clicks.viewed_object import ViewedObject
from nnunet_ext.environment import choice, whole_number
from nnunet_ext.files import write_json
from nnunet_ext.models.interactive import MODEL
from nnunet_ext.plans.network import check_configuration, check_preprocessor
from nnunet_ext.prompts.channels import CHANNELS, PREVIOUS, add
from nnunet_ext.prompts.early import EMPTY, begin, correct
from nnunet_ext.prompts.objects import choose_object
from nnunet_ext.steps.interactive import Batch, look_again, step
from nnunet_ext.trainers import run_record
from nnunet_ext.trainers.interrupts import ends_in_one_line
from nnunet_ext.trainers.recipe import ADAMW
from nnunet_ext.trainers.shared import SharedTrainer

ROUNDS = 4
# In validation within epochs every sample has so many rounds, so that epochs can be compared.
_CHECKED_ROUNDS = 3
IGNORED = 2


@dataclass(frozen=True)
class InteractiveSettings:
    """What the environment asks of this trainer.

    Attributes:
        objects: NNUNET_EXT_INTERACTIVE_OBJECTS, "labels" (and regions) or "components" of them.
        rounds: NNUNET_EXT_INTERACTIVE_ROUNDS, the most per training step.
        gradients: NNUNET_EXT_INTERACTIVE_GRADIENTS, of the "last" round or of "all".
    """

    objects: str = "labels"
    rounds: int = ROUNDS
    gradients: str = "last"

    @classmethod
    def from_environment(cls) -> InteractiveSettings:
        """Read and validate the variables.

        Raises:
            TrainingError: a value is not allowed.
        """
        return cls(
            choice(os.environ, "NNUNET_EXT_INTERACTIVE_OBJECTS", ("labels", "components")) or "labels",
            whole_number(os.environ, "NNUNET_EXT_INTERACTIVE_ROUNDS") or ROUNDS,
            choice(os.environ, "NNUNET_EXT_INTERACTIVE_GRADIENTS", ("last", "all")) or "last",
        )


class nnUNetTrainerInteractive(SharedTrainer):
    """Early prompting on data that nnUNetPlannerInteractive planned.

    Each sample gets one object, a label or region in its patch or a connected component of one. A simulated user
    (`nnunet_ext.prompts.early`) begins, the network answers, the user corrects, and so on for 1 to `ROUNDS` rounds;
    the loss is nnU-Net's, of the last round. What the network is shown is what nnInteractive's session will show it.

    The model folder opens in that session: see docs/interactive.md.
    """

    # SGD with nnU-Net's momentum ended in NaN, or in background everywhere, within the first 150 steps (docs/log.md).
    recipe = replace(ADAMW, learning_rate=1e-3)
    batches = BatchesFromAfar
    patches_reach_out = True

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        manager = PlansManager(plans)
        check_configuration(MODEL.name, manager, configuration)
        described = manager.get_configuration(configuration).configuration
        check_preprocessor(MODEL, manager.plans_name, manager.dataset_name, described)
        self.interactive = InteractiveSettings.from_environment()
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.oversample_foreground_percent = 0.9
        labels = self.label_manager
        targets = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        self.targets = [tuple(t) if isinstance(t, (tuple, list)) else (t,) for t in targets]
        self._step_number = 0

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """With the image's channels, as nnU-Net asks, or with the interactions' too, as viewers' sessions do."""
        named, arguments = configuration_manager.network_arch_class_name, configuration_manager.network_arch_init_kwargs
        channels = len(configuration_manager.normalization_schemes)
        if named == MODEL.network:
            return InteractiveNetwork(channels, deep_supervision=enable_deep_supervision, **arguments)
        return InteractiveNetwork(
            channels, deep_supervision=enable_deep_supervision, network=named, arguments=arguments
        )

    def initialize(self) -> None:
        if self.is_ddp and self.interactive.gradients == "all":
            self.fail("NNUNET_EXT_INTERACTIVE_GRADIENTS=all trains on one GPU; unset it")
        super().initialize()

    def _build_loss(self) -> Any:
        """nnU-Net's Dice and cross-entropy of background and object, over all outputs there are."""
        options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": self.is_ddp}
        loss = DC_and_CE_loss(options, {}, ignore_label=IGNORED, dice_class=MemoryEfficientSoftDiceLoss)

        def over_outputs(outputs: Any, targets: Any) -> Tensor:
            if isinstance(outputs, Tensor):
                return loss(outputs, targets)
            weights = np.array([1 / 2**i for i in range(len(outputs))])
            if len(outputs) > 1:
                weights[-1] = 1e-6 if self.is_ddp else 0  # as nnU-Net
            return DeepSupervisionWrapper(loss, weights / weights.sum())(outputs, targets)

        return over_outputs

    # Data ------------------------------------------------------------------------------------------------------

    def _get_deep_supervision_scales(self) -> None:
        return None  # targets are made of objects, in the step

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        """nnU-Net's, by the voxels' shape: patches are large on every axis, also where slices lie far apart."""
        rotation, flat, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        patch, spacing = list(self.configuration_manager.patch_size), self.configuration_manager.spacing
        apart = int(np.argmax(spacing))
        if max(spacing) / min(spacing) > 3 and not flat:
            if apart == 0:
                rotation, flat = (-math.pi, math.pi), True
                size = np.array([patch[0], *(math.ceil(1.25 * math.hypot(*patch[1:])),) * 2])
            else:  # nnU-Net turns slices of the first axis only
                rotation = (0.0, 0.0)
        return rotation, flat, size, axes

    @staticmethod
    def get_training_transforms(patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes,
                                do_dummy_2d_data_aug, **about_labels):  # fmt: skip
        """nnU-Net's, but for what becomes of labels: the step needs to know where the image ends."""
        transforms = SharedTrainer.get_training_transforms(
            patch_size, rotation_for_DA, None, mirror_axes, do_dummy_2d_data_aug
        )
        return _keeping_the_outside(transforms)

    @staticmethod
    def get_validation_transforms(deep_supervision_scales, **about_labels):
        """None."""
        return _keeping_the_outside(SharedTrainer.get_validation_transforms(None))

    def _prepare(self, batch: dict, rounds: int, seed: tuple[int, ...]) -> Batch:
        """One object per sample, and what the network is shown of it first.

        Args:
            batch: as the loader makes it, its labels with -1 outside of the image.
            rounds: how often the network will be asked.
            seed: of the users.
        """
        labels, zooms = batch["target"][:, 0].numpy(), batch.get("zoom") or [1.0] * len(batch["target"])
        inside = labels != -1
        image = batch["data"] * torch.from_numpy(inside)[:, None]
        multiples = self.bare_network().multiples
        if multiples is not None:
            box = (slice(None), *occupied(torch.from_numpy(inside)[:, None], multiples))
            whole = (slice(None), *box)
            labels, inside, image = labels[box], inside[box], image[whole]
        ignore = self.label_manager.ignore_label
        counted = inside if ignore is None else inside & (labels != ignore)
        users = [np.random.default_rng([*seed, j]) for j in range(len(labels))]
        target = torch.zeros(len(labels), 1, *labels.shape[1:], dtype=torch.int16)
        channels = torch.zeros(len(labels), CHANNELS, *labels.shape[1:])
        things = []
        for j, (user, zoom) in enumerate(zip(users, zooms, strict=True)):
            part = self.interactive.objects == "components"
            thing = choose_object(labels[j], self.targets, user, component=part, empty=EMPTY)
            things.append(thing)
            target[j, 0] = torch.from_numpy(np.where(counted[j], thing, IGNORED).astype(np.int16))
            if ignore is None:
                target[j, 0][~torch.from_numpy(inside[j])] = 0  # outside is known to be background
            beginning = begin(thing, counted[j], user, zoom)
            if beginning.previous is not None:
                channels[j, PREVIOUS] = torch.from_numpy(beginning.previous).float()
            for interaction in beginning.interactions:
                add(channels[j], interaction)

        def correct_all(found: Tensor, shown: Tensor) -> None:
            predictions = found.cpu().numpy()
            for j, (user, zoom) in enumerate(zip(users, zooms, strict=True)):
                interaction = correct(things[j], predictions[j], counted[j], user, zoom)
                if interaction is not None:
                    add(shown[j], interaction)

        move = {"device": self.device, "non_blocking": True}
        every = self.interactive.gradients == "all"
        return Batch(image.contiguous().to(**move), target.to(**move), channels.to(**move), rounds, correct_all, every)

    # Steps -----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.local_rank == 0:
            write_viewer_folder(self.output_folder_base, self.dataset_json)

    def train_step(self, batch: dict) -> dict:
        number, self._step_number = self._step_number, self._step_number + 1
        # The same number of rounds on every rank, or they would wait for each other.
        rounds = 1 + int(
            np.random.default_rng([self.seed, self.current_epoch, number]).integers(self.interactive.rounds)
        )
        prepared = self._prepare(batch, rounds, (self.seed, self.local_rank, self.current_epoch, number))
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = step(self.network, prepared, self.loss)
        self.step(loss, batch)
        return {"loss": loss.detach().float().cpu().numpy()}

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._step_number = 0

    def validation_step(self, batch: dict) -> dict:
        """The loss after the last of three rounds, and what of the objects was found then."""
        number, self._step_number = self._step_number, self._step_number + 1
        prepared = self._prepare(batch, _CHECKED_ROUNDS, (self.seed, self.local_rank, 2**31, number))
        network = self.bare_network()
        network.deep_supervision = False
        try:
            with torch.no_grad(), self.autocast():
                logits = network(torch.cat((prepared.image, prepared.channels), 1)).float()
                for _ in range(_CHECKED_ROUNDS - 1):
                    look_again(logits.argmax(1) == 1, prepared.channels, prepared.correct)
                    logits = network(torch.cat((prepared.image, prepared.channels), 1)).float()
                loss = self.loss(logits, prepared.target)
        finally:
            network.deep_supervision = self.enable_deep_supervision
        found, thing = logits.argmax(1) == 1, prepared.target[:, 0] == 1
        found &= prepared.target[:, 0] != IGNORED
        counts = ((found & thing).sum(), (found & ~thing).sum(), (~found & thing).sum())
        tp, fp, fn = (np.array([int(count)]) for count in counts)
        return {"loss": loss.cpu().numpy(), "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._step_number = 0

    # Validation ------------------------------------------------------------------------------------------------

    @ends_in_one_line
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Simulated users click on every object of the validation cases; nothing is segmented without clicks."""
        if save_probabilities:
            self.print_to_log_file("nnunet_ext: --npz has no effect: without clicks nothing is segmented")
        started = time.monotonic()
        self.set_deep_supervision_enabled(False)
        self.network.eval()
        scores = self._clicked_scores()
        if self.is_ddp:
            gathered: list = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, scores)
            scores = [score for part in gathered for score in part]
        if self.local_rank == 0:
            write_viewer_folder(self.output_folder_base, self.dataset_json)
            self._write_scores(scores)
            run_record.add_validation(self.output_folder, time.monotonic() - started, len(self.do_split()[1]))
        self.set_deep_supervision_enabled(True)

    def _clicked_scores(self) -> list[PromptedScore]:
        """Of this rank's share of the validation cases."""
        _, keys = self.do_split()
        keys = sorted(keys)
        if self.is_ddp:
            keys = keys[self.local_rank :: dist.get_world_size()]
        dataset = self.dataset_class(self.preprocessed_dataset_folder, keys)
        named = {k: v for k, v in self.dataset_json["labels"].items() if k not in ("background", "ignore")}
        network, patch, spacing = self.bare_network(), self.configuration_manager.patch_size, [1.0, 1.0, 1.0]
        scores = []
        for number, case in enumerate(dataset.identifiers):
            data, labels, _, properties = dataset.load_case(case)
            image, labels = torch.from_numpy(np.array(data[:])).float(), np.array(labels[:]).reshape(data.shape[1:])
            spacing = [float(properties["spacing"][axis]) for axis in self.plans_manager.transpose_forward]
            ignore = self.label_manager.ignore_label
            ignored = None if ignore is None else labels == ignore
            for name, values in named.items():
                reference = np.isin(labels, values)
                if not reference.any():
                    continue
                for user in USERS:
                    clicker = make_user(user, spacing, seed=number)
                    with self.autocast():
                        thing = ViewedObject(network, image, patch)
                        dice, nsd = follow(thing, spacing, reference, clicker, ignored=ignored)
                    scores.append(PromptedScore(case, name, user, dice, nsd))
            self.print_to_log_file(f"clicked through {case}", also_print_to_console=False)
        return scores

    def _write_scores(self, scores: list[PromptedScore]) -> None:
        from nnunet_ext.reports.clicks import write_click_curves

        summary = summarise(scores)
        folder = os.path.join(self.output_folder, "validation")
        os.makedirs(folder, exist_ok=True)
        write_json(os.path.join(folder, "prompted_summary.json"), summary)
        write_click_curves(summary, os.path.join(folder, "prompted_summary.png"), self.plans_manager.dataset_name)
        for user, found in summary["users"].items():
            curve = ", ".join(f"{value:.3f} at {n}" for n, value in found["mean"]["Dice"].items())
            self.print_to_log_file(f"Dice under simulated clicks ({user}, sees the reference): {curve}")


def _keeping_the_outside(transforms: Any) -> Any:
    """Without the transform that turns -1 outside of the image into background."""
    from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

    transforms.transforms = [t for t in transforms.transforms if not isinstance(t, RemoveLabelTansform)]
    return transforms
