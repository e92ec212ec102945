"""How far a fold is, read from what nnU-Net itself writes: training logs, debug.json, validation. No torch needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json
from nnunet_ext.training_log import read_training_log

_EMA = 0.9  # nnU-Net's weight of the past in its moving average of the pseudo Dice
_RECENT = 20  # epochs whose mean time foretells the rest


@dataclass(frozen=True)
class Progress:
    """State of one fold on disk.

    Attributes:
        epochs: finished.
        total: planned; None before the first start.
        dice: pseudo Dice per finished epoch in which it is defined, mean of the foreground.
        losses: training loss per finished epoch.
        seconds_per_epoch: mean of the latest epochs; None before the first.
        trained: checkpoint_final is there.
        finished: the validation has its summary.
    """

    epochs: int
    total: int | None
    dice: tuple[float, ...]
    losses: tuple[float, ...]
    seconds_per_epoch: float | None
    trained: bool
    finished: bool

    @property
    def ema_dice(self) -> float | None:
        """nnU-Net's exponential moving average of the pseudo Dice; None before the first epoch."""
        average: float | None = None
        for value in self.dice:
            average = value if average is None else _EMA * average + (1 - _EMA) * value
        return average

    @property
    def learnt_nothing(self) -> bool:
        """Trained to the end, and the foreground was never found in the validation patches."""
        return (self.trained or self.finished) and self.ema_dice is not None and f"{self.ema_dice:.3f}" == "0.000"

    @property
    def seconds_left(self) -> float | None:
        """Of training, without the validation after it."""
        if self.total is None or self.seconds_per_epoch is None:
            return None
        return (self.total - self.epochs) * self.seconds_per_epoch


def read_progress(folder: Path) -> Progress:
    """Read one fold.

    An epoch that was run again after an interruption counts once, as it was run last.

    Args:
        folder: nnU-Net's fold_k; may be missing.

    Raises:
        UserError: a training log cannot be read.
    """
    log = read_training_log(folder)
    curves = log.curves if log is not None else {}
    dice, losses, seconds = (curves.get(name, {}) for name in ("pseudo_dice", "train_loss", "seconds"))
    recent = [seconds[epoch] for epoch in sorted(seconds)[-_RECENT:]]
    return Progress(
        epochs=len(seconds),
        total=_planned(folder),
        dice=tuple(dice[epoch] for epoch in sorted(dice) if epoch in seconds),
        losses=tuple(losses[epoch] for epoch in sorted(losses) if epoch in seconds),
        seconds_per_epoch=sum(recent) / len(recent) if recent else None,
        trained=(folder / "checkpoint_final.pth").is_file(),
        finished=(folder / "validation" / "summary.json").is_file(),
    )


def progress_line(progress: Progress) -> str:
    """One fold in a few words: epoch, EMA Dice, time left."""
    if progress.total is None:
        return "starting"
    dice = "" if progress.ema_dice is None else f", EMA Dice {progress.ema_dice:.3f}"
    words = f"epoch {progress.epochs}/{progress.total}{dice}"
    if progress.learnt_nothing:
        words += ": learnt nothing"
    if progress.finished:
        return f"finished, {words}"
    if progress.epochs == progress.total:
        return f"{words}, validating"
    left = progress.seconds_left
    return words if left is None else f"{words}, {duration(left)} left"


def duration(seconds: float) -> str:
    """Days, hours and minutes, e.g. 1-02:30 or 0:05:10 as H:MM:SS below a day."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}" if days else f"{hours}:{minutes:02d}:{rest:02d}"


def _planned(folder: Path) -> int | None:
    """Epochs from the debug.json nnU-Net writes when training starts."""
    try:
        return int(read_json(folder / "debug.json")["num_epochs"])
    except (UserError, KeyError, TypeError, ValueError, OverflowError):  # not there yet, or being written
        return None
