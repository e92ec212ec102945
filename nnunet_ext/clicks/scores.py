"""Scores of a network under simulated clicks. The users see the reference: these are no scores of automatic use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D
from nnunet_ext.clicks.prompted_object import OUTSIDE, PreparedVolume, PromptedObject
from nnunet_ext.evaluation.metrics import surface_metrics
from nnunet_ext.evaluation.surface import surface_distances
from nnunet_ext.prompts.rounds import interact
from nnunet_ext.prompts.simulate import User, centre_clicks, uniform_clicks
from nnunet_ext.prompts.types import Points

CLICKS = (1, 3, 5, 10)
USERS = ("uniform", "centre")
NOTE = (
    "Simulated clicks: every user sees the reference. Not comparable with automatic segmentation (summary.json). "
    "Measured on the grid of the plans. AUC is the area under the score from the first to the last number of clicks, "
    "divided by their distance: a mean over clicks."
)


@dataclass(frozen=True)
class PromptedScore:
    """One object of one case under one user.

    Attributes:
        case, target, user: which.
        Dice, NSD: after each number of clicks in `CLICKS`.
    """

    case: str
    target: str
    user: str
    Dice: tuple[float, ...]
    NSD: tuple[float, ...]


def make_user(name: str, spacing_mm: Sequence[float], seed: int) -> User:
    """A simulated user by name (one of `USERS`); the seed is that of the random one."""
    if name == "centre":
        return lambda reference, prediction: centre_clicks(reference, prediction, spacing_mm)
    generator = torch.Generator().manual_seed(seed)
    return lambda reference, prediction: uniform_clicks(reference, prediction, generator)


def click_through(
    network: PromptableSAMMed3D,
    volume: PreparedVolume,
    reference: np.ndarray,
    user: User,
    clicks: Sequence[int] = CLICKS,
    nsd_tolerance_mm: float = 1.0,
    ignored: np.ndarray | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Dice and NSD of one object after each number of clicks.

    Args:
        network: in evaluation mode.
        volume: the prepared case; embeddings in it are used and kept.
        reference: bool (*grid), not empty.
        user: who clicks.
        clicks: numbers of clicks to score at, ascending.
        nsd_tolerance_mm: tolerance of NSD.
        ignored: bool (*grid), voxels of the ignore label: neither clicked on nor scored.
    """
    found = PromptedObject(network, volume)
    return follow(found, volume.spacing_mm, reference, user, clicks, nsd_tolerance_mm, ignored)


class Clickable(Protocol):
    """An object that is segmented anew with every click."""

    def click(self, index: Sequence[float], positive: bool) -> None:
        """Click on a voxel of the grid."""

    def logits(self) -> torch.Tensor:
        """Above 0 in the object, (*grid), on the CPU."""


def follow(
    found: Clickable,
    spacing_mm: Sequence[float],
    reference: np.ndarray,
    user: User,
    clicks: Sequence[int] = CLICKS,
    nsd_tolerance_mm: float = 1.0,
    ignored: np.ndarray | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Dice and NSD of an object after each number of clicks; see `click_through`."""

    def step(points: Points, number: int) -> torch.Tensor:
        found.click(points.index[0, -1].tolist(), bool(points.labels[0, -1]))
        logits = found.logits()
        if ignored is not None:
            # A copy: what inference mode made cannot be changed here.
            logits = logits.masked_fill(torch.from_numpy(ignored), OUTSIDE)
        return logits[None]

    truth = torch.from_numpy(reference)[None]
    dice, nsd = [], []
    for number, logits in enumerate(interact(truth, user, step, clicks[-1]), start=1):
        prediction = logits[0].numpy() > 0
        perfect = bool((prediction == reference).all())
        if number in clicks or perfect:
            dice.append(2 * np.count_nonzero(prediction & reference) / (prediction.sum() + reference.sum()))
            distances = surface_distances(reference.astype(np.uint8), prediction.astype(np.uint8), spacing_mm, [1])
            nsd.append(surface_metrics(distances[1], nsd_tolerance_mm)["NSD"])
        if perfect:  # nobody clicks any more
            dice += [dice[-1]] * (len(clicks) - len(dice))
            nsd += [nsd[-1]] * (len(clicks) - len(nsd))
            break
    return tuple(float(value) for value in dice), tuple(float(value) for value in nsd)


def summarise(scores: Iterable[PromptedScore], clicks: Sequence[int] = CLICKS, nsd_tolerance_mm: float = 1.0) -> dict:
    """The content of prompted_summary.json: per user and class means over cases, and all single scores."""
    scores = list(scores)
    users: dict[str, Any] = {}
    for user in USERS:
        own = [score for score in scores if score.user == user]
        targets = list(dict.fromkeys(score.target for score in own))
        users[user] = {
            "mean": _means(own, targets, clicks),
            "classes": {target: _means(own, [target], clicks) for target in targets},
        }
    return {
        "note": NOTE,
        "clicks": list(clicks),
        "nsd_tolerance_mm": nsd_tolerance_mm,
        "users": users,
        "cases": [vars(score) for score in scores],
    }


def _means(scores: list[PromptedScore], targets: Sequence[str], clicks: Sequence[int]) -> dict[str, Any]:
    """Mean over the cases of each class, then over classes."""
    result: dict[str, Any] = {"n": len({(s.case, s.target) for s in scores if s.target in targets})}
    for metric in ("Dice", "NSD"):
        per_class = [np.mean([getattr(s, metric) for s in scores if s.target == target], axis=0) for target in targets]
        curve = np.mean(per_class, axis=0) if per_class else np.full(len(clicks), math.nan)
        result[metric] = {str(n): float(value) for n, value in zip(clicks, curve, strict=True)}
        steps = np.diff(np.array(clicks))
        result[f"{metric} AUC"] = float((steps * (curve[1:] + curve[:-1]) / 2).sum() / steps.sum())
    return result
