"""Settings of a training run that nnU-Net keeps in code, read from environment variables.

Environment variables reach `nnUNetv2_train` unchanged through job scripts, workers and distributed ranks. Every one
is validated before anything is written, logged, and saved with the run (`run.json`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.environment import share, whole_number
from nnunet_ext.errors import TrainingError, UserError
from nnunet_ext.files import write_text

PRECISIONS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class TrainingSettings:
    """What the environment asks for; None leaves the trainer's own value.

    Attributes:
        epochs: NNUNET_EXT_EPOCHS.
        iterations: NNUNET_EXT_ITERATIONS, training batches per epoch.
        val_iterations: NNUNET_EXT_VAL_ITERATIONS, validation batches per epoch.
        precision: NNUNET_EXT_PRECISION, one of `PRECISIONS`.
        checkpoint_every: NNUNET_EXT_CHECKPOINT_EVERY, epochs between two writes of checkpoint_latest.
        learning_rate: NNUNET_EXT_LEARNING_RATE, at the first epoch.
    """

    epochs: int | None = None
    iterations: int | None = None
    val_iterations: int | None = None
    precision: str | None = None
    checkpoint_every: int | None = None
    learning_rate: float | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> TrainingSettings:
        """Read and validate the variables.

        Raises:
            TrainingError: a value is not allowed; the message names variable, value and what is allowed.
        """
        return cls(
            epochs=whole_number(environment, "NNUNET_EXT_EPOCHS"),
            iterations=whole_number(environment, "NNUNET_EXT_ITERATIONS"),
            val_iterations=whole_number(environment, "NNUNET_EXT_VAL_ITERATIONS"),
            precision=_precision(environment),
            checkpoint_every=whole_number(environment, "NNUNET_EXT_CHECKPOINT_EVERY"),
            learning_rate=share(environment, "NNUNET_EXT_LEARNING_RATE"),
        )


def default_precision(device_type: str) -> str:
    """nnU-Net's own choice: fp16 with a loss scaler on CUDA, fp32 elsewhere."""
    return "fp16" if device_type == "cuda" else "fp32"


def check_precision(precision: str, device_type: str) -> str:
    """Refuse what the device cannot train in.

    Raises:
        TrainingError: fp16 outside CUDA, where neither a loss scaler nor fast half-precision kernels exist.
    """
    if precision == "fp16" and device_type != "cuda":
        raise TrainingError(f"NNUNET_EXT_PRECISION='fp16' needs a CUDA device, not {device_type}; use bf16 or fp32")
    return precision


def check_writable(folder: str) -> None:
    """Refuse nnUNet_results that cannot be written, before anything is computed.

    Raises:
        TrainingError: naming the folder.
    """
    probe = Path(folder, ".nnunet_ext_can_write")
    try:
        write_text(probe, "")
        probe.unlink()
    except UserError:
        raise TrainingError(f"nnUNet_results={folder} cannot be written; set it to a folder you may write to") from None


def _precision(environment: Mapping[str, str]) -> str | None:
    text = environment.get("NNUNET_EXT_PRECISION", "").strip()
    if text and text not in PRECISIONS:
        raise TrainingError(f"NNUNET_EXT_PRECISION={text!r} must be one of {', '.join(PRECISIONS)}")
    return text or None
