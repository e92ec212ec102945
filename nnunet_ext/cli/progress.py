"""What to show of nnU-Net's output: which step it is in, one line per epoch; citations and tables stay in the log."""

from __future__ import annotations

import re
import sys

# The state of a tqdm bar: "preprocessing:  40%|####      | 4/10 [00:02<00:03,  1.9it/s]".
_BAR = re.compile(r"^(?:.*: )?\s*\d+%\|.*\| (\d+)/(\d+) \[")

_STAGES = (
    "Fingerprint extraction",
    "Experiment planning",
    "Preprocessing",
    "Predicting ",
    "predicting ",
    "Validation complete",
)


def stages(line: str) -> str | None:
    """Lines that name a stage of nnU-Net's work; on a terminal also the state of its progress bars, overwritten."""
    if bar := _BAR.match(line):
        return f"  {bar[1]} of {bar[2]}\x1b[K\r" if sys.stdout.isatty() else None
    return f"  {line.strip()}" if line.startswith(_STAGES) else None


class Epochs:
    """One line per epoch of nnU-Net's training log: loss, pseudo Dice, seconds, time left."""

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs = num_epochs
        self._epoch = 0
        self._seconds: list[float] = []
        self._loss = ""
        self._dice: list[float] = []

    def __call__(self, line: str) -> str | None:
        # Lines begin with a date and a time: "2026-01-31 12:00:00.123456: Epoch 3".
        text = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?: ", "", line).strip()
        if match := re.fullmatch(r"Epoch (\d+)", text):
            self._epoch = int(match[1])
        elif text.startswith("train_loss "):
            self._loss = text.split()[-1]
        elif text.startswith("Pseudo dice "):
            # Without the type names, as in np.float32(0.5), whose digits are no values.
            numbers = re.sub(r"np\.float\d+", "", text)
            self._dice = [float(number) for number in re.findall(r"nan|\d+(?:\.\d+)?(?:e-?\d+)?", numbers)]
        elif match := re.match(r"Epoch time: ([\d.]+) s", text):
            self._seconds.append(float(match[1]))
            return self._line()
        elif text.startswith("nnunet_ext: first batch"):
            return f"  {text.removeprefix('nnunet_ext: ')}"
        else:
            return stages(text)
        return None

    def _line(self) -> str:
        known = [value for value in self._dice if value == value]
        mean = f"{sum(known) / len(known):.2f}" if known else "nan"
        each = " ".join(f"{value:.2f}" for value in self._dice)
        left = max(self.num_epochs - self._epoch - 1, 0) * sum(self._seconds) / len(self._seconds)
        return (
            f"  epoch {self._epoch + 1:3d}/{self.num_epochs}   loss {self._loss:>7s}   pseudo Dice {mean} ({each})   "
            f"{self._seconds[-1]:.1f} s, {int(left) // 60}:{int(left) % 60:02d} left"
        )
