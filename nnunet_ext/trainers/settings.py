"""Settings of a training run that nnU-Net keeps in code, read from environment variables.

Environment variables reach `nnUNetv2_train` unchanged through job scripts, workers and distributed ranks. Every one
is validated before anything is written, logged, and saved with the run (`run.json`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nnunet_ext.environment import choice, number, whole_number
from nnunet_ext.errors import TrainingError
from nnunet_ext.trainers.recipe import ADAMW, OPTIMIZERS, SCHEDULES, Recipe

PRECISIONS = ("fp16", "bf16", "fp32")
LOADERS = ("threads", "processes")


@dataclass(frozen=True)
class TrainingSettings:
    """What the environment asks for; None leaves the trainer's own value.

    Attributes:
        epochs: NNUNET_EXT_EPOCHS.
        iterations: NNUNET_EXT_ITERATIONS, training batches per epoch.
        val_iterations: NNUNET_EXT_VAL_ITERATIONS, validation batches per epoch.
        precision: NNUNET_EXT_PRECISION, one of `PRECISIONS`.
        checkpoint_every: NNUNET_EXT_CHECKPOINT_EVERY, epochs between two writes of checkpoint_latest.
        patience: NNUNET_EXT_PATIENCE, epochs without a better EMA Dice after which training ends.
        optimizer: NNUNET_EXT_OPTIMIZER; this and the next five are those of `Recipe`.
        learning_rate: NNUNET_EXT_LEARNING_RATE.
        weight_decay: NNUNET_EXT_WEIGHT_DECAY.
        schedule: NNUNET_EXT_SCHEDULE.
        warmup_epochs: NNUNET_EXT_WARMUP_EPOCHS.
        gradient_clip: NNUNET_EXT_GRADIENT_CLIP.
        loader: NNUNET_EXT_LOADER, one of `LOADERS`.
        seed: NNUNET_EXT_SEED, of the batches.
    """

    epochs: int | None = None
    iterations: int | None = None
    val_iterations: int | None = None
    precision: str | None = None
    checkpoint_every: int | None = None
    patience: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    warmup_epochs: int | None = None
    gradient_clip: float | None = None
    loader: str = LOADERS[0]
    seed: int | None = None

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
            precision=choice(environment, "NNUNET_EXT_PRECISION", PRECISIONS),
            checkpoint_every=whole_number(environment, "NNUNET_EXT_CHECKPOINT_EVERY"),
            patience=whole_number(environment, "NNUNET_EXT_PATIENCE"),
            optimizer=choice(environment, "NNUNET_EXT_OPTIMIZER", OPTIMIZERS),
            learning_rate=number(environment, "NNUNET_EXT_LEARNING_RATE", 1),
            weight_decay=number(environment, "NNUNET_EXT_WEIGHT_DECAY", 1, zero=True),
            schedule=choice(environment, "NNUNET_EXT_SCHEDULE", SCHEDULES),
            warmup_epochs=whole_number(environment, "NNUNET_EXT_WARMUP_EPOCHS"),
            gradient_clip=number(environment, "NNUNET_EXT_GRADIENT_CLIP"),
            loader=choice(environment, "NNUNET_EXT_LOADER", LOADERS) or LOADERS[0],
            seed=whole_number(environment, "NNUNET_EXT_SEED"),
        )

    def recipe(self, own: Recipe) -> Recipe:
        """A trainer's own recipe with what the environment changes.

        With another optimiser the rest is that optimiser's usual recipe: a learning rate of SGD's would not train
        with AdamW.
        """
        if self.optimizer and self.optimizer != own.optimizer:
            own = ADAMW if self.optimizer == "adamw" else Recipe()
        asked = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        return replace(own, **{name: value for name, value in asked.items() if value is not None})

    @property
    def changes_recipe(self) -> list[str]:
        """Names of the parts of a recipe that the environment asks for."""
        return [field.name for field in fields(Recipe) if getattr(self, field.name) is not None]


def planned_training(configuration: Mapping[str, Any], plans_name: str) -> dict[str, Any]:
    """What the plans of a configuration say about training, under its key `training`: `nnunet_ext plan` writes it.

    Returns:
        Values of `epochs`, `iterations` and parts of `Recipe` by name; empty for plans that say nothing.

    Raises:
        TrainingError: another key, or a value that the variable of that name would not take.
    """
    planned = configuration.get("training", {})
    allowed = ("epochs", "iterations", *(field.name for field in fields(Recipe)))
    if not isinstance(planned, dict) or any(name not in allowed for name in planned):
        found = [name for name in planned if name not in allowed] if isinstance(planned, dict) else [planned]
        raise TrainingError(f"{plans_name}.json: 'training' has {found[0]!r}; it may have {', '.join(allowed)}")
    # The same checks as for the variables, and their messages.
    as_environment = {f"NNUNET_EXT_{name.upper()}": str(value) for name, value in planned.items()}
    try:
        checked = TrainingSettings.from_environment(as_environment)
    except TrainingError as error:
        raise TrainingError(f"{plans_name}.json: 'training' taken as {error}") from None
    return {name: value for name in planned if (value := getattr(checked, name)) is not None}


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
