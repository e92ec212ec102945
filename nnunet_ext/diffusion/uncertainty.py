"""How sure a model is, from several samples of one image: maps per voxel, and agreement, GED and calibration per case.

With p_r the class probabilities of sample r and p their mean, per voxel:

    entropy            = H(p) = -sum_k p_k log p_k                                      [nats]
    expected entropy   = mean_r H(p_r):  uncertain within every sample
    mutual information = entropy - expected entropy:  uncertain between samples
    variance           = 1/2 sum_k var_r(p_rk);  for votes half the chance that two draws disagree, p (1 - p) of a mask

Label maps are probabilities of 0 and 1, so for votes the expected entropy is 0 and the mutual information is the
entropy. docs/uncertainty.md says how to read these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import entr
from torch import Tensor

from nnunet_ext.diffusion.votes import vote_patterns

BINS = 10


@dataclass(frozen=True)
class UncertaintyMaps:
    """Maps over the grid, float32.

    Attributes:
        entropy: of the mean, nats.
        variance: 0 where the samples agree, up to 1/4 for two classes and (1 - 1/K) / 2 for K.
        mutual_information: nats; None for votes, where it is the entropy.
    """

    entropy: np.ndarray
    variance: np.ndarray
    mutual_information: np.ndarray | None = None


def maps_of_probabilities(probabilities: Tensor, *, regions: bool = False) -> UncertaintyMaps:
    """Maps from R samples' probabilities.

    Args:
        probabilities: (R, K, *grid), any device. They sum to 1 over K, or with `regions` each is one of its own.
        regions: every channel is a structure that is there or not; the maps are means over the channels.
    """
    p = probabilities.float()
    if regions:
        p = torch.stack((p, 1 - p), 2)  # (R, regions, 2, *grid)
        entropy, expected, variance = (x.mean(0) for x in _entropies_and_variance(p, 2))
    else:
        entropy, expected, variance = _entropies_and_variance(p, 1)
    mutual = (entropy - expected).clamp_(min=0)
    return UncertaintyMaps(*(x.cpu().numpy() for x in (entropy, variance, mutual)))


def _entropies_and_variance(p: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy of the mean, mean of the entropies, and variance, over samples (axis 0) and the given axis of classes."""
    entropy = torch.special.entr(p.mean(0)).sum(classes - 1)
    expected = torch.special.entr(p).sum(classes).mean(0)
    return entropy, expected, p.var(0, correction=0).sum(classes - 1) / 2


def maps_of_votes(labels: np.ndarray) -> UncertaintyMaps:
    """Maps from R label maps, (R, *grid) whole numbers from 0."""
    patterns = vote_patterns(labels)
    shares = np.stack([(patterns.votes == value).mean(axis=1) for value in np.unique(patterns.votes)], axis=1)
    entropy, variance = entr(shares).sum(axis=1), (1 - (shares**2).sum(axis=1)) / 2
    return UncertaintyMaps(*(patterns.look_up(np.maximum(x, 0).astype(np.float32)) for x in (entropy, variance)))


def vote_confidence(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The majority's label (ties: the smallest) and the share of the samples that vote for it, both (*grid)."""
    patterns = vote_patterns(labels)
    values = np.unique(patterns.votes)
    shares = np.stack([(patterns.votes == value).mean(axis=1) for value in values], axis=1)
    winners = values[shares.argmax(axis=1)].astype(labels.dtype)
    return patterns.look_up(winners), patterns.look_up(shares.max(axis=1).astype(np.float32))


def overlaps(labels: np.ndarray, targets: Sequence[int | tuple[int, ...]]) -> np.ndarray:
    """Voxels that each two of N label maps share, for every structure.

    Args:
        labels: (N, *grid), whole numbers from 0.
        targets: T labels, or tuples of the labels that make up a region.

    Returns:
        (T, N, N) int64; the diagonal is the size of the structure in each map.
    """
    patterns = vote_patterns(labels)
    counts: np.ndarray = patterns.counts.astype(np.float64)
    # Whole numbers below 2^53 are exact in double precision, and only such products are fast.
    members = (np.isin(patterns.votes, np.atleast_1d(target)).astype(np.float64) for target in targets)
    found = [member.T @ (counts[:, None] * member) for member in members]
    return np.array(found, dtype=np.int64).reshape(-1, len(labels), len(labels))


def pairwise_dice(overlap: np.ndarray) -> np.ndarray:
    """(N, N) from one structure's overlaps (N, N); 1 for two empty maps."""
    sizes = overlap.diagonal()
    total = sizes[:, None] + sizes
    return np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0)


def pairwise_distance(overlap: np.ndarray) -> np.ndarray:
    """(N, N), 1 - IoU from one structure's overlaps (N, N); 0 for two empty maps."""
    sizes = overlap.diagonal()
    union = sizes[:, None] + sizes - overlap
    return np.where(union > 0, 1 - overlap / np.maximum(union, 1), 0.0)


def agreement(overlap: np.ndarray) -> float:
    """Mean Dice over the pairs of different samples; NaN for one sample, or when none has the structure."""
    if len(overlap) < 2 or not overlap.any():
        return float("nan")
    return float(pairwise_dice(overlap)[np.triu_indices(len(overlap), 1)].mean())


def ged_squared(overlap: np.ndarray, samples: int, *, unbiased: bool = False) -> float:
    """Squared generalised energy distance of samples S and references Y: 2 E d(S, Y) - E d(S, S') - E d(Y, Y').

    d = 1 - IoU. By default the expectations run over all pairs, a map with itself included (V-statistic, as in
    Kohl et al. 2018, https://arxiv.org/abs/1806.05034), which cannot be negative. The unbiased form leaves those out,
    so that it does not depend on the number of samples; a single map has no other, and its term is 0.

    Args:
        overlap: (N, N) of one structure, the samples first, then the references.
        samples: how many of them are samples.
        unbiased: leave pairs of a map with itself out.

    Returns:
        0 (equal distributions) to 2; NaN when no map has the structure.

    Raises:
        ValueError: no sample or no reference.
    """
    if not 0 < samples < len(overlap):
        raise ValueError(f"{samples} samples among {len(overlap)} maps; expected at least one, and one reference")
    if not overlap.any():
        return float("nan")
    distance = pairwise_distance(overlap)

    def within(block: np.ndarray) -> float:
        pairs = len(block) * (len(block) - 1) if unbiased else block.size
        return float(block.sum()) / pairs if pairs else 0.0

    between = float(distance[:samples, samples:].mean())
    return 2 * between - within(distance[:samples, :samples]) - within(distance[samples:, samples:])


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy, over bins weighed by their voxels.

    Args:
        confidence: probability of the predicted label, 0 to 1, any shape.
        correct: same shape, 1 where the label is right; with several references, the share that agrees.
        bins: of equal width; a value on the border of two belongs to the lower one.

    Returns:
        0 to 1; NaN without voxels.
    """
    if not confidence.size:
        return float("nan")
    # Shares of votes lie on the borders but for rounding.
    place = np.ceil(confidence.reshape(-1).astype(np.float64) * bins - 1e-5).astype(np.intp) - 1
    place = place.clip(0, bins - 1)
    gap = np.bincount(place, weights=(confidence - correct).reshape(-1), minlength=bins)
    return float(np.abs(gap).sum() / confidence.size)
