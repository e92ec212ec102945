"""What nnU-Net's training_log_*.txt of one fold says: curves, epoch times and seconds per predicted case.

Read from the text, because it is there for every trainer, nnU-Net's own included, and because a checkpoint would have
to be unpickled for the same numbers. Reports and the status of batch jobs read it here, so that they agree.
"""

from __future__ import annotations

import datetime
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import UserError

_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?): (.*?)\s*$")
_EPOCH = re.compile(r"^Epoch (\d{1,9})$")
_VALUE = r"(-?\d+(?:\.\d+)?(?:e[-+]?\d{1,3})?|nan|-?inf)"
_FIELDS = {
    "train_loss": re.compile(rf"^train_loss {_VALUE}$"),
    "val_loss": re.compile(rf"^val_loss {_VALUE}$"),
    "learning_rate": re.compile(rf"^Current learning rate: {_VALUE}$"),
    "seconds": re.compile(rf"^Epoch time: {_VALUE} s$"),
}
_DICE = re.compile(r"^Pseudo dice \[(.*)\]$")
# `np.float32(0.72)` or `0.72`; a class absent from the validation patches is nan.
_NUMBER = re.compile(r"(?:np\.float\d+\()?(-?\d+(?:\.\d+)?(?:e-?\d{1,3})?|nan)\)?")


@dataclass(frozen=True)
class TrainingLog:
    """One fold.

    Attributes:
        curves: {`train_loss`, `val_loss`, `pseudo_dice`, `learning_rate`, `seconds`: {epoch: value}}.
        seconds_per_case: time from one `predicting CASE` line to the next, the final validation's.
    """

    curves: dict[str, dict[int, float]]
    seconds_per_case: tuple[float, ...]

    @property
    def epochs(self) -> int:
        """Finished epochs."""
        return len(self.curves["seconds"])

    @property
    def next_epoch(self) -> int:
        """The epoch after the last finished one: how far the training is, even where earlier logs were deleted."""
        return max(self.curves["seconds"], default=-1) + 1


def training_logs(fold_folder: Path) -> list[Path]:
    """The logs of a fold in order of time.

    nnU-Net does not pad the numbers of training_log_2026_1_31_12_00_00.txt, so text does not sort them.
    """
    return sorted(
        (file for file in fold_folder.glob("training_log_*.txt") if file.is_file()),
        key=lambda file: ([int(number) for number in re.findall(r"\d+", file.name)], file.name),
    )


def read_training_log(fold_folder: Path) -> TrainingLog | None:
    """All logs of a fold as one run; None when there is none.

    A run that was interrupted begins again at its last checkpoint: what was logged from that epoch on is dropped, since
    it is no part of the network.

    Raises:
        UserError: a log cannot be read.
    """
    files = training_logs(fold_folder)
    if not files:
        return None
    curves: dict[str, dict[int, float]] = {name: {} for name in (*_FIELDS, "pseudo_dice")}
    seconds: tuple[float, ...] = ()
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
        # A validation that was run again replaces the earlier one.
        seconds = _read(text, curves) or seconds
    return TrainingLog(curves, seconds)


def _read(text: str, curves: dict[str, dict[int, float]]) -> tuple[float, ...]:
    epoch: int | None = None
    starts: list[datetime.datetime] = []
    for line in text.splitlines():
        stamped = _STAMP.match(line)
        if not stamped:
            continue
        stamp, message = stamped.groups()
        if found := _EPOCH.match(message):
            epoch = int(found[1])
            for curve in curves.values():
                for later in [key for key in curve if key >= epoch]:
                    del curve[later]
        elif message.startswith("predicting "):
            try:
                starts.append(datetime.datetime.fromisoformat(stamp))
            except ValueError:  # digits, but no date
                continue
        elif epoch is None:
            continue
        elif found := _DICE.match(message):
            values = [float(v) for v in _NUMBER.findall(found[1])]
            known = [v for v in values if v == v]
            if known:
                curves["pseudo_dice"][epoch] = sum(known) / len(known)
        else:
            for name, pattern in _FIELDS.items():
                if found := pattern.match(message):
                    curves[name][epoch] = float(found[1])
    return tuple((b - a).total_seconds() for a, b in itertools.pairwise(starts))
