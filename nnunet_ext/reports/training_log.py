"""What nnU-Net's training_log_*.txt of one fold says: curves, epoch times and seconds per predicted case.

Read from the text, because it is there for every trainer, nnU-Net's own included, and because a checkpoint would have
to be unpickled for the same numbers.
"""

from __future__ import annotations

import datetime
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+): (.*?)\s*$")
_EPOCH = re.compile(r"^Epoch (\d+)$")
_FIELDS = {
    "train_loss": re.compile(r"^train_loss (\S+)$"),
    "val_loss": re.compile(r"^val_loss (\S+)$"),
    "learning_rate": re.compile(r"^Current learning rate: (\S+)$"),
    "seconds": re.compile(r"^Epoch time: (\S+) s$"),
}
_DICE = re.compile(r"^Pseudo dice \[(.*)\]$")
# `np.float32(0.72)` or `0.72`; a class absent from the validation patches is nan.
_NUMBER = re.compile(r"(?:np\.float\d+\()?(-?\d+(?:\.\d+)?(?:e-?\d+)?|nan)\)?")


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


def read_training_log(fold_folder: Path) -> TrainingLog | None:
    """All logs of a fold in order of time, so that a resumed run continues its curves; None when there is none."""
    files = sorted(fold_folder.glob("training_log_*.txt"))
    if not files:
        return None
    curves: dict[str, dict[int, float]] = {name: {} for name in (*_FIELDS, "pseudo_dice")}
    seconds: tuple[float, ...] = ()
    for file in files:
        # A validation that was run again replaces the earlier one.
        seconds = _read(file.read_text(encoding="utf-8", errors="replace"), curves) or seconds
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
        elif message.startswith("predicting "):
            starts.append(datetime.datetime.fromisoformat(stamp))
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
