"""One segmentation out of R samples: mean of probabilities, majority vote, or STAPLE.

STAPLE (Warfield et al. 2004, https://doi.org/10.1109/TMI.2004.828354) estimates by expectation maximisation how
reliable each sample is and what the truth must then be. For two labels it knows a sensitivity and a specificity per
sample, for more a confusion matrix (Rohlfing et al. 2003; Dawid and Skene 1979):

    E: W(truth = l | votes) ~ prior_l prod_r theta_r[vote_r, l]
    M: theta_r[j, l] = sum of W(l) over the voxels where sample r votes j / sum of W(l) over all voxels

The start, the prior and the end of the iteration are ITK's, so labels equal those of SimpleITK's STAPLE and
MultiLabelSTAPLE; the sums run over vote patterns instead of voxels. `fusion_plain.py` does the same voxel by voxel.

STAPLE takes large backgrounds for evidence: where samples err symmetrically it is worse than the majority vote, which
is why the mean is what callers should take unless they follow a paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from nnunet_ext.diffusion.votes import VotePatterns, vote_patterns

Fusion = Literal["mean", "majority", "staple"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)

# ITK ends when no sensitivity or specificity changes by more than the first, no entry of a confusion matrix by more
# than the second.
_BINARY_TOLERANCE = 1e-7
_MULTI_LABEL_TOLERANCE = 1e-5
# Tens are usual; this ends the rare crawl between two explanations of nearly equal likelihood.
_MOST_ITERATIONS = 10_000
# Sums of weights below this have lost digits, or everything.
_VANISHED = 1e-250
# Weights of labels that differ by less, relatively, are equal but for rounding.
_TIE = 1e-9


@dataclass(frozen=True)
class Consensus:
    """What STAPLE found.

    Attributes:
        labels: (*grid), the most probable label, in the samples' type.
        values: (L,), the labels that occur, ascending.
        confusion: (R, L, L), [r, j, l]: how often sample r says values[j] where the truth is values[l]. For masks,
            [r, 1, 1] is the sensitivity and [r, 0, 0] the specificity. 0 for a truth that no voxel has.
        iterations: steps of the expectation maximisation; 0 when nothing was disputed.
        patterns: the votes.
        weights: (P, L), the probability of each label by pattern; the shares of votes where no label is possible.
    """

    labels: np.ndarray
    values: np.ndarray
    confusion: np.ndarray
    iterations: int
    patterns: VotePatterns
    weights: np.ndarray

    def probabilities(self, classes: int) -> np.ndarray:
        """(classes, *grid) float32: the probability of each of the labels 0 to classes - 1."""
        every: np.ndarray = np.zeros((len(self.weights), classes), dtype=np.float32)
        every[:, self.values] = self.weights
        return np.stack([self.patterns.look_up(column) for column in every.T])


def fuse(probabilities: Tensor, fusion: Fusion = "mean", *, regions: bool = False) -> Tensor:
    """Probabilities of R samples as probabilities of one result, whose argmax is the fused label map.

    Args:
        probabilities: (R, K, *grid).
        fusion: "mean" of the probabilities; "majority": the share of the samples that vote for a class; "staple": the
            probability of a class according to STAPLE on the samples' label maps.
        regions: the K channels are independent regions, of which a sample has those above 0.5, instead of classes of
            which it has the most probable.

    Returns:
        (K, *grid), in the input's dtype and on its device. Ties of votes are equal probabilities, so argmax takes the
        smaller label.

    Raises:
        ValueError: an unknown fusion, or no samples.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion {fusion!r}; expected one of {', '.join(FUSIONS)}")
    if probabilities.ndim < 3 or not len(probabilities):
        raise ValueError(f"probabilities of shape {tuple(probabilities.shape)}; expected (samples, classes, *grid)")
    if fusion == "mean":
        return probabilities.mean(0)
    classes = probabilities.shape[1]
    masks = probabilities > 0.5 if regions else None
    if fusion == "majority":
        if masks is not None:
            return masks.to(probabilities.dtype).mean(0)
        votes = probabilities.argmax(1)
        return torch.stack([(votes == k).to(probabilities.dtype).mean(0) for k in range(classes)])
    if masks is not None:
        fused = np.stack([staple(masks[:, k].cpu().numpy()).probabilities(2)[1] for k in range(classes)])
    else:
        small = torch.uint8 if classes <= 256 else torch.int32
        fused = staple(probabilities.argmax(1).to(small).cpu().numpy()).probabilities(classes)
    return torch.from_numpy(fused).to(probabilities)


def majority(labels: np.ndarray, undecided: int | None = None) -> np.ndarray:
    """The label with most votes.

    Args:
        labels: (R, *grid), whole numbers from 0.
        undecided: label of voxels where labels tie; None: the smallest of those that tie.

    Returns:
        (*grid), in the type of `labels`.
    """
    patterns = vote_patterns(labels)
    values = np.unique(patterns.votes)
    shares = np.stack([(patterns.votes == value).mean(axis=1) for value in values], axis=1)
    winners = values[shares.argmax(axis=1)]
    if undecided is not None:
        winners = np.where(_winners(shares, len(values)) == len(values), undecided, winners)
    return patterns.look_up(winners.astype(labels.dtype))


def staple(labels: np.ndarray, undecided: int | None = None) -> Consensus:
    """STAPLE: masks (labels 0 and 1 alone) by sensitivity and specificity, others by confusion matrices.

    Args:
        labels: (R, *grid), whole numbers from 0.
        undecided: label of voxels where the most probable labels tie, or none is possible; None: the majority's.

    Raises:
        ValueError: see `vote_patterns`.
    """
    patterns = vote_patterns(labels)
    binary = int(patterns.votes.max()) <= 1
    values = np.arange(2) if binary else np.unique(patterns.votes)
    codes: np.ndarray = np.asarray(np.searchsorted(values, patterns.votes))
    said = _one_hot(codes, len(values))
    shares = said @ np.tile(np.eye(len(values)), (len(labels), 1)) / len(labels)  # (P, L)
    prior = patterns.counts @ shares / patterns.counts.sum()
    if binary:
        start = _confusion(said, patterns.counts[:, None] * shares)
    else:
        start = _confusion_with_majority(said, patterns.counts, shares, values)
    if len(patterns.disputed):
        tolerance = _BINARY_TOLERANCE if binary else _MULTI_LABEL_TOLERANCE
        confusion, weights, iterations = _expectation_maximisation(said, patterns.counts, prior, start, tolerance)
    else:
        confusion, weights, iterations = start, shares, 0
    winners = _winners(weights, len(values))
    impossible = ~weights.any(axis=1)
    weights[impossible] = shares[impossible]
    by_code: np.ndarray = np.append(values, 0 if undecided is None else undecided)
    if undecided is None:
        winners = np.where(winners == len(values), shares.argmax(axis=1), winners)
    return Consensus(
        patterns.look_up(by_code[winners].astype(labels.dtype)),
        values,
        confusion.reshape(labels.shape[0], len(values), len(values)),
        iterations,
        patterns,
        weights,
    )


def _expectation_maximisation(
    said: sparse.csr_array, counts: np.ndarray, prior: np.ndarray, confusion: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Confusion (R L, L), weights (P, L) and the number of iterations."""
    iterations, change = 0, np.inf
    while change >= tolerance and iterations < _MOST_ITERATIONS:
        updated = _confusion(said, counts[:, None] * _weights(said, prior, confusion))
        change = np.abs(updated - confusion).max()
        confusion = updated
        iterations += 1
    return confusion, _weights(said, prior, confusion), iterations


def _weights(said: sparse.csr_array, prior: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """E step: (P, L), the probability of each label; zeros where the votes are impossible for every one."""
    with np.errstate(divide="ignore"):
        logs = np.log(prior) + said @ np.log(confusion)
    weights = np.exp(logs)
    # A product with ones: sums along short rows are slow.
    total = weights @ np.ones(weights.shape[1])
    # Products of many small numbers vanish; only then are they worth another scale.
    vanished = np.flatnonzero(total < _VANISHED)
    if len(vanished):
        best = logs[vanished].max(axis=1, keepdims=True)
        weights[vanished] = np.exp(logs[vanished] - np.where(np.isfinite(best), best, 0.0))
        total[vanished] = weights[vanished].sum(axis=1)
    total[total == 0] = 1.0
    weights /= total[:, None]
    return weights


def _confusion(said: sparse.csr_array, weights: np.ndarray) -> np.ndarray:
    """M step: (R L, L) from weights (P, L) times counts; 0 for a truth that no voxel has."""
    voxels = weights.sum(axis=0)
    return np.divide(said.T @ weights, voxels, out=np.zeros((said.shape[1], len(voxels))), where=voxels > 0)


def _confusion_with_majority(
    said: sparse.csr_array, counts: np.ndarray, shares: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """ITK's start for more than two labels: the share of each sample's label j that the majority calls l.

    Where votes tie there is no majority. ITK then counts in the column after the last, which in its memory is the
    first of the next row: as if the sample had said label j + 1 of a truth 0. For two samples, which tie wherever they
    differ, that decides the result; for more it seldom does. Equal labels need it.
    """
    L = len(values)
    votes = np.eye(L + 1)[_winners(shares, L)]  # (P, L + 1), the last for ties
    table = (said.T @ (counts[:, None] * votes)).reshape(-1, L, L + 1)
    confusion: np.ndarray = table[:, :, :L].copy()
    neighbours = np.flatnonzero(np.diff(values) == 1)
    confusion[:, neighbours + 1, 0] += table[:, neighbours, L]
    total = confusion.sum(axis=2, keepdims=True)
    return np.divide(confusion, total, out=np.zeros_like(confusion), where=total > 0).reshape(-1, L)


def _one_hot(codes: np.ndarray, labels: int) -> sparse.csr_array:
    """(P, R) labels -> (P, R L), a one per sample: products with it sum over the votes of a pattern."""
    P, R = codes.shape
    columns = codes + labels * np.arange(R)
    return sparse.csr_array((np.ones(P * R), columns.reshape(-1), np.arange(0, P * R + 1, R)), shape=(P, R * labels))


def _winners(weights: np.ndarray, undecided: int) -> np.ndarray:
    """(P,): the label of largest weight, or `undecided` where two have it or all weights are 0."""
    best = weights.max(axis=1)
    clear = (weights >= best[:, None] * (1 - _TIE)).sum(axis=1) == 1
    return np.where(clear & (best > 0), weights.argmax(axis=1), undecided)
