"""Vote patterns: what R label maps say of a voxel is one of few combinations, and equal voxels need not be asked twice.

Most voxels of samples of one image are unanimous, and the disputed ones share a few thousand combinations of R labels.
Fusion, agreement and entropy depend on a voxel by its combination alone, so they are computed once per combination,
weighed by how often it occurs, and looked up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Labels stay below this: there is a table over all of them.
LABEL_LIMIT = 1 << 16
# Codes of combinations stay below this.
_LARGEST_CODE = 1 << 62


@dataclass(frozen=True)
class VotePatterns:
    """The different combinations of votes of R label maps over V voxels.

    Attributes:
        votes: (P, R), one combination of labels per row, each once.
        counts: (P,) int64, voxels that have it; above 0.
        first: (V,), the first label map.
        disputed: places in `first` of voxels on which the maps differ.
        pattern_of_label: label -> row of its unanimous pattern, -1 where no voxel is unanimous for it.
        pattern_of_disputed: rows of the disputed voxels.
        shape: of the grid; V is its product.
    """

    votes: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    disputed: np.ndarray
    pattern_of_label: np.ndarray
    pattern_of_disputed: np.ndarray
    shape: tuple[int, ...]

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The voxels' values: (P, ...) by pattern -> (*grid, ...)."""
        of_label = values[self.pattern_of_label]
        present = self.pattern_of_label >= 0
        if of_label.ndim == 1 and (of_label == np.arange(len(of_label)))[present].all():
            out = self.first.astype(values.dtype)  # unanimous voxels keep their label: no table is needed
        else:
            out = of_label[self.first]
        out[self.disputed] = values[self.pattern_of_disputed]
        return out.reshape(*self.shape, *values.shape[1:])


def vote_patterns(labels: np.ndarray) -> VotePatterns:
    """Find the combinations of votes.

    Args:
        labels: (R, *grid), whole numbers from 0 to 65535; small types are faster.

    Raises:
        ValueError: no maps, no voxels, negative, fractional or larger labels.
    """
    if labels.ndim < 2 or not labels.size:
        raise ValueError(f"labels of shape {labels.shape}; expected (samples, *grid) with at least one voxel")
    if labels.dtype.kind not in "iub" or int(labels.min()) < 0:
        raise ValueError(f"labels of type {labels.dtype}, or negative ones; expected whole numbers from 0")
    if int(labels.max()) >= LABEL_LIMIT:
        raise ValueError(f"the label {labels.max()}; expected whole numbers below {LABEL_LIMIT}")
    flat = labels.reshape(len(labels), -1)
    flat = flat.view(np.uint8) if labels.dtype == bool else flat
    first = flat[0]
    differs = flat.min(axis=0) != flat.max(axis=0)
    disputed = np.flatnonzero(differs)
    of_each = flat[:, disputed]
    number = int(flat.max()) + 1

    unanimous = _histogram(first, number) - _histogram(of_each[0], number)
    present = np.flatnonzero(unanimous)
    pattern_of_label: np.ndarray = np.full(number, -1, dtype=np.intp)
    pattern_of_label[present] = np.arange(len(present))

    _, places, rows, counts = np.unique(
        _codes(of_each, number), return_index=True, return_inverse=True, return_counts=True
    )
    votes = np.concatenate([np.repeat(present[:, None], len(flat), axis=1), of_each[:, places].T])
    return VotePatterns(
        votes,
        np.concatenate([unanimous[present], counts]),
        first,
        disputed,
        pattern_of_label,
        rows.reshape(-1) + len(present),
        labels.shape[1:],
    )


def _histogram(labels: np.ndarray, number: int) -> np.ndarray:
    """(number,): how often each label occurs."""
    if number <= 16:  # bincount copies everything to a larger type first
        return np.array([np.count_nonzero(labels == label) for label in range(number)], dtype=np.int64)
    return np.bincount(labels, minlength=number)


def _codes(votes: np.ndarray, number: int) -> np.ndarray:
    """(R, V) votes below `number` -> (V,) int64, equal where all votes are."""
    codes: np.ndarray = np.zeros(votes.shape[1], dtype=np.int64)
    largest = 1
    for vote in votes:
        if largest * number > _LARGEST_CODE:
            # Many maps of many labels: number the combinations so far anew.
            distinct, codes = np.unique(codes, return_inverse=True)
            codes, largest = codes.reshape(-1), len(distinct)
        codes = codes * number + vote
        largest *= number
    return codes
