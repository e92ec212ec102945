"""TensorBoard scalars through nnU-Net's own list of loggers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager

# nnU-Net's name of a logged value -> its place in TensorBoard.
_TAGS = {
    "train_losses": "loss/train",
    "val_losses": "loss/validation",
    "lrs": "learning_rate",
    "mean_fg_dice": "pseudo_dice/mean",
    "ema_fg_dice": "pseudo_dice/moving_average",
}
_PER_CLASS = "dice_per_class_or_region/class_"


def tensorboard_loggers(output_folder: str, dataset_json: dict[str, Any], labels: LabelManager) -> list[Any]:
    """A logger that writes below a fold's folder; [] where the extra `tensorboard` is not installed."""
    names = {k: v for k, v in dataset_json["labels"].items() if k not in ("background", "ignore")}
    # nnU-Net's pseudo Dice lists regions as in dataset.json and labels by value.
    order = list(names) if labels.has_regions else sorted(names, key=lambda name: names[name])
    try:
        return [TensorBoardLogger(os.path.join(output_folder, "tensorboard"), order)]
    except ImportError:
        return []


class TensorBoardLogger:
    """A logger as nnU-Net's `MetaLogger` expects it: losses, learning rate, pseudo Dice per class, epoch seconds.

    Args:
        folder: where the event files go.
        names: label or region names, in the order of nnU-Net's pseudo Dice.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: str, names: Sequence[str]):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder)
        self._names = list(names)
        self._epoch_start = 0.0

    def update_config(self, config: dict[str, Any]) -> None:
        """nnU-Net's configuration; it lies beside the event files as plans.json and run.json already."""

    def log(self, key: str, value: Any, step: int) -> None:
        """Write one value of one epoch."""
        if key == "epoch_start_timestamps":
            self._epoch_start = value
        elif key == "epoch_end_timestamps":
            self._writer.add_scalar("epoch_seconds", value - self._epoch_start, step)
            self._writer.flush()
        elif key.startswith(_PER_CLASS):
            index = int(key[len(_PER_CLASS) :]) - 1
            self._writer.add_scalar(f"pseudo_dice/{self._names[index]}", value, step)
        elif key in _TAGS:
            self._writer.add_scalar(_TAGS[key], value, step)

    def log_summary(self, key: str, value: Any) -> None:
        """Write a value of the whole run, such as the final validation Dice."""
        self._writer.add_scalar(key, value, 0)
        self._writer.flush()
