"""Memory of a model's own training step, the one its trainer runs, on fake tensors: values do not matter, shapes do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from nnunet_ext import models
from nnunet_ext.plans.memory import StepMemory, training_step_memory


def estimate(
    model: str | models.Model,
    arguments: dict[str, Any],
    input_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    batch_size: int,
    *,
    half: bool = True,
) -> StepMemory:
    """Memory of one training step of one of our networks.

    Args:
        model: name of the model, or its row.
        arguments: of the network, as in plans.
        input_channels: of the data set.
        num_classes: of the data set; for regions, their number.
        patch_size: as in plans.
        batch_size: as in plans.
        half: as on a GPU; else in single precision, as on a CPU.
    """
    shape = (batch_size, input_channels, *map(int, patch_size))
    row = models.find(model)
    # Plans hold lists, which cannot be looked up.
    key = (row.name, row.deep_supervision, json.dumps(arguments, sort_keys=True), shape, num_classes, half)
    if key not in _KNOWN:
        _KNOWN[key] = _estimate(row, arguments, shape, num_classes, half)
    return _KNOWN[key]


_KNOWN: dict[tuple, StepMemory] = {}


def _estimate(
    row: models.Model, arguments: dict[str, Any], shape: tuple[int, ...], num_classes: int, half: bool
) -> StepMemory:
    training = models.load(row.step)

    def build() -> nn.Module:
        network = row.build(shape[1], num_classes, row.deep_supervision, arguments)
        if half and row.on_gpu is not None:
            models.load(row.on_gpu)(network)
        return network

    def step(network: nn.Module, image: Tensor) -> Tensor:
        loss = dice_ce if row.loss is None else models.load(row.loss)
        return training.step(network, training.example(network, image, num_classes), loss)

    return training_step_memory(build, shape, step, optimiser_slots=row.optimiser_slots, half=half)


def dice_ce(outputs: Tensor | list[Tensor], targets: Tensor | list[Tensor]) -> Tensor:
    """nnU-Net's loss, summed over the outputs of deep supervision, in single precision as on a GPU under autocast."""
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    if isinstance(outputs, Tensor):
        outputs, targets = [outputs], [targets] if isinstance(targets, Tensor) else targets
    return torch.stack([loss(o.float(), t) for o, t in zip(outputs, targets, strict=True)]).sum()
