"""The optimiser of trainers that do not keep nnU-Net's SGD."""

from __future__ import annotations

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn


def adamw_with_poly(
    network: nn.Module, learning_rate: float, weight_decay: float, epochs: int, exponent: float = 0.9
) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
    """AdamW on all that is trained, with nnU-Net's polynomial decay.

    Args:
        network: its parameters that require gradients are trained.
        learning_rate: at the first epoch.
        weight_decay: of AdamW.
        epochs: of the whole training.
        exponent: of the decay; 0 for a constant learning rate.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, weight_decay=weight_decay)
    return optimizer, PolyLRScheduler(optimizer, learning_rate, epochs, exponent)
