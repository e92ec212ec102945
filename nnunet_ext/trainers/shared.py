"""What all trainers of this package share: settings, safe checkpoints, signals, a guard against NaN, records.

Nothing here knows a network. A trainer adds `build_network_architecture` and, where its training differs, overrides
the same methods of `nnUNetTrainer` it would override without this class.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.paths import nnUNet_results
from torch import nn
from torch._dynamo import OptimizedModule

from nnunet_ext.augmentation.batches import Batches
from nnunet_ext.environment import decimal, unknown_variables
from nnunet_ext.errors import TrainingError
from nnunet_ext.files import write_json
from nnunet_ext.inference.validation import validate_fold
from nnunet_ext.machine import available_cores
from nnunet_ext.ops.backends import taken_by
from nnunet_ext.plans.network import count_parameters
from nnunet_ext.steps import supervised
from nnunet_ext.trainers import run_record
from nnunet_ext.trainers.checkpoint_files import check_writable
from nnunet_ext.trainers.checkpoints import LATEST, PREVIOUS, SafeCheckpoints
from nnunet_ext.trainers.interrupts import Stopped, ends_in_one_line
from nnunet_ext.trainers.loaders import close_loaders, draw_seed, threaded_loaders
from nnunet_ext.trainers.recipe import Recipe, optimizer_and_schedule
from nnunet_ext.trainers.settings import TrainingSettings, check_precision, default_precision, planned_training
from nnunet_ext.trainers.signals import handlers
from nnunet_ext.trainers.tensorboard import tensorboard_loggers

# The exit status that says: everything is saved, submit me again with --c.
EXIT_RESUBMIT = 85
# Without NNUNET_EXT_CHECKPOINT_EVERY, checkpoint_latest is written after the first epoch end this long after the last.
CHECKPOINT_SECONDS = 600


class _PatienceEnds(Exception):
    """Leaves nnU-Net's loop over the epochs."""


class SharedTrainer(SafeCheckpoints):
    """nnU-Net's trainer with settings from the environment, atomic checkpoints, signals and a NaN guard.

    * Settings: see `nnunet_ext.trainers.settings`.
    * Checkpoints are written to a temporary name and renamed; `checkpoint_latest` at every epoch end, but not more
      often than every ten minutes unless NNUNET_EXT_CHECKPOINT_EVERY says so. The one before is kept, and used with
      one line of warning when the latest cannot be read.
    * SIGUSR1 finishes the epoch, SIGTERM stops at the next batch; both save and exit with status 85. In distributed
      training both finish the epoch.
    * A loss that is not finite stops the run; no checkpoint is overwritten.
    """

    # nnU-Net declares none of its attributes' types.
    network: Any
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    initial_lr: float
    weight_decay: float

    # How weights are updated: nnU-Net's recipe, unless a trainer's paper has another.
    recipe = Recipe()

    # Who cuts patches, in threads; and whether these may lie anywhere that their centre is in the image.
    batches = Batches
    patches_reach_out = False

    # Networks with a custom kernel or a Python loop inside gain nothing from torch.compile and may break it.
    compiles = False

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        settings = TrainingSettings.from_environment()
        if nnUNet_results.is_set():
            check_writable(str(nnUNet_results))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.settings = settings
        for name, remedy in unknown_variables(os.environ).items():
            self.print_to_log_file(f"WARNING: the variable {name} has no effect; {remedy}")
        self.precision = check_precision(settings.precision or default_precision(self.device.type), self.device.type)
        if self.precision != "fp16":
            self.grad_scaler = None  # only fp16 underflows
        planned = planned_training(self.configuration_manager.configuration, self.plans_manager.plans_name)
        if planned:
            said = ", ".join(f"{name} {value}" for name, value in planned.items())
            self.print_to_log_file(f"nnunet_ext: the plans ask for {said}; environment variables win")
        planned_epochs, planned_iterations = planned.pop("epochs", None), planned.pop("iterations", None)
        self.num_epochs = settings.epochs or planned_epochs or self.num_epochs
        self.num_iterations_per_epoch = settings.iterations or planned_iterations or self.num_iterations_per_epoch
        self._planned_recipe = planned
        self.num_val_iterations_per_epoch = settings.val_iterations or self.num_val_iterations_per_epoch
        self.use_recipe(self.recipe)
        self.seed = draw_seed() if settings.seed is None else settings.seed
        self.last_checkpoint_time = time.monotonic()
        self._waiting_since: float | None = None  # for the first batch
        self._stop: str | None = None  # None, "epoch" or "batch"
        self._record: dict[str, Any] = {}
        self._backends: dict[str, str] = {}
        self.other_datasets: list[str] = []  # names of data sets that training draws from besides its own

    def use_recipe(self, own: Recipe) -> None:
        """Update the weights by this recipe, what the plans change of it, and what the environment does.

        Raises:
            TrainingError: the warm-up takes the whole training.
        """
        self.recipe = self.settings.recipe(replace(own, **self._planned_recipe))
        # nnU-Net's names for them; a subclass may set these, as one of nnU-Net's trainer does.
        self.initial_lr, self.weight_decay = self.recipe.learning_rate, self.recipe.weight_decay
        if self.recipe.warmup_epochs >= self.num_epochs:
            raise TrainingError(
                f"NNUNET_EXT_WARMUP_EPOCHS={self.recipe.warmup_epochs} must be fewer than the {self.num_epochs} epochs "
                "of training"
            )

    # Network ---------------------------------------------------------------------------------------------------

    @ends_in_one_line
    def initialize(self) -> None:
        if self.device.type == "cpu":
            # nnU-Net takes every core of the node; a job owns only its allocation.
            asked = decimal(os.environ.get("OMP_NUM_THREADS", ""))
            torch.set_num_threads(min(available_cores(), asked or 10**6))
        self._check_recipe()
        super().initialize()
        # Before anything runs: what works here is said at once and once, and a wish that cannot be met costs nothing.
        try:
            self._backends = taken_by(self.bare_network(), self.device)
        except ValueError as error:
            self.fail(str(error))
        if self._backends:
            self.print_to_log_file(f"nnunet_ext: {', '.join(f'{k} by {v}' for k, v in self._backends.items())}")
        if self.local_rank == 0:
            self.logger.loggers += tensorboard_loggers(self.output_folder, self.dataset_json, self.label_manager)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        recipe = replace(self.recipe, learning_rate=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer_and_schedule(self.network, recipe, self.num_epochs)

    def _updates(self) -> dict[str, Any]:
        """What updates the weights, for log and run.json."""
        if type(self).configure_optimizers is SharedTrainer.configure_optimizers:
            return asdict(replace(self.recipe, learning_rate=self.initial_lr, weight_decay=self.weight_decay))
        # A subclass's own, of which nothing more is known.
        return {"optimizer": type(self.optimizer).__name__, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _check_recipe(self) -> None:
        """The environment must not ask in vain for what an optimiser of a subclass's own does not take.

        Learning rate and weight decay reach it under nnU-Net's names, and gradients are clipped in any case.
        """
        asked = [name for name in self.settings.changes_recipe if name in ("optimizer", "schedule", "warmup_epochs")]
        if asked and type(self).configure_optimizers is not SharedTrainer.configure_optimizers:
            names = ", ".join(f"NNUNET_EXT_{name.upper()}" for name in asked)
            self.fail(f"{type(self).__name__} has its own configure_optimizers, which does not know {names}; unset it")

    def bare_network(self) -> nn.Module:
        """The network without the wrappers of distributed training and torch.compile."""
        network = self.network.module if self.is_ddp else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        self.bare_network().deep_supervision = enabled and self.enable_deep_supervision

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        # The network knows its own strides; the plans' pooling belongs to nnU-Net's U-Net.
        return self.bare_network().deep_supervision_scales if self.enable_deep_supervision else None

    def _do_i_compile(self) -> bool:
        return super()._do_i_compile() and (self.compiles or "nnUNet_compile" in os.environ)

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net's plot needs a package that is not installed and prints an error on every run."""

    # One step --------------------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager:
        """The context in which the network and the loss run."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype)

    def train_step(self, batch: dict) -> dict:
        data, target = self._to_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = supervised.step(self.network, supervised.Batch(data, target), self.loss)
        self.step(loss, batch)
        return {"loss": loss.detach().float().cpu().numpy()}

    def step(self, loss: torch.Tensor, batch: dict) -> None:
        """Check the loss, run backward, clip the gradients, and update the weights."""
        max_norm = self.recipe.gradient_clip
        self.fail_together(None if torch.isfinite(loss) else self._about_loss(loss.item(), batch))
        if self.grad_scaler is None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), max_norm)
            self.optimizer.step()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), max_norm)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        self.after_update()
        if self._waiting_since is not None:
            seconds, self._waiting_since = time.monotonic() - self._waiting_since, None
            self.print_to_log_file(f"nnunet_ext: first batch after {seconds:.0f} s")
        if self._stop == "batch" and not self.is_ddp:
            # The epoch is not over: it is run again from these weights.
            self.current_epoch -= 1
            self.save_checkpoint(os.path.join(self.output_folder, LATEST))
            self._exit_for_resubmission("stopped within the epoch")

    def after_update(self) -> None:
        """What belongs to an update of the weights beside the optimiser's step; called before anything is saved."""

    def _about_loss(self, value: float, batch: dict) -> str:
        learning_rate = self.optimizer.param_groups[0]["lr"]
        finer = {"fp16": "NNUNET_EXT_PRECISION=bf16 or fp32", "bf16": "NNUNET_EXT_PRECISION=fp32"}
        remedy = finer.get(self.precision, "a lower NNUNET_EXT_LEARNING_RATE")
        return (
            f"the loss is {value} in epoch {self.current_epoch} at learning rate {learning_rate:.3g}, "
            f"precision {self.precision}, cases {', '.join(map(str, batch['keys']))}; the last good checkpoint in "
            f"{self.output_folder} is kept. Look at these cases, or train with {remedy}"
        )

    def _to_device(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor | list[torch.Tensor]]:
        target = batch["target"]
        move = {"device": self.device, "non_blocking": True}
        moved = [t.to(**move) for t in target] if isinstance(target, list) else target.to(**move)
        return batch["data"].to(**move), moved

    def validation_step(self, batch: dict) -> dict:
        if self.precision == "fp16":
            return super().validation_step(batch)
        # nnU-Net's step casts to fp16 on CUDA; within it, the network runs in the precision of this run.
        network = self.network

        def in_own_precision(data: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                return network(data)

        self.network = in_own_precision
        try:
            return super().validation_step(batch)
        finally:
            self.network = network

    # Data ------------------------------------------------------------------------------------------------------

    def do_split(self):
        splits = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold != "all" and not splits.is_file():
            cases = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
            if len(cases) < 5:
                self.fail(
                    f"{self.plans_manager.dataset_name} has {len(cases)} cases and nnU-Net's five folds need at least "
                    f"5; train with fold 'all', or write your own folds into {splits}"
                )
        return super().do_split()

    def get_dataloaders(self):
        return threaded_loaders(self) if self.settings.loader == "threads" else super().get_dataloaders()

    # Epochs ----------------------------------------------------------------------------------------------------

    @ends_in_one_line
    def run_training(self) -> None:
        try:
            with handlers(self._on_signal):
                try:
                    super().run_training()
                except _PatienceEnds:
                    self.on_train_end()
        finally:
            close_loaders(self)

    @ends_in_one_line
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        def leave(number: int) -> None:
            # Training is over and saved; --c runs the validation again.
            raise Stopped(EXIT_RESUBMIT)

        begin = time.monotonic()
        with handlers(leave):
            validate_fold(self, save_probabilities)
        if self.local_rank == 0:
            run_record.add_validation(self.output_folder, time.monotonic() - begin, len(self.do_split()[1]))

    def on_epoch_start(self) -> None:
        # Here, not at an epoch's end: a finished training that is continued ends at once.
        waited = epochs_without_progress(self.logger.get_value("ema_fg_dice", step=None))
        if self.settings.patience and waited >= self.settings.patience:
            why = f"the EMA Dice has not risen for {waited} epochs (NNUNET_EXT_PATIENCE={self.settings.patience})"
            self.print_to_log_file(f"nnunet_ext: training ends after epoch {self.current_epoch - 1}: {why}")
            self._record["ended_early"] = why
            self._write_record()
            raise _PatienceEnds
        super().on_epoch_start()

    def before_case(self, name: str) -> None:
        """Called before each case of the final validation is predicted."""

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGTERM and not self._record and not self.is_ddp:
            raise Stopped(EXIT_RESUBMIT)  # the first epoch has not begun: there is nothing to save
        self._stop = "batch" if number == signal.SIGTERM else "epoch"

    def on_train_start(self) -> None:
        super().on_train_start()
        self.print_to_log_file(
            f"nnunet_ext: {self.num_epochs} epochs x {self.num_iterations_per_epoch} iterations, "
            f"{self.num_val_iterations_per_epoch} validation iterations, precision {self.precision}; workers "
            "start and kernels are compiled before the first batch, which may take minutes"
        )
        updates = self._updates()
        self.print_to_log_file(f"nnunet_ext: {', '.join(f'{name} {value}' for name, value in updates.items())}")
        self._waiting_since = time.monotonic()
        self._record = {
            "trainer": type(self).__name__,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "settings": {
                **asdict(self.settings),
                **updates,
                "epochs": self.num_epochs,
                "iterations": self.num_iterations_per_epoch,
                "val_iterations": self.num_val_iterations_per_epoch,
                "precision": self.precision,
                "seed": self.seed,
                "batch_size": self.configuration_manager.batch_size,
                "patch_size": list(self.configuration_manager.patch_size),
            },
            "backends": self._backends,
            "parameters": count_parameters(self.bare_network()),
            "gmacs_per_patch": self._gmacs(),
            "software": run_record.describe_software(),
            "hardware": run_record.describe_hardware(self.device),
            "environment": run_record.describe_environment(),
            "other_datasets": self.other_datasets,
        }
        self._continue_record()
        self._write_record()

    def on_epoch_end(self) -> None:
        self._agree_to_stop()
        every = self.settings.checkpoint_every
        if every is None:
            due = time.monotonic() - self.last_checkpoint_time >= CHECKPOINT_SECONDS
        else:
            due = (self.current_epoch + 1) % every == 0
        # nnU-Net writes checkpoint_latest itself when the epoch is divisible by `save_every`.
        self.save_every = 1 if due or self._stop else self.num_epochs + 1
        super().on_epoch_end()
        self._write_record()
        if self._stop and self.current_epoch < self.num_epochs:
            self._exit_for_resubmission("epoch finished")

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.local_rank == 0:
            Path(self.output_folder, PREVIOUS).unlink(missing_ok=True)
        if self._stop:
            self._exit_for_resubmission("training finished, validation not begun")

    def _agree_to_stop(self) -> None:
        """In distributed training a signal may reach one rank only; all must leave after the same epoch."""
        if self.is_ddp:
            flag = torch.tensor(int(self._stop is not None), device=self.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            self._stop = "epoch" if flag.item() else None

    def _exit_for_resubmission(self, why: str) -> None:
        self.print_to_log_file(f"signal received, {why}; saved, exit status {EXIT_RESUBMIT}: continue with --c")
        raise SystemExit(EXIT_RESUBMIT)

    # Records ---------------------------------------------------------------------------------------------------

    def _write_record(self) -> None:
        if self.local_rank == 0:
            starts = self.logger.get_value("epoch_start_timestamps", step=None)
            ends = self.logger.get_value("epoch_end_timestamps", step=None)
            self._record["epoch_seconds"] = [round(end - start, 3) for start, end in zip(starts, ends, strict=False)]
            self._record["peak_memory_bytes"] = run_record.peak_memory_bytes(self.device)
            write_json(os.path.join(self.output_folder, "run.json"), self._record)

    def _continue_record(self) -> None:
        """Join this run's record to that of the run it continues, and say what changes in the middle."""
        epoch = self.current_epoch
        before = run_record.read_record(self.output_folder) if epoch > 0 else None
        self.lr_scheduler.step(min(epoch, self.num_epochs - 1))  # as the epoch that follows is about to
        rates = *self.logger.get_value("lrs", step=None)[-1:], self.optimizer.param_groups[0]["lr"]
        self._record, warning = run_record.continued(self._record, before, epoch, rates)
        if warning:
            self.print_to_log_file(f"WARNING: {warning}")

    def _gmacs(self) -> float | None:
        self.set_deep_supervision_enabled(False)
        try:
            patch_size = self.configuration_manager.patch_size
            return run_record.count_gmacs(self.bare_network(), self.num_input_channels, patch_size, self.device)
        finally:
            self.set_deep_supervision_enabled(self.enable_deep_supervision)


def epochs_without_progress(ema_dice: Sequence[float]) -> int:
    """How many epochs ago the highest of these values was reached; 0 before the first epoch."""
    if not len(ema_dice):
        return 0
    return len(ema_dice) - 1 - int(np.argmax(np.nan_to_num(ema_dice, nan=-np.inf)))
