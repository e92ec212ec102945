"""One training step of each network, as its trainer does it, for the estimate of its memory.

Values do not matter, shapes do: targets are zeros, and clicks lie anywhere. Steps that ask for values (where to click,
whether to recycle) are written out here without asking.
"""

from __future__ import annotations

import json
import pydoc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from nnunet_ext.losses import binary_dice_ce
from nnunet_ext.plans.memory import Step, StepMemory, training_step_memory
from nnunet_ext.plans.presets import NETWORKS
from nnunet_ext.prompts.types import Points

# Of UniverSeg's trainer, unless NNUNET_EXT_SUPPORT_SIZE asks for another.
SUPPORT_SIZE = 16


@dataclass(frozen=True)
class Training:
    """What memory depends on beside the network.

    Attributes:
        step: from image to loss.
        optimiser_slots: tensors per parameter that the optimiser keeps: SGD's momentum, Adam's two moments.
        deep_supervision: whether the network is built with it.
    """

    step: Step
    optimiser_slots: int = 1
    deep_supervision: bool = False


def nnunet_step(network: nn.Module, image: Tensor) -> Tensor:
    """Dice and cross-entropy of every output of the network."""
    outputs = network(image)
    return dice_ce([outputs] if isinstance(outputs, Tensor) else list(outputs))


def _medsegdiff_step(network: Any, image: Tensor) -> Tensor:
    """Mask from noise, and the condition model's mask."""
    output = network(image, image.new_zeros(len(image), network.num_classes, *image.shape[2:]))
    return dice_ce([output.prediction, output.anchor])


def _sam_med3d_step(network: Any, image: Tensor) -> Tensor:
    """All classes, then every round with all clicks so far, which is the larger of the two ways to train."""
    patch, embedding = image.shape[2:], network.embed(image)
    automatic = network.upscale(network.all_classes(embedding), patch)
    low_res, rounds = network.no_mask(len(image), image.device), []
    for number in range(network.rounds):
        labels = torch.ones(len(image), number + 1, dtype=torch.int64)
        low_res = network.segment(embedding, Points(torch.zeros(*labels.shape, 3), labels), low_res, patch)
        rounds.append(network.upscale(low_res, patch))
    objects, counted = image.new_zeros(len(image), 1, *patch), image.new_zeros(len(image), 1, *patch)
    return dice_ce([automatic]) + sum(binary_dice_ce(r, objects, counted) for r in rounds) / len(rounds)


def _universeg_step(network: Any, image: Tensor) -> Tensor:
    """Episodes with the largest support set that training draws."""
    from nnunet_ext.trainers.universeg import episode_loss

    grid = (1, network.image_size, network.image_size)
    images, labels = torch.zeros(2, len(image), SUPPORT_SIZE, *grid)
    logits = network(torch.zeros(len(image), *grid), images, labels)
    return episode_loss(logits.float(), torch.zeros(len(image), *grid))


def dice_ce(outputs: list[Tensor]) -> Tensor:
    """nnU-Net's loss of logits (batch, classes, *grid) each, in single precision, as on a GPU under autocast."""
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    losses = []
    for logits in outputs:
        target = torch.zeros(len(logits), 1, *logits.shape[2:], dtype=torch.int16)
        losses.append(loss(logits.float(), target))
    return torch.stack(losses).sum()


TRAININGS = {
    "medsegdiff": Training(_medsegdiff_step, optimiser_slots=2),
    "sam_med3d": Training(_sam_med3d_step, optimiser_slots=2),
    "segmamba": Training(nnunet_step),
    "unetrpp": Training(nnunet_step, deep_supervision=True),
    "universeg": Training(_universeg_step, optimiser_slots=2),
}


def estimate(
    model: str,
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
        model: a key of `NETWORKS`.
        arguments: of the network, as in plans.
        input_channels, num_classes: of the data set; for regions, their number.
        patch_size, batch_size: as in plans.
        half: as on a GPU; else in single precision, as on a CPU.
    """
    shape = (batch_size, input_channels, *map(int, patch_size))
    # Plans hold lists, which cannot be looked up.
    return _estimate(model, json.dumps(arguments, sort_keys=True), shape, num_classes, half)


@cache
def _estimate(model: str, arguments: str, shape: tuple[int, ...], num_classes: int, half: bool) -> StepMemory:
    training = TRAININGS[model]

    def build() -> nn.Module:
        network_class: Any = pydoc.locate(NETWORKS[model])
        network = network_class(shape[1], num_classes, training.deep_supervision, **json.loads(arguments))
        return _with_fused_attention(network) if half else network

    return training_step_memory(build, shape, training.step, optimiser_slots=training.optimiser_slots, half=half)


def _with_fused_attention(network: nn.Module) -> nn.Module:
    """GPUs compute attention with dropout in one kernel, which keeps no map; CPUs only without dropout."""
    from nnunet_ext.architectures.epa import EPA

    for module in network.modules():
        if isinstance(module, EPA):
            module.dropout = 0.0
    return network
