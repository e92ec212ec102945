"""A trainer whose loss curve is the same in every run, so that an interrupted one can be compared to the digit.

nnU-Net looks for it here: `nnUNet_extTrainer` points at this folder.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import torch

from nnunet_ext.trainers.plain import nnUNetTrainerExt


class nnUNetTrainerRepeatable(nnUNetTrainerExt):
    """Draws the random numbers of an epoch from its number alone; needs nnUNet_n_proc_DA=0, one process for all.

    A file kill_while_saving in the fold's folder makes it die by SIGKILL in the middle of writing checkpoint_latest.
    """

    def initialize(self) -> None:
        _seed(self.fold)
        self.seed = 1000 + self.fold  # of the batches
        super().initialize()

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        _seed(1000 * self.fold + self.current_epoch + 1)

    def save_checkpoint(self, filename: str) -> None:
        order = Path(self.output_folder, "kill_while_saving")
        if order.is_file() and Path(filename).name == "checkpoint_latest.pth" and self.current_epoch >= 1:
            order.unlink()
            torch.save = _die_half_way
        super().save_checkpoint(filename)


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 (the augmentation draws from it)
    torch.manual_seed(number)


def _die_half_way(content, filename) -> None:
    Path(filename).write_bytes(b"half a checkpoint")
    os.kill(os.getpid(), signal.SIGKILL)
