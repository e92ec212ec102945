"""Checkpoints that survive whatever ends a training, and go on only as they were begun."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from nnunet_ext.errors import TrainingError, UserError
from nnunet_ext.files import atomic_path
from nnunet_ext.trainers.checkpoint_files import keep, to_continue, why_unreadable
from nnunet_ext.trainers.failures import FailsInOneLine
from nnunet_ext.trainers.interrupts import ends_in_one_line
from nnunet_ext.trainers.recipe import optimizer_in

LATEST, PREVIOUS, BEST = "checkpoint_latest.pth", "checkpoint_previous.pth", "checkpoint_best.pth"


class SafeCheckpoints(FailsInOneLine):
    """nnU-Net's trainer whose checkpoints are written whole or not at all, with the one before kept.

    Attributes:
        last_checkpoint_time: when `checkpoint_latest` was written, by `time.monotonic`.
    """

    optimizer: Any
    last_checkpoint_time: float

    def save_checkpoint(self, filename: str) -> None:
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        try:
            with atomic_path(filename) as temporary:
                super().save_checkpoint(str(temporary))
                if Path(filename).name == LATEST and Path(filename).exists():
                    keep(Path(filename), Path(filename).with_name(PREVIOUS))
        except UserError as error:  # a full disk, say
            raise TrainingError(str(error)) from None
        if Path(filename).name == LATEST:
            self.last_checkpoint_time = time.monotonic()

    @ends_in_one_line
    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        path = Path(filename_or_checkpoint)
        if self.plans_manager.plans.get("continue_training") and path.name != BEST:
            path = to_continue(path, path.with_name(LATEST))
        if (problem := why_unreadable(path)) is None:
            self._continue_from(path)
            return
        earlier = [path.with_name(PREVIOUS), path.with_name(BEST)] if path.name == LATEST else []
        for candidate in earlier:
            if why_unreadable(candidate) is None:
                self.print_to_log_file(f"WARNING: {path} is damaged ({problem}); continuing from {candidate.name}")
                self._continue_from(candidate)
                return
        self.fail(f"{path} is damaged ({problem}) and there is no earlier checkpoint; delete it and train again")

    def _continue_from(self, path: Path) -> None:
        if not self.was_initialized:
            self.initialize()
        wanted = optimizer_in(self.optimizer.state_dict())
        written = optimizer_in(torch.load(path, map_location="cpu", weights_only=False, mmap=True)["optimizer_state"])
        if written != wanted:
            self.fail(
                f"{path} was trained with {written}, not {wanted}; set NNUNET_EXT_OPTIMIZER={written} to continue"
            )
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        super().load_checkpoint(str(path))
        # The checkpoint's would win otherwise; the schedule sets the learning rate anew at every epoch.
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
