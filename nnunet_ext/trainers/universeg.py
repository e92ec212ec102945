"""UniverSeg (arXiv:2304.06131) as an nnU-Net trainer: few labelled cases, and a support set inside the checkpoint."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.architectures.universeg.few_shot import FewShotNetwork
from nnunet_ext.environment import whole_number
from nnunet_ext.errors import TrainingError, UserError
from nnunet_ext.few_shot.support_curve import support_curve
from nnunet_ext.files import read_json, write_json
from nnunet_ext.losses import episode_loss
from nnunet_ext.models.universeg import MODEL
from nnunet_ext.plans.files import inherited, num_outputs, read_dataset_json, read_plans
from nnunet_ext.plans.network import check_configuration, network_arguments
from nnunet_ext.plans.write import preprocessed_folder
from nnunet_ext.reports.support_curve import write_curve
from nnunet_ext.steps.universeg import SUPPORT_SIZE, step
from nnunet_ext.support.augment import GENTLE, Chances
from nnunet_ext.support.episodes import Batch, Episodes, Mixture
from nnunet_ext.support.pool import Pool, largest_side, nnunet_dataset, read_pool, tasks_of
from nnunet_ext.trainers.interrupts import ends_in_one_line
from nnunet_ext.trainers.recipe import Recipe
from nnunet_ext.trainers.shared import SharedTrainer

# Slices of the training cases that go into the checkpoint, per label with and again without it.
_STORED_PER_TASK = 64
# Slices on which Dice against support size is measured.
_CURVE_SLICES = 128
PUBLISHED_WIDTHS = (64, 64, 64, 64)


class nnUNetTrainerUniverSeg(SharedTrainer):
    """UniverSeg trained in episodes on all labels of a data set, for 2d configurations (slices of 3D data included).

    Slices are padded to one square for the whole data set, which becomes the plan's patch, and resized to the
    network's grid. The training cases' slices that support predictions are stored in every checkpoint, so
    `nnUNetv2_predict` works as it is; NNUNET_EXT_SUPPORT replaces them. One labelled case is enough to train.

    The authors publish no training code; optimiser, schedule and mixture of episodes are this project's.
    """

    dataset_class: Any
    # A narrow network takes ten times this learning rate.
    recipe = Recipe("adamw", learning_rate=1e-4, weight_decay=0.0, gradient_clip=5.0)

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        check_configuration("universeg", PlansManager(plans), configuration)
        if os.environ.get("NNUNET_EXT_SUPPORT", "").strip():
            raise TrainingError("NNUNET_EXT_SUPPORT is for prediction; unset it to train and validate")
        plans = _with_whole_slices(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        blocks = network_arguments("universeg", self.configuration_manager).get("encoder_blocks", PUBLISHED_WIDTHS)
        if max(map(np.max, blocks)) < max(PUBLISHED_WIDTHS):
            self.use_recipe(replace(type(self).recipe, learning_rate=1e-3))
        self.support_size = whole_number(os.environ, "NNUNET_EXT_SUPPORT_SIZE") or SUPPORT_SIZE
        self.tasks = tasks_of(self.label_manager.has_regions, dataset_json)
        self._pools: tuple[Pool, Pool] | None = None
        self._split: tuple[list[str], list[str]] | None = None

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        arguments = network_arguments("universeg", configuration_manager)
        return FewShotNetwork(num_input_channels, num_output_channels, **arguments)

    def _build_loss(self) -> Any:
        return episode_loss

    def _get_deep_supervision_scales(self) -> None:
        return None

    # Data ------------------------------------------------------------------------------------------------------

    def do_split(self):
        """nnU-Net's folds; with fewer than five cases, one fold per case, written as nnU-Net would read them."""
        if self._split is not None:
            return self._split
        path = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        cases = sorted(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        if self.fold != "all" and not path.is_file() and len(cases) < 5:
            folds = [{"train": [c for c in cases if c != case] or cases, "val": [case]} for case in cases]
            write_json(path, folds)
            self.print_to_log_file(
                f"nnU-Net's five folds need 5 cases and there are {len(cases)}: wrote {len(folds)} folds, each leaving "
                f"one case out, to {path}"
            )
        train, validation = super().do_split()
        if not train:
            self.fail(f"fold {self.fold} has no training case; {path} has {len(read_json(path))} folds")
        self._split = train, validation
        return self._split

    @property
    def _validates_on_nothing(self) -> bool:
        """With one case in all, nothing is left to validate on."""
        return len({case for part in self.do_split() for case in part}) == 1

    def get_dataloaders(self) -> tuple[Episodes, Episodes]:
        own, validation = self._read_pools()
        others = self._read_other_pools()
        self.bare_network().set_support(self._choose_stored(own), self.support_size)
        rank_and_epoch = 1_000_003 * self.local_rank + self.current_epoch
        common = {"batch_size": self.batch_size, "device": self.device}
        pools = [own, *others]
        sources = ", ".join(f"{len(pool)} slices of {len(pool.case_names)} cases" for pool in pools)
        self.print_to_log_file(f"episodes from {sources}; tasks {', '.join(task.name for task in own.tasks)}")
        try:
            training = Episodes(
                pools,
                pools,
                support_sizes=(1, self.support_size),
                chances=Chances() if others else GENTLE,
                mixture=Mixture() if others else Mixture(synthetic=0),
                seed=12345 + rank_and_epoch,
                **common,
            )
            # Fixed in size and made as predictions are, so that epochs can be compared.
            checking = Episodes(
                [validation],
                [own],
                support_sizes=(self.support_size, self.support_size),
                chances=None,
                mixture=Mixture(synthetic=0, similar=1),
                seed=54321 + rank_and_epoch,
                **common,
            )
        except ValueError as error:
            self.fail(f"{self.plans_manager.dataset_name}, fold {self.fold}: {error}")
        return training, checking

    def _read_pools(self) -> tuple[Pool, Pool]:
        """Slices of the training and of the validation cases, in one window."""
        if self._pools is None:
            folder = Path(self.preprocessed_dataset_folder)
            train, validation = self.do_split()
            size, side = self.bare_network().image_size, self.configuration_manager.patch_size[0]
            common = {"ignore_label": self.label_manager.ignore_label, "report": self.print_to_log_file}
            try:
                own = read_pool(nnunet_dataset(folder, train), self.tasks, size, side, **common)
                if set(validation) == set(train):
                    self._pools = own, own
                else:
                    dataset = nnunet_dataset(folder, validation)
                    self._pools = own, read_pool(dataset, self.tasks, size, side, window=own.window, **common)
            except UserError as error:
                self.fail(str(error))
        assert self._pools is not None
        return self._pools

    def _read_other_pools(self) -> list[Pool]:
        """One pool per data set that NNUNET_EXT_EPISODE_DATASETS names, all its cases."""
        size = self.bare_network().image_size
        pools: list[Pool] = []
        self.other_datasets = []
        for name in os.environ.get("NNUNET_EXT_EPISODE_DATASETS", "").replace(",", " ").split():
            try:
                folder = preprocessed_folder(name)
                if folder.name == self.plans_manager.dataset_name:
                    raise UserError(f"{folder.name} is trained on already; name other data sets")
                about = read_plans(folder / "nnUNetPlans.json", "plan it again")
                dataset_json = read_dataset_json(folder / "dataset.json", "restore it")
                num_outputs(folder / "dataset.json", dataset_json)  # asks whether nnU-Net takes these labels
                dataset = nnunet_dataset(folder / inherited(about, "2d").text("data_identifier"))
                labels = PlansManager(about.content).get_label_manager(dataset_json)
                tasks, ignore = tasks_of(labels.has_regions, dataset_json), labels.ignore_label
                side = largest_side(dataset)
                pools.append(read_pool(dataset, tasks, size, side, ignore_label=ignore, report=self.print_to_log_file))
                self.other_datasets.append(folder.name)
            except (UserError, FileNotFoundError, RuntimeError) as error:
                self.fail(f"NNUNET_EXT_EPISODE_DATASETS, data set {name}: {error}")
        return pools

    def _choose_stored(self, pool: Pool) -> Pool:
        """The slices that support predictions: spread over the cases, with and without each label."""
        rng = np.random.default_rng(0)
        chosen: set[int] = set()
        for task in range(len(pool.tasks)):
            for with_label in (True, False):
                chosen.update(pool.draw(task, _STORED_PER_TASK, rng, with_label=with_label).tolist())
        return pool.subset(np.array(sorted(chosen)))

    # Steps -----------------------------------------------------------------------------------------------------

    def train_step(self, batch: Batch) -> dict:  # type: ignore[override]
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = step(self.network, batch, self.loss)
        self.step(loss, {"keys": batch.keys})
        return {"loss": loss.detach().cpu().numpy()}

    def validation_step(self, batch: Batch) -> dict:  # type: ignore[override]
        with self.autocast():
            logits = self.network(batch.target, batch.support_images, batch.support_labels)
        loss = self.loss(logits.float(), batch.target_label)
        counts = np.zeros((3, len(self.tasks)))
        found, true = (logits > 0).cpu().numpy(), (batch.target_label > 0.5).cpu().numpy()
        for task, f, t in zip(batch.tasks, found, true, strict=True):
            counts[:, task] += (f & t).sum(), (f & ~t).sum(), (~f & t).sum()
        names = ("tp_hard", "fp_hard", "fn_hard")
        return {"loss": loss.cpu().numpy(), **dict(zip(names, counts, strict=True))}

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing: UniverSeg has one output."""

    @ends_in_one_line
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation with supports from other cases only, then Dice against support size."""
        if self._validates_on_nothing:
            self.print_to_log_file("one labelled case in all: it supports every prediction, so nothing is validated")
            return
        network = self.bare_network()
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            network.exclude_case(None)
        if self.local_rank == 0:
            self._write_support_curve(network)

    def before_case(self, name: str) -> None:
        # With fold `all` a case is among those whose slices support.
        self.bare_network().exclude_case(name)

    def _write_support_curve(self, network: FewShotNetwork) -> None:
        supports, validation = self._read_pools()[0], self.do_split()[1]
        folder = Path(self.preprocessed_dataset_folder)
        queries = read_pool(
            nnunet_dataset(folder, _cases_for(self.dataset_class, folder, validation)),
            self.tasks,
            network.image_size,
            supports.side,
            window=supports.window,
            ignore_label=self.label_manager.ignore_label,
            every_slice=True,
        )
        with self.autocast():
            rows = support_curve(network.core, queries, supports, device=self.device)
        write_curve(rows, Path(self.output_folder), self.plans_manager.dataset_name)
        for row in rows:
            self.print_to_log_file(f"support size {row.support_size}: {row.label} Dice {row.dice_mean:.4f}")


def _with_whole_slices(plans: dict, configuration: str) -> dict:
    """Plans whose patch covers every slice of the data set: supports and queries must show the same field of view."""
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    plans = copy.deepcopy(plans)
    own = plans["configurations"][configuration]
    if nnUNet_preprocessed.is_set():
        folder = Path(str(nnUNet_preprocessed), manager.dataset_name, settings.data_identifier)
        try:
            side = largest_side(nnunet_dataset(folder))
        except UserError as error:
            raise TrainingError(str(error)) from None
        own["patch_size"] = [side, side]
    if settings.network_arch_class_name != MODEL.network:
        own["batch_size"] = min(settings.batch_size, MODEL.batch_size or settings.batch_size)
    return plans


def _cases_for(dataset_class: Any, folder: Path, cases: list[str]) -> list[str]:
    """As many of the cases as have `_CURVE_SLICES` slices together, at least one."""
    dataset = dataset_class(str(folder), cases)
    chosen: list[str] = []
    slices = 0
    for case in sorted(cases):
        slices += dataset.load_case(case)[0].shape[1]
        if chosen and slices > _CURVE_SLICES:
            break
        chosen.append(case)
    return chosen
