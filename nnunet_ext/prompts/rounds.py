"""The interactive loop, shared by training and evaluation: look at the error, click, segment, look again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from nnunet_ext.prompts.simulate import User
from nnunet_ext.prompts.types import Points

# (all clicks so far, number of the round from 0) -> logits (batch, *grid)
Step = Callable[[Points, int], Tensor]


def interact(
    reference: Tensor,
    user: User,
    step: Step,
    rounds: int,
    *,
    start: Tensor | None = None,
    mask_only: Collection[int] = (),
) -> Iterator[Tensor]:
    """Run an interaction and yield its logits after every round.

    Unlike the published loop, an object without any error left keeps its last click instead of ending the run, and a
    voxel is marked when its logit is above 0, in training as in use (the published training asks for a logit of 0.5).

    Args:
        reference: (batch, *grid) bool.
        user: who clicks.
        step: segments; called once per round.
        rounds: number of rounds.
        start: (batch, *grid) bool, the segmentation before the first click; None for nothing.
        mask_only: rounds in which nobody clicks.

    Yields:
        What `step` returned.
    """
    prediction = torch.zeros_like(reference) if start is None else start
    points = Points.none(len(reference), reference.device)
    for number in range(rounds):
        if number not in mask_only:
            points = points.add(user(reference, prediction))
        logits = step(points, number)
        prediction = logits.detach() > 0
        yield logits
