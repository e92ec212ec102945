"""Early prompting's step: a simulated interaction with one object per sample, over several rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.prompts.channels import CHANNELS, PREVIOUS

# (bool (batch, *patch), what was found; channels (batch, 7, *patch), which it changes)
Correct = Callable[[Tensor, Tensor], None]


class Batch(NamedTuple):
    """One step's data.

    Attributes:
        image: (batch, image channels, *patch), 0 outside of the image.
        target: (batch, 1, *patch), 1 in the object, 2 where nothing counts.
        channels: (batch, 7, *patch), what the first round is shown; later ones change it.
        rounds: how often the network is asked.
        correct: what the user does between two rounds.
        learn_from_all: from every round, not the last alone.
    """

    image: Tensor
    target: Tensor
    channels: Tensor
    rounds: int
    correct: Correct
    learn_from_all: bool = False


def step(network: nn.Module, batch: Batch, loss: Callable[[Any, Any], Tensor]) -> Tensor:
    """The loss of the last round, or the mean over rounds."""
    losses = []
    for number in range(batch.rounds):
        last = number == batch.rounds - 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and (last or batch.learn_from_all)):
            # Every round has channels of its own: the next changes them, and the backward pass needs them.
            outputs = network(torch.cat((batch.image, batch.channels), 1))
        if last or batch.learn_from_all:
            losses.append(loss(outputs, targets_for(outputs, batch.target)))
        else:
            # Weights that autocast rounded without gradients must not be used where these are wanted.
            torch.clear_autocast_cache()
        if not last:
            finest = outputs if isinstance(outputs, Tensor) else outputs[0]
            look_again(finest.detach().argmax(1) == 1, batch.channels, batch.correct)
    return torch.stack(losses).mean()


def look_again(found: Tensor, channels: Tensor, correct: Correct) -> None:
    """What the next round is shown: the segmentation so far, and what the user does about it."""
    channels[:, PREVIOUS] = found.to(channels.dtype)
    correct(found, channels)


def targets_for(outputs: Tensor | list[Tensor], target: Tensor) -> Tensor | list[Tensor]:
    """The target on the grid of every output."""
    if isinstance(outputs, Tensor):
        return target
    # As nnU-Net: nearest neighbour.
    return [F.interpolate(target.float(), o.shape[2:], mode="nearest-exact").to(target.dtype) for o in outputs]


def example(network: Any, image: Tensor, outputs: int) -> Batch:
    """See `nnunet_ext.steps`. Rounds without gradients need less than the last."""
    grid = image.shape[2:]
    target = image.new_zeros(len(image), 1, *grid, dtype=torch.int16)
    return Batch(image, target, image.new_zeros(len(image), CHANNELS, *grid), 1, lambda found, channels: None)
