"""How a trainer updates its weights: optimiser, learning rate and its schedule, weight decay, clipping of gradients.

Every trainer names its paper's recipe; `nnunet_ext.trainers.settings` may change each part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("poly", "cosine", "constant")
# nnU-Net's exponent.
POLY_EXPONENT = 0.9


@dataclass(frozen=True)
class Recipe:
    """How weights are updated; the defaults are nnU-Net's.

    Attributes:
        optimizer: "sgd" with Nesterov momentum 0.99, or "adamw" with PyTorch's betas.
        learning_rate: the highest, at the first epoch or after the warm-up.
        weight_decay: L2 penalty of SGD, decoupled decay of AdamW.
        schedule: from the highest to 0 over the epochs after the warm-up: "poly" with exponent 0.9, "cosine", or
            "constant".
        warmup_epochs: epochs over which the learning rate rises in equal steps to the highest.
        gradient_clip: largest L2 norm of all gradients together.
    """

    optimizer: str = "sgd"
    learning_rate: float = 1e-2
    weight_decay: float = 3e-5
    schedule: str = "poly"
    warmup_epochs: int = 0
    gradient_clip: float = 12.0


# What most papers with transformers begin with; taken where AdamW is asked for and a trainer's own is another.
ADAMW = Recipe("adamw", learning_rate=3e-4, weight_decay=1e-2, gradient_clip=1.0)


class Schedule(PolyLRScheduler):
    """The learning rate of a recipe at every epoch, set as nnU-Net's trainer sets it: `step(epoch)`."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, epochs: int):
        self.recipe = recipe
        super().__init__(optimizer, recipe.learning_rate, epochs)

    def step(self, current_step: int | None = None) -> None:
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        rate = learning_rate(self.recipe, current_step, self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate for _ in self.optimizer.param_groups]


def learning_rate(recipe: Recipe, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch, counted from 0, of a training of that many epochs."""
    warmup = recipe.warmup_epochs
    if epoch < warmup:
        return recipe.learning_rate * (epoch + 1) / (warmup + 1)
    done = (epoch - warmup) / (epochs - warmup)
    if recipe.schedule == "poly":
        return recipe.learning_rate * (1 - done) ** POLY_EXPONENT
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * done)) / 2
    return recipe.learning_rate


def optimizer_and_schedule(
    network: nn.Module, recipe: Recipe, epochs: int
) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
    """The optimiser of all parameters that require gradients, and its schedule over that many epochs."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(trained, rate, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(trained, rate, weight_decay=decay, momentum=0.99, nesterov=True)
    return optimizer, Schedule(optimizer, recipe, epochs)


def optimizer_in(state: dict) -> str:
    """Which of `OPTIMIZERS` wrote an optimiser's state_dict; "another" if none did."""
    group = state["param_groups"][0]
    if "momentum" in group:
        return "sgd"
    return "adamw" if "betas" in group else "another"
